# SPDX-License-Identifier: Apache-2.0
"""The walk on a booted host, with everything in it as it is, and what goes wrong there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo import images
from demo.host import Done, Host
from demo.images import Binding, Version
from lashd.words.events import MessageId
from tests.host.conftest import HostImages, publish
from tests.support.images import Content, Link
from tests.support.registry import Registry
from tests.support.switching import NEXT, publish_next

pytestmark = pytest.mark.host

STORE = "/sysroot/ostree/bootc/storage"
WRITABLE = ("unshare", "--mount", "sh", "-c")


def version_of(host: Host) -> str:
    return host.run("sh", "-c", ". /etc/os-release; echo $VERSION_ID").output.strip()


def lashctl(host: Host, *argv: str, status: int = 0) -> dict[str, Any] | list[dict[str, Any]]:
    """Run lashctl with --json; its exit status must be `status`."""
    done: Done = host.run("lashctl", *argv, "--json", check=False, timeout=180)
    assert done.status == status, (argv, done.status, done.output, done.errors, host.journal())
    answer: dict[str, Any] | list[dict[str, Any]] = json.loads(done.output)
    return answer


def states(host: Host, which: str) -> dict[str, str]:
    rows = lashctl(host, "list", "--deployment", which)
    return {row["unit"].removesuffix(".container"): row["state"] for row in rows}


def described(host: Host) -> dict[str, Any]:
    document = lashctl(host, "status")
    assert isinstance(document, dict)
    return document


def lock_of(host: Host) -> str:
    return host.run("cat", "/run/ostree/staged-deployment-locked", check=False).output


def publish_without(registry: Registry, version: Version, app: str) -> None:
    """Publish a host image one of whose bound images the registry does not have."""
    for binding in version.bindings:
        if binding.app.name != app:
            registry.push(binding.app.repository, binding.app.image, binding.tag)
    registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)


def test_held_until_everything_is_there(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Together or not at all: a missing image keeps the old system, over a reboot too; the next run completes it."""
    assert lashctl(host, "upgrade", status=77)["job"]["result"] == "unchanged"  # type: ignore[call-overload]
    publish_without(host_registry, host_images.second, "probe")
    answer = lashctl(host, "upgrade", status=13)
    assert "probe" in answer["error"]["message"]  # type: ignore[call-overload]
    now = described(host)
    assert (now["state"], now["gate"]) == ("held", "held")
    assert any("probe" in reason["message"] for reason in now["blockedBy"])
    assert lock_of(host).startswith("lashd\n")
    # What could be fetched was, although nothing vouches for it yet.
    assert states(host, "staged") == {"web": "unverified", "agent": "unverified", "probe": "missing"}
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}

    publish(host_registry, host_images.second)
    answer = lashctl(host, "upgrade", "--expected-digest", "sha256:" + "0" * 64, status=8)
    # The daemon has staged it again by itself, and may have bound it, too: then nothing is left to be done.
    digest = host_images.second.image.digest
    assert host.run("lashctl", "upgrade", "--expected-digest", digest, check=False, timeout=180).status in (0, 77)
    assert states(host, "staged") == {"web": "present", "agent": "present", "probe": "present"}
    assert described(host)["state"] == "ready"
    # Only the gate takes the lock away.
    mark, _key, *flags = lock_of(host).splitlines()
    assert (mark, flags) == ("lashd", ["ready"])
    lashctl(host, "upgrade", status=77)
    lashctl(host, "rollback", status=22)
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "2"
    assert states(host, "booted") == {"web": "present", "agent": "present", "probe": "present"}
    assert host.run("systemctl", "is-active", "web", "agent", "probe").output.split() == ["active"] * 3


def test_registry_away_and_forbidden_callers(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    host_registry.stop()
    assert "127.0.0.1:5000" in lashctl(host, "upgrade", status=14)["error"]["message"]  # type: ignore[call-overload]
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    refused = host.run(*nobody, "lashctl", "upgrade", check=False)
    assert refused.status == 4
    assert "Traceback" not in refused.errors
    assert host.run(*nobody, "lashctl", "status").status == 0
    assert json.loads(host.run(*nobody, "lashctl", "list", "--json").output)
    assert described(host)["state"] == "idle"
    host.reboot()
    assert version_of(host) == "1"


def test_switched_to_another_image(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Held and bound as any other; what was followed before is followed until it runs, and again after a rollback."""
    publish_next(host_registry, host_images.second)
    lashctl(host, "check", status=77)
    answer = lashctl(host, "switch", "no/registry", status=2)
    assert answer["error"]["name"] == "InvalidArgument"  # type: ignore[call-overload]
    lashctl(host, "switch", NEXT)
    lashctl(host, "switch", NEXT, status=77)
    assert set(states(host, "staged").values()) == {"present"}
    host.reboot()
    assert version_of(host) == "2"
    assert described(host)["deployments"][0]["image"] == NEXT
    lashctl(host, "upgrade", status=77)
    lashctl(host, "rollback")
    host.reboot()
    assert version_of(host) == "1"
    assert described(host)["deployments"][0]["image"] == images.HOST_REFERENCE
    publish(host_registry, host_images.second)
    checked = lashctl(host, "check")["job"]["details"]  # type: ignore[call-overload]
    assert (checked["newer"], checked["newest"], checked["newest-version"]) == (
        True,
        host_images.second.image.digest,
        "2",
    )


# Entries of bound-images.d that mean no good.
GOOD_UNIT = "[Container]\nImage=quay.io/a/b:1\n"
HOSTILE: dict[str, Content] = {
    "outside.container": Link("/../../../../../../../../proc/1/root/etc/hostname"),
    "loop.container": Link("loop.container"),
    "directory.container": None,
    "nul.container": f"{GOOD_UNIT}\0",
    "bytes.container": b"\xff\xfe",
    "large.container": b"#" * (2 << 20),
    "endless.container": "[Container]\nImage=" + "\\\n" * 400_000,
    "option.container": "[Container]\nImage=--root=/\n",
    **dict.fromkeys(("a b.container", 'a"b.container', "a\nb.container", "--root=.container"), GOOD_UNIT),
}


def test_bad_entry_is_never_released(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """Entries that cannot be used: the others are bound, the deployment stays held, the old system comes up."""
    bindings = host_images.second.bindings
    bad = {
        "usr/share/containers/systemd/broken.container": "[Container]\nImage=Not A Reference\n",
        "usr/lib/bootc/bound-images.d/broken.container": Link("/usr/share/containers/systemd/broken.container"),
        **{f"usr/lib/bootc/bound-images.d/{name}": content for name, content in HOSTILE.items()},
    }
    layers = tuple(host_images.second.image.layers[:-1])
    publish(host_registry, images.version("3", bindings, layers, bad))
    message = lashctl(host, "upgrade", status=9)["error"]["message"]  # type: ignore[call-overload]
    assert "broken.container" in message
    rows = {row["unit"]: row["state"] for row in lashctl(host, "list", "--deployment", "staged")}
    for name in ("broken.container", *HOSTILE):
        assert rows.pop(name.replace("\n", "\\n")) == "invalid", name
    assert set(rows.values()) == {"present"}
    assert len(rows) == len(bindings)
    assert described(host)["gate"] == "held"
    host.reboot()
    assert version_of(host) == "1"


def test_rollback_repairs_or_refuses(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    publish(host_registry, host_images.second)
    lashctl(host, "upgrade")
    assert lashctl(host, "rollback", status=22)["error"]["name"] == "RollbackUnavailable"  # type: ignore[call-overload]
    host.reboot()
    assert version_of(host) == "2"

    # Somebody removes a layer that only v1 needs.
    layer = host_images.first.bindings[1].app.image.layers[-1].diff_id
    find = (
        f"import json; layers = json.load(open('{STORE}/overlay-layers/layers.json')); "
        f"print(*(each['id'] for each in layers if each['diff-digest'] == '{layer}'))"
    )
    (identity,) = host.run("python3", "-c", find).output.split()
    host.run(*WRITABLE, f"mount -o remount,rw /sysroot && rm -r {STORE}/overlay/{identity}")
    assert states(host, "rollback")["agent"] == "incomplete"
    host_registry.stop()
    answer = lashctl(host, "rollback", status=23)
    assert "nothing was changed" in answer["error"]["message"]  # type: ignore[call-overload]
    host_registry.start()
    lashctl(host, "rollback")
    following = [row["roles"] for row in described(host)["deployments"] if row["next-boot"]]
    assert following == [["rollback"]]
    said = host.run("journalctl", "--output=json", "--no-pager", f"MESSAGE_ID={MessageId.ROLLBACK_QUEUED}").output
    (entry,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert (entry["LASHD_KIND"], entry["LASHD_UID"]) == ("rollback", "0")
    assert "the next boot starts it" in host.run("lashctl", "status").output
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "1"
    assert set(states(host, "booted").values()) == {"present"}
    assert host.run("systemctl", "is-active", "web", "agent").output.split() == ["active"] * 2


def test_running_system_keeps_the_meaning_of_its_names(
    new_host: Callable[[], Host], host_images: HostImages, tmp_path: Path
) -> None:
    """The same floating tag in v1 and v2: until the reboot it means on the running system what it meant before."""
    host = new_host()
    host.start()
    moved = images.second(tuple(host_images.first.image.layers[:-1]), web_tag="1")
    with Registry(netns=host.network.path, port=images.REGISTRY_PORT, storage=tmp_path / "registry") as registry:
        publish(registry, host_images.first)
        publish(registry, moved)
        lashctl(host, "upgrade")
        rows = {row["unit"]: row for row in lashctl(host, "list", "--deployment", "staged")}
        assert rows["web.container"]["state"] == "present"
        assert rows["web.container"]["wanted-digest"] == moved.bindings[0].app.image.digest
        booted = {row["unit"]: row for row in lashctl(host, "list")}
        assert booted["web.container"]["state"] == "present"
        assert booted["web.container"]["present-digest"] == host_images.first.bindings[0].app.image.digest
        host.run("systemctl", "restart", "web")
        page = wait_for_page(host)
        assert page == "Ahoy from web 1\n"


def test_names_that_are_new_or_move_before_the_reboot(
    host: Host, host_images: HostImages, host_registry: Registry
) -> None:
    """A new tag for content that is there already, and a tag that moves while nothing that runs uses it."""
    web_1, agent_1 = (binding.app for binding in host_images.first.bindings)
    web_2 = host_images.second.bindings[0].app
    layers = tuple(host_images.second.image.layers[:-1])
    publish(host_registry, images.version("2", (Binding(web_1, "2"), Binding(agent_1, "stable")), layers))
    lashctl(host, "upgrade")
    publish(host_registry, images.version("3", (Binding(web_2, "2"), Binding(agent_1, "stable")), layers))
    lashctl(host, "upgrade")
    assert states(host, "staged") == {"web": "present", "agent": "present"}
    assert states(host, "booted") == {"web": "present", "agent": "present"}
    host_registry.stop()
    host.reboot()
    assert version_of(host) == "3"
    assert host.run("systemctl", "is-active", "web", "agent").output.split() == ["active"] * 2
    assert wait_for_page(host) == "Ahoy from web 2\n"
    assert states(host, "booted") == {"web": "present", "agent": "present"}
    lashctl(host, "bind", "booted", status=77)


def test_daemon_killed_while_it_binds(host: Host, host_images: HostImages, host_registry: Registry) -> None:
    """SIGKILL in the middle: held, nothing left behind, and it carries on by itself."""
    publish(host_registry, host_images.second)
    host.run("sh", "-c", "lashctl upgrade --no-wait")
    deadline = time.monotonic() + 60
    while not lock_of(host).startswith("lashd\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "lashd")
    # For a moment systemd still calls the one that was killed active.
    shown = ("systemctl", "show", "--value", "--property=NRestarts,ActiveState", "lashd")
    while host.run(*shown).output.split() not in (["1", "active"], ["active", "1"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Those of the next daemon, which is at work already, have a parent.
    assert host.run("pgrep", "-x", "skopeo", "--parent", "1", check=False).output == ""
    # It may have been killed before there was a deployment: then the hold went with the daemon's next start.
    now = described(host)
    assert (now["gate"], lock_of(host) != "") in [("held", True), ("none", False), ("released", True)]
    if now["gate"] == "none":
        lashctl(host, "upgrade")
    while (now := described(host))["gate"] != "released" or now["activeJob"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert states(host, "staged") == {"web": "present", "agent": "present", "probe": "present"}
    assert host.run("sh", "-c", "ls /var/lib/lashd/pull 2>/dev/null | wc -l").output.strip() == "0"
    host.reboot()
    assert version_of(host) == "2"


def wait_for_page(host: Host) -> str:
    deadline = time.monotonic() + 20
    while True:
        done = host.run("busybox", "wget", "-qO-", "http://127.0.0.1:8080/", check=False)
        if done.status == 0 or time.monotonic() > deadline:
            return done.output
        time.sleep(0.2)
