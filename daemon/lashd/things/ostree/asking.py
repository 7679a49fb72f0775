# SPDX-License-Identifier: Apache-2.0
"""What a registry says of a host image, on every kind of host."""

from __future__ import annotations

from lashd.things.host import HostOutline
from lashd.things.ostree import names
from lashd.things.ostree.fetch import OpenProxy
from lashd.things.ostree.image import check_signature_rule, read_host_manifest
from lashd.words.config import Settings
from lashd.words.model import HostImage


class Asking:
    """The part of a HostBackend that only asks."""

    def __init__(self, settings: Settings, open_proxy: OpenProxy | None = None) -> None:
        self._settings = settings
        self._open_proxy = open_proxy or _skopeo(settings)

    async def check(self, image: HostImage) -> str:
        check_signature_rule(image, self._settings.paths.root)
        async with self._open_proxy() as proxy:
            opened = await proxy.open(names.skopeo_name(image.transport, image.reference))
            return (await proxy.manifest(opened))[0]

    async def outline(self, image: HostImage) -> HostOutline:
        check_signature_rule(image, self._settings.paths.root)
        async with self._open_proxy() as proxy:
            opened = await proxy.open(names.skopeo_name(image.transport, image.reference))
            said = read_host_manifest(*(await proxy.manifest(opened)), await proxy.config(opened))
        return HostOutline(said.digest, said.version, sum(layer.size for layer in said.layers))


def _skopeo(settings: Settings) -> OpenProxy:
    from lashd.things.proxy import ImageProxy

    return lambda: ImageProxy(settings)
