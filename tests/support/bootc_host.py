# SPDX-License-Identifier: Apache-2.0
"""What is done to, and asked of, a booted host on which bootc (the stand-in) stages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from demo import images
from demo.host import Host
from demo.images import Binding, Version
from tests.host.test_keeper import SETTINGS
from tests.support.images import Content, Link, files
from tests.support.installed import STAND_IN
from tests.support.registry import Registry

STORE = "/usr/lib/bootc/storage"
ANNOUNCED = "/run/reboot-required"
LINKS = "usr/lib/bootc/bound-images.d"
UNITS = "usr/share/containers/systemd"
# In the guest: `podman` is what bootc runs on the store, in a mount namespace of its own.
_BOOTC = (
    "mkdir -p /run/bootc/storage; exec 3</run/bootc/storage; mount -o remount,rw /sysroot; "
    "mount --bind /sysroot/ostree/bootc/storage /run/bootc/storage; "
    'podman() { command podman --root /run/bootc/storage --runroot /proc/self/fd/3 "$@"; }; '
)


def first_and_second() -> tuple[Version, Version]:
    """The demo's two versions, with bootc in them."""
    layers = (*images.common_layers(), files({"usr/bin/bootc": STAND_IN}))
    return images.first(layers), images.second(layers)


def version_like(
    like: Version, more: Mapping[str, Content], *, bindings: tuple[Binding, ...] | None = None, number: str = ""
) -> Version:
    """A version on the layers of `like`, with other `bindings` and `more` files of its own."""
    layers = tuple(like.image.layers[:-1])
    return images.version(number or like.number, like.bindings if bindings is None else bindings, layers, more)


def bound_unit(name: str, text: str) -> dict[str, Content]:
    """The files that bind the Quadlet unit `name`."""
    return {f"{UNITS}/{name}": text, f"{LINKS}/{name}": Link(f"/{UNITS}/{name}")}


def settle(host: Host) -> None:
    """lashd as installed, but quick to try again."""
    script = "mkdir -p /etc/lashd/lashd.d && cat > /etc/lashd/lashd.d/test.toml && systemctl restart lashd"
    host.run("sh", "-c", script, input=SETTINGS.encode())


def configure(host: Host, **config: object) -> None:
    """What the stand-in reads when it starts."""
    host.run("sh", "-c", "cat > /etc/bootc-stand-in.json", input=json.dumps(config).encode())


def slow(host: Host, seconds: int) -> None:
    """Let bootc keep its lock for so long before it does anything; then it has much to tell."""
    configure(host, locked_seconds=seconds, babble=300_000)


def publish_without_one(registry: Registry, version: Version) -> None:
    """All of a version but the last image that it binds."""
    for binding in version.bindings[:-1]:
        registry.push(binding.app.repository, binding.app.image, binding.tag)
    registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)


def stored(host: Host) -> set[str]:
    """The digests of what is in the store."""
    return {image.get("digest", "") for image in _index(host)}


def stored_names(host: Host) -> set[str]:
    return {name for image in _index(host) for name in image.get("names") or ()}


def _index(host: Host) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(host.run("cat", f"{STORE}/overlay-images/images.json").output)
    return found


def digests(version: Version) -> set[str]:
    return {binding.app.image.digest for binding in version.bindings}


def podman_of_bootc(host: Host, script: str, *words: str) -> str:
    """Run `script` in the guest where `podman` is what bootc runs on the store; what it wrote."""
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _BOOTC + script, "sh", *words]
    return host.run(*argv).output


def additional(host: Host, reference: str) -> bool:
    """Whether podman finds an image as the units of bound images do."""
    more = f"--storage-opt=additionalimagestore={STORE}"
    return host.run("podman", more, "image", "exists", reference, check=False).status == 0


def activity(host: Host) -> str:
    return host.run("systemctl", "is-active", "lashd-bootc.service", check=False).output.strip()


def wait_for(host: Host, state: str) -> None:
    deadline = time.monotonic() + 30
    while activity(host) != state:
        assert time.monotonic() < deadline, (activity(host), host.journal())
        time.sleep(0.1)


def apply(host: Host) -> None:
    """bootc's own timer: it reboots at once, whatever is there; from what is staged already it does so, too."""
    boot = host.boots()
    host.run("systemd-run", "--quiet", "bootc", "upgrade", "--apply", "--quiet")
    host.wait_until_up(boot + 1)
