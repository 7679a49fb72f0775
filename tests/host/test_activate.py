# SPDX-License-Identifier: Apache-2.0
"""One floating tag that two systems bind with different digests: each sees its own meaning, at every boot, offline."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from demo import images
from demo.host import Host
from demo.images import Version
from lashd.words.events import MessageId
from tests.host.conftest import HostImages, publish
from tests.host.test_walk import described, lashctl, states, version_of, wait_for_page
from tests.support.registry import Registry

pytestmark = pytest.mark.host

CHECK = "/usr/lib/greenboot/check/wanted.d/50-lashd.sh"
# Which unit started which command of skopeo.
WRAPPER = """\
#!/bin/sh
echo "$(sed 's,.*/,,' /proc/self/cgroup) $*" >> /var/lib/skopeo.log
exec skopeo "$@"
"""


@pytest.fixture
def moved(host_images: HostImages) -> Version:
    """v2, which binds `web` by the same tag as v1 and means another image by it."""
    return images.second(tuple(host_images.first.image.layers[:-1]), web_tag="1")


def write(host: Host, path: str, text: str, mode: str = "644") -> None:
    script = 'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod "$1" "$0"'
    host.run("sh", "-c", script, path, mode, input=text.encode())


def started_by_activation(host: Host) -> list[str]:
    """The commands of skopeo that activation started since the last look."""
    log = host.run("sh", "-c", "cat /var/lib/skopeo.log 2>/dev/null; rm -f /var/lib/skopeo.log").output
    return [line.partition(" ")[2] for line in log.splitlines() if line.startswith("lashd-activate.service ")]


def shown(host: Host, unit: str, *properties: str) -> dict[str, str]:
    output = host.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).output
    return dict(line.split("=", 1) for line in output.splitlines())


def seconds_of_activation(host: Host) -> float:
    """How long the program ran at this boot; it ended well, and before the first container was started."""
    names = ("ExecMainStatus", "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic", "ActiveState")
    facts = shown(host, "lashd-activate", *names)
    assert (facts["ExecMainStatus"], facts["ActiveState"]) == ("0", "active")
    begun, ended = (int(facts[f"ExecMain{edge}TimestampMonotonic"]) for edge in ("Start", "Exit"))
    for unit in ("web", "agent"):
        up = shown(host, unit, "InactiveExitTimestampMonotonic")
        assert ended <= int(up["InactiveExitTimestampMonotonic"])
    return (ended - begun) / 1e6


def web_image(host: Host) -> str:
    """The digest of what `web` runs from, in podman's own words."""
    podman = ("podman", "--storage-opt=additionalimagestore=/usr/lib/bootc/storage")
    return host.run(*podman, "inspect", "web", "--format={{.ImageDigest}}").output.strip()


def test_each_system_sees_its_own_meaning(
    host: Host, host_images: HostImages, host_registry: Registry, moved: Version
) -> None:
    first, second = (version.bindings[0].app.image.digest for version in (host_images.first, moved))
    write(host, "/etc/lashd/skopeo", WRAPPER, "755")
    write(host, "/etc/lashd/lashd.d/50-skopeo.toml", '[tools]\nskopeo = "/etc/lashd/skopeo"\n')
    host.run("systemctl", "restart", "lashd")
    assert seconds_of_activation(host) < 5
    publish(host_registry, moved)
    lashctl(host, "upgrade")
    assert set(states(host, "staged").values()) == {"present"}
    host_registry.stop()
    # The running system never sees the next one's meaning.
    assert states(host, "booted") == {"web": "present", "agent": "present"}
    host.run("systemctl", "restart", "web")
    assert (wait_for_page(host), web_image(host)) == ("Ahoy from web 1\n", first)
    assert started_by_activation(host) == []

    host.reboot()
    assert version_of(host) == "2", host.journal(200)
    taken = {"boot that moves names": seconds_of_activation(host)}
    assert (wait_for_page(host), web_image(host)) == ("Ahoy from web 2\n", second)
    assert states(host, "booted") == {"web": "present", "agent": "present", "probe": "present"}
    # The image that had the name is named by id, and the new one by the tag.
    assert len(started_by_activation(host)) == 2
    assert f"web:1 now means {second}" in host.run("journalctl", "--unit=lashd-activate", "--boot").output
    assert host.run("test", "-e", "/run/lashd/activation.json", check=False).status == 1
    said = host.run(CHECK)
    assert [line.partition(":")[0] for line in said.output.splitlines()] == [
        "agent.container",
        "probe.container",
        "web.container",
    ]

    # An ordinary boot.
    host.reboot()
    assert version_of(host) == "2"
    taken["ordinary boot"] = seconds_of_activation(host)
    assert started_by_activation(host) == []
    assert host.run("journalctl", "--unit=lashd-activate", "--boot", "--identifier=activate").output.count("\n") <= 1
    assert wait_for_page(host) == "Ahoy from web 2\n"

    lashctl(host, "rollback")
    # Not before the reboot, here either.
    host.run("systemctl", "restart", "web")
    assert wait_for_page(host) == "Ahoy from web 2\n"
    host.reboot()
    assert version_of(host) == "1"
    assert (wait_for_page(host), web_image(host)) == ("Ahoy from web 1\n", first)
    assert states(host, "booted") == {"web": "present", "agent": "present"}
    taken["rollback"] = seconds_of_activation(host)
    # v2's image has a name by its digest already.
    assert len(started_by_activation(host)) == 1
    print({name: round(seconds, 3) for name, seconds in taken.items()})


def test_a_unit_with_a_wrong_name_is_not_started(host: Host, host_registry: Registry, moved: Version) -> None:
    """By the strict setting: it fails with a reason, the others run, and it starts once the name is right."""
    publish(host_registry, moved)
    lashctl(host, "upgrade")
    host_registry.stop()
    settings = "/etc/lashd/lashd.d/50-broken.toml"
    write(host, settings, '[tools]\nskopeo = "/bin/false"\n[gate]\nstrict_names = true\n')
    host.reboot()
    assert version_of(host) == "2", host.journal(200)
    assert host.run("systemctl", "is-active", "agent", "probe", "web", check=False).output.split() == [
        *("active", "active", "inactive"),
    ]
    assert shown(host, "lashd-activate", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "1"}
    report = json.loads(host.run("cat", "/run/lashd/activation.json").output)
    assert list(report) == ["web.container"]
    # Also when somebody asks for it, and with the reason beside it.
    assert host.run("systemctl", "start", "web", check=False).status != 0
    status = host.run("systemctl", "status", "web", check=False).output
    assert "/run/lashd/barred/web.service" in status
    assert report["web.container"] in host.run("journalctl", "--unit=web", "--boot").output
    said = host.run(CHECK, check=False)
    assert said.status == 1
    assert said.errors.startswith("web.container: ")
    assert len(said.output.splitlines()) == 2

    host.run("rm", settings)
    host.run("systemctl", "restart", "lashd-activate")
    host.run("systemctl", "start", "web")
    assert wait_for_page(host) == "Ahoy from web 2\n"
    assert host.run(CHECK).output.count("is complete") == 3
    assert host.run("ls", "/run/lashd").output.split().count("activation.json") == 0
    assert not Path(f"/proc/{host.leader()}/root/run/systemd/system/web.service.d").exists()


def test_activation_that_failed_and_a_layer_that_is_damaged(
    host: Host, host_registry: Registry, moved: Version
) -> None:
    """What runs another image than it should, or layers that were replaced, is named until it is restarted."""
    publish(host_registry, moved)
    lashctl(host, "upgrade")
    # Activation is ended before it has done or said anything, and the daemon comes after the containers.
    write(
        host, "/etc/systemd/system/lashd-activate.service.d/fail.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n"
    )
    write(host, "/etc/systemd/system/lashd.service.d/late.conf", "[Unit]\nAfter=web.service\n")
    host.reboot()
    assert version_of(host) == "2", host.journal(200)
    assert wait_for_page(host) == "Ahoy from web 1\n"
    (sentence,) = restarts_told(host)
    assert sentence.startswith("web.service was started before ")
    assert states(host, "booted") == {"web": "present", "agent": "present", "probe": "present"}
    assert restarts_told(host) == [sentence]
    host.run("systemctl", "restart", "web")
    assert wait_for_page(host) == "Ahoy from web 2\n"
    assert restarts_told(host, 0) == []

    # One byte of the page that is being served.
    change = (
        "mount -o remount,rw /sysroot && cd /usr/lib/bootc/storage/overlay && "
        "file=$(grep -rl 'Ahoy from web 2' --include=index.html .) && stat -c %y $file > /tmp/when && "
        "sed -i 's/Ahoy/Ahoi/' $file && touch -d \"$(cat /tmp/when)\" $file"
    )
    host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", change)
    lashctl(host, "verify", "--deep", status=18)
    # lashd fetches it again by itself; what runs keeps the layers that it was started from.
    (sentence,) = restarts_told(host)
    assert sentence.startswith("web.service was started before ")
    assert wait_for_page(host).endswith("from web 2\n")
    assert states(host, "booted") == {"web": "present", "agent": "present", "probe": "present"}
    lashctl(host, "verify", "--deep")
    host.run("systemctl", "restart", "web")
    assert wait_for_page(host) == "Ahoy from web 2\n"
    assert restarts_told(host, 0) == []
    aside = "/usr/lib/bootc/storage/lashd-aside"
    assert host.run("ls", aside).output.strip()

    # A mistake in the settings keeps no name from its meaning.
    lashctl(host, "rollback")
    (key,) = (one["key"] for one in described(host)["deployments"] if "booted" not in one["roles"])
    change = (
        "mount -o remount,rw /sysroot && cd /sysroot/ostree/deploy/*/deploy/$0/etc && "
        "rm -r systemd/system/lashd-activate.service.d && mkdir -p lashd/lashd.d && "
        "echo '[gate]\npolcy = 1' > lashd/lashd.d/10.toml"
    )
    host.run("unshare", "--mount", "--propagation", "private", "sh", "-c", change, key)
    host.reboot()
    assert version_of(host) == "1", host.journal(200)
    assert wait_for_page(host) == "Ahoy from web 1\n"
    assert shown(host, "lashd-activate", "Result") == {"Result": "success"}
    assert "10.toml, line 2: 'gate.polcy'" in host.run("journalctl", "--unit=lashd-activate", "--boot").output
    broken = ("journalctl", "--boot", "--output=cat", f"MESSAGE_ID={MessageId.SETTINGS_BROKEN}", "--no-pager")
    for unit in ("lashd-activate", "lashd"):
        assert "10.toml, line 2: 'gate.polcy'" in host.run(*broken, f"--unit={unit}").output, unit
    host.run("rm", "/etc/lashd/lashd.d/10.toml")
    host.run("systemctl", "reset-failed", "lashd", check=False)
    host.run("systemctl", "restart", "lashd")
    assert states(host, "booted") == {"web": "present", "agent": "present"}
    assert not host.run("ls", aside).output.strip(), "of an earlier boot"
    for path in ("doc/lashd/README.md", "bash-completion/completions/lashctl", "zsh/site-functions/_lashctl"):
        assert host.run("test", "-s", f"/usr/share/{path}").status == 0, path


def restarts_told(host: Host, seconds: float = 60) -> list[str]:
    """What status says of services that are to be restarted; waited for."""
    deadline = time.monotonic() + seconds
    while True:
        document = described(host)
        found = [each["message"] for each in document["blockedBy"] if each["code"] == "restart-needed"]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
