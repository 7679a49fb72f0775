# SPDX-License-Identifier: Apache-2.0
"""bootc alone, as its own tests have it: what others do with it on a host, and what lashd reckons with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.host import Host
from tests.host.conftest import HostImages
from tests.host.test_walk import version_of
from tests.support.bootc_host import ANNOUNCED, publish_without_one
from tests.support.installed import alone, publish
from tests.support.registry import Registry

pytestmark = pytest.mark.host

STEPS = ["merging", "deploying", "bound_images", "cleanup", "cleanup"]


def status(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run("bootc", "status", "--format=json", "--format-version=1").output)
    return found["status"]


def touched(host: Host) -> int:
    """When bootc last said that something has changed, in nanoseconds."""
    return int(host.run("sh", "-c", "date --reference=/ostree/bootc +%s%N").output)


def test_ten_ask_at_once(host: Host, host_images: HostImages) -> None:
    """Each waits for its turn, and gets all of the answer."""
    script = "for n in 0 1 2 3 4 5 6 7 8 9; do bootc status --json > /run/said.$n & done; wait; cat /run/said.*"
    answers = [json.loads(line) for line in host.run("sh", "-c", script).output.splitlines()]
    assert [answer["kind"] for answer in answers] == ["BootcHost"] * 10
    booted = {answer["status"]["booted"]["image"]["imageDigest"] for answer in answers}
    assert booted == {host_images.first.image.digest}


def test_downloaded_only_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Held until it is let go, lost by a reboot; told in progress lines, by a file and by a time."""
    alone(host)
    publish(host_registry, host_images.second)
    before = touched(host)
    upgrade = "bootc upgrade --download-only"
    said = host.run("sh", "-c", f"{upgrade} --progress-fd 3 3>&1 >/dev/null 2>&1 | cat").output
    start, *events = [json.loads(line) for line in said.splitlines()]
    assert start == {"type": "Start", "version": "0.1.0"}
    assert {event["task"] for event in events if event["type"] == "ProgressBytes"} == {"pulling"}
    assert [subtask["subtask"] for subtask in events[-1]["subtasks"]] == STEPS
    assert [event["task"] for event in events if event["type"] == "ProgressSteps"] == ["importing", *["staging"] * 5]
    # Of bound images there is a name of a step, and nothing else.
    assert "apps/web" not in said
    digest = host_images.second.image.digest
    assert host.run("cat", ANNOUNCED).output == f"bootc: Reboot required for image: {digest}"
    assert (during := touched(host)) > before
    assert status(host)["staged"]["downloadOnly"] is True
    host.reboot()
    assert version_of(host) == "1"
    alone(host)
    assert status(host)["staged"] is None
    host.run("sh", "-c", upgrade)
    assert "Staged update present, not changed" in host.run("sh", "-c", upgrade).output
    # Any plain upgrade lets it go.
    for command, held in (("bootc upgrade", False), (upgrade, True)):
        host.run("sh", "-c", command)
        assert status(host)["staged"]["downloadOnly"] is held
    again = touched(host)
    assert again > during
    host_registry.stop()
    assert "will now be applied on reboot" in host.run("bootc", "upgrade", "--from-downloaded").output
    assert status(host)["staged"]["downloadOnly"] is False
    # Whoever watches that time does not see that it was let go.
    assert touched(host) == again
    host.reboot()
    assert version_of(host) == "2"


def test_rolled_back_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Done twice it is undone; what is staged goes without a word."""
    alone(host)
    assert "No rollback available" in host.run("bootc", "rollback", check=False).errors
    publish(host_registry, host_images.second)
    host.run("bootc", "upgrade")
    host.reboot()
    alone(host)
    first, second = host_images.first.image.digest, host_images.second.image.digest
    for queued in (True, False):
        host.run("bootc", "rollback")
        now = status(host)
        assert now["rollbackQueued"] is queued
        assert [now[role]["image"]["imageDigest"] for role in ("booted", "rollback")] == [second, first]
    publish(host_registry, host_images.first)
    host.run("bootc", "upgrade")
    assert status(host)["staged"]["image"]["imageDigest"] == first
    said = host.run("bootc", "rollback")
    assert (said.output, said.errors) == ("Next boot: rollback deployment\n", "")
    assert status(host)["staged"] is None


def test_nobody_is_told_of_a_failure_alone(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """The fault: what fails after it was staged does not change the time that others watch; nor is it in `status`."""
    alone(host)
    before = touched(host)
    publish_without_one(host_registry, host_images.second)
    assert host.run("bootc", "upgrade", check=False).status == 1
    assert touched(host) == before
    staged = status(host)["staged"]
    assert (staged["image"]["imageDigest"], staged["downloadOnly"]) == (host_images.second.image.digest, False)
    assert "apps/" not in json.dumps(staged)
