# SPDX-License-Identifier: Apache-2.0
"""The host images: a base layer that never changes, lashd's layer, and a small layer that makes each version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from demo import tree as base
from demo.apps import App, agent, probe, web
from demo.lashd_layer import lashd_layer
from tests.support.images import Content, Image, LayerBlob, Link, build, files

REGISTRY_PORT = 5000
REGISTRY = f"127.0.0.1:{REGISTRY_PORT}"
HOST_REPOSITORY = "os/harbour"
HOST_TAG = "stable"
HOST_REFERENCE = f"{REGISTRY}/{HOST_REPOSITORY}:{HOST_TAG}"

_QUADLETS = "usr/share/containers/systemd"
_BOUND = "usr/lib/bootc/bound-images.d"
_OS_RELEASE = """\
NAME="Harbour OS"
PRETTY_NAME="Harbour OS {version}"
ID=harbour
ID_LIKE=debian
VERSION="{version}"
VERSION_ID={version}
"""
_REGISTRIES = f'[[registry]]\nlocation = "{REGISTRY}"\ninsecure = true\n'


@dataclass(frozen=True)
class Binding:
    """An application as a host image binds it: floating by `tag`, or pinned by digest when `tag` is empty."""

    app: App
    tag: str = ""

    @property
    def reference(self) -> str:
        name = f"{REGISTRY}/{self.app.repository}"
        return f"{name}:{self.tag}" if self.tag else f"{name}@{self.app.image.digest}"


@dataclass(frozen=True)
class Version:
    """One version of the host image with everything it binds."""

    number: str
    image: Image = field(repr=False)
    bindings: tuple[Binding, ...]


def version(
    number: str, bindings: tuple[Binding, ...], layers: tuple[LayerBlob, ...], more: Mapping[str, Content] | None = None
) -> Version:
    """A host image on top of `layers` (see `common_layers`); `more` are further files of its own layer."""
    content: dict[str, Content] = {
        "usr/lib/os-release": _OS_RELEASE.format(version=number),
        "etc/containers/registries.conf.d/50-harbour.conf": _REGISTRIES,
    }
    for binding in bindings:
        unit = f"{binding.app.name}.container"
        content[f"{_QUADLETS}/{unit}"] = binding.app.quadlet(binding.reference)
        content[f"{_BOUND}/{unit}"] = Link(f"/{_QUADLETS}/{unit}")
    labels = {"containers.bootc": "1", "ostree.bootable": "true", "org.opencontainers.image.version": number}
    image = build([*layers, files(content | dict(more or {}))], labels=labels, cmd=["/sbin/init"])
    return Version(number, image, bindings)


def common_layers() -> tuple[LayerBlob, ...]:
    """The layers that all versions share: the base and lashd as it is in the checkout now."""
    return base.base_layer(), lashd_layer(base.ensure())


def first(layers: tuple[LayerBlob, ...], web_tag: str = "1") -> Version:
    """v1: `web` floating, `agent` pinned to its first digest."""
    tree = base.ensure()
    return version("1", (Binding(web(tree, "1"), web_tag), Binding(agent(tree, "1"))), layers)


def second(layers: tuple[LayerBlob, ...], web_tag: str = "2") -> Version:
    """v2: `web` floating, `agent` pinned to a newer digest, and `probe`, which shares a layer with `web`.

    With the same `web_tag` as v1 the two versions mean different images by one name.
    """
    tree = base.ensure()
    bindings = (Binding(web(tree, "2"), web_tag), Binding(agent(tree, "2")), Binding(probe(tree, "2"), "2"))
    return version("2", bindings, layers)
