# SPDX-License-Identifier: Apache-2.0
"""The walk itself: v1, the upgrade to v2 with all it binds, v2 without any registry, and back to v1."""

from __future__ import annotations

import json

from demo import disk, images, rootfs, tree
from demo.apps import WEB_PORT
from demo.host import Host
from demo.images import Binding, Version
from demo.install import STORE, install
from demo.terminal import NotTrue, Terminal
from tests.support.registry import Registry

_STORE_OPTION = "--storage-opt=additionalimagestore=/usr/lib/bootc/storage"
_LINE = "100mbit"
_OS_NAME = ("grep", "^PRETTY_NAME", "/etc/os-release")
_PAGE = ("busybox", "wget", "-qO-", f"http://127.0.0.1:{WEB_PORT}/")


class Story:
    """Tells it once, on `host`, to `terminal`. Raises NotTrue or Failed at the first thing that is not as told."""

    def __init__(self, host: Host, terminal: Terminal) -> None:
        self.host, self.terminal = host, terminal

    def tell(self) -> None:
        step, true = self.terminal.step, self.terminal.true
        with step("Build the host images"):
            first, second = self._build()
        registry = Registry(netns=self.host.network.path, port=images.REGISTRY_PORT)
        with registry:
            with step("Start a registry, publish v1, install it on an empty disk"):
                self._publish(registry, first)
                disk.create(self.host.disk)
                install(self.host.disk, self.host.network, images.HOST_REFERENCE, _references(first))
                self.terminal.say("  it is on the disk now, with the images it binds in its store")
            with step("Boot v1"):
                self._up(self._boot(), first)
                self._shows(first)
            with step("Publish v2 and upgrade"):
                self._publish(registry, second)
                self._upgrade(second)
        with step("Stop the registry and reboot into v2"):
            true("the registry is gone", not self._registry_answers())
            self._up(self._reboot(), second)
        with step("v2 runs what is bound to it, with no registry to ask"):
            self._shows(second)
            self._from_the_store(second)
        with step("Roll back and reboot"):
            self.terminal.run(self.host, "lashctl", "rollback")
            self._up(self._reboot(), first)
        with step("v1 is back, with its own images, and still no registry"):
            self._shows(first)
            self._from_the_store(first)
            true("the registry is still gone", not self._registry_answers())

    # The steps

    def _build(self) -> tuple[Version, Version]:
        cached = rootfs.path().is_dir()
        self.terminal.say(
            f"  Debian {rootfs.SUITE}, {'from the cache' if cached else 'by mmdebstrap, once'}: {rootfs.path()}"
        )
        tree.ensure()
        layers = images.common_layers()
        versions = images.first(layers), images.second(layers)
        for version in versions:
            sizes = " + ".join(_size(len(layer.blob)) for layer in version.image.layers)
            self.terminal.say(f"  v{version.number}: {version.image.digest[:19]}…  layers {sizes}")
            for binding in version.bindings:
                self.terminal.say(f"      binds {binding.reference}")
        return versions

    def _publish(self, registry: Registry, version: Version) -> None:
        for binding in version.bindings:
            registry.push(binding.app.repository, binding.app.image, binding.tag)
        registry.push(images.HOST_REPOSITORY, version.image, images.HOST_TAG)
        self.terminal.say(f"  {images.HOST_REFERENCE} is now v{version.number}")

    def _boot(self) -> str:
        self.host.start(wait=False)
        return self.host.wait_until_up(1)

    def _reboot(self) -> str:
        self.terminal.prompt(self.host, ["systemctl", "reboot"])
        return self.host.reboot()

    def _up(self, state: str, version: Version) -> None:
        """The host has come up as `version`, every unit of it."""
        terminal, host = self.terminal, self.host
        failed = host.run("systemctl", "--failed", "--no-legend", "--plain", check=False).output
        terminal.true(f"the host is up, boot {host.boots()}: systemd says '{state}'", state == "running", failed)
        lashd = host.run("systemctl", "is-active", "lashd.service", check=False).output.strip()
        terminal.true(f"lashd is {lashd}", lashd == "active")
        name = terminal.run(host, *_OS_NAME)
        terminal.true(f"this is v{version.number}", f'"Harbour OS {version.number}"' in name)

    def _upgrade(self, version: Version) -> None:
        terminal, host = self.terminal, self.host
        # On loopback it would be over before there is anything to see.
        with host.network.slow(_LINE):
            terminal.run(host, "lashctl", "upgrade")
        terminal.run(host, "lashctl", "status")
        status = terminal.run(host, "ostree", "admin", "status")
        terminal.true(f"v{version.number} is staged", "(staged)" in status and f"Version: {version.number}" in status)
        missing = [each.reference for each in version.bindings if each.app.image.image_id not in self._stored()]
        terminal.true("all its bound images are in the store already, before the reboot", not missing, str(missing))

    def _shows(self, version: Version) -> None:
        """lashd lists exactly what the version binds, all of it present with the right digest."""
        self.terminal.run(self.host, "lashctl", "list")
        rows = json.loads(self.host.run("lashctl", "list", "--json").output)
        found = {(row["unit"], row["state"], row["wanted-digest"]) for row in rows}
        wanted = {(f"{each.app.name}.container", "present", each.app.image.digest) for each in version.bindings}
        listed = {(unit.rpartition("/")[2], state, digest) for unit, state, digest in found}
        many = len(version.bindings)
        self.terminal.true(
            f"lashd lists the {many} images of v{version.number}, all present", listed == wanted, str(rows)
        )
        page = self.terminal.run(self.host, *_PAGE)
        web = _binding(version, "web")
        self.terminal.true(f"web {web.app.version} answers", page == f"Ahoy from web {web.app.version}\n", page)

    def _from_the_store(self, version: Version) -> None:
        """Every application was started by its Quadlet unit, in this boot, from the image that is bound."""
        terminal, host = self.terminal, self.host
        facts = "--property=Id,SourcePath,ActiveState,SubState,ActiveEnterTimestamp"
        terminal.run(host, "systemctl", "show", facts, *(f"{each.app.name}.service" for each in version.bindings))
        terminal.run(host, "podman", _STORE_OPTION, "ps", "--format=table {{.Names}} {{.Image}} {{.Status}}")
        for binding in version.bindings:
            self._started_by_its_unit(binding)
        own = host.run("podman", "images", "--quiet").output
        terminal.true("podman's own store is empty: nothing was fetched a second time", own == "", own)

    def _started_by_its_unit(self, binding: Binding) -> None:
        host, name = self.host, binding.app.name
        source = host.run("systemctl", "show", "--property=SourcePath", "--value", f"{name}.service").output.strip()
        state = host.run("systemctl", "is-active", f"{name}.service", check=False).output.strip()
        said = host.run("journalctl", "--boot", f"--unit={name}.service", "--output=cat", "--no-pager").output
        shape = '{{.Image}} {{index .Config.Labels "PODMAN_SYSTEMD_UNIT"}}'
        image, unit = host.run("podman", _STORE_OPTION, "inspect", f"--format={shape}", name).output.split()
        facts = {
            "its unit is generated by Quadlet": source == f"/usr/share/containers/systemd/{name}.container",
            "its unit is active": state == "active",
            "it said so in this boot's journal": f"{name} {binding.app.version} is up" in said,
            "its container runs the bound image": image == binding.app.image.image_id,
            "its container belongs to the unit": unit == f"{name}.service",
        }
        wrong = [fact for fact, holds in facts.items() if not holds]
        sentence = f"{name} {binding.app.version} was started by {name}.service at boot, from the bound image"
        self.terminal.true(
            sentence, not wrong, f"Not so: {'; '.join(wrong)}. ({source}, {state}, {image}, {unit})\n{said}"
        )

    # Looking

    def _stored(self) -> set[str]:
        """Ids of the images in the bound image store, from its own index."""
        index = self.host.run("cat", f"/sysroot/{STORE}/overlay-images/images.json").output
        return {str(image["id"]) for image in json.loads(index)}

    def _registry_answers(self) -> bool:
        url = f"http://{images.REGISTRY}/v2/"
        return self.host.run("busybox", "wget", "-qO-", url, check=False, timeout=10).status == 0


def _references(version: Version) -> list[str]:
    return [binding.reference for binding in version.bindings]


def _binding(version: Version, name: str) -> Binding:
    for binding in version.bindings:
        if binding.app.name == name:
            return binding
    raise NotTrue(f"v{version.number} binds no {name}.")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
