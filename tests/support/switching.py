# SPDX-License-Identifier: Apache-2.0
"""A host that is switched to another image, whatever kind of host it is."""

from __future__ import annotations

from demo import images
from demo.images import Version
from tests.support.registry import Registry

NEXT_REPOSITORY = "os/harbour-next"
NEXT = f"{images.REGISTRY}/{NEXT_REPOSITORY}:edge"


def publish_next(registry: Registry, version: Version) -> None:
    """Push what `version` binds, and its host image where no host follows it yet."""
    for binding in version.bindings:
        registry.push(binding.app.repository, binding.app.image, binding.tag)
    registry.push(NEXT_REPOSITORY, version.image, "edge")
