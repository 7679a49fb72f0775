# SPDX-License-Identifier: Apache-2.0
"""How soon what somebody stages is held, on a booted host."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.measure import Figure, median
from tests.faults.world import World
from tests.support.noticed import stage


async def notice(work: Path, repeats: int) -> list[Figure]:
    """Bar `notice.ms`: the daemon alone, and again with the path unit alone."""
    figures = []
    with World(work, f"b{os.getpid()}") as world:
        for name, other, who in (
            ("notice.ms", "lashd-hold.path", "the daemon by itself"),
            ("notice.path_ms", "lashd.service", "the path unit by itself, while no daemon runs"),
        ):
            world.fresh(online=False)
            world.host.run("systemctl", "stop", other)
            spent = [stage(world.host, "--os=default", world.checksum) for _ in range(max(3 * repeats, 9))]
            print(f"  {who}: {median(spent):.0f} ms, {max(spent):.0f} ms at most")
            compared = f"ostree's note of what is staged → our lock for it: {who}; at most {max(spent):.0f}"
            figures.append(Figure(name, median(spent), "ms", "≤ 200", compared, tuple(spent)))
    return figures
