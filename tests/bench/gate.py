# SPDX-License-Identifier: Apache-2.0
"""The gate at shutdown: the whole process, from its start to its end, on a real sysroot and store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from lashd.things.ostree.deployments import OstreeSysroot
from tests.bench.measure import Figure, median
from tests.bench.service import IMAGES, furnish, settings_below
from tests.support.registry import Registry
from tests.support.staged import play_booted

REPOSITORY = Path(__file__).resolve().parents[2]
# As the program does it, but for where the host is.
_PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from lashd.running.gate import Gate
from lashd.things.ostree.deployments import OstreeSysroot
from lashd.words.config import settings_from
settings = settings_from(json.loads(sys.argv[2]))
sysroot = OstreeSysroot(settings)
sysroot.booted = True
print(Gate(settings, sysroot=sysroot).shut_down().result.value)
"""


async def gate(work: Path, repeats: int) -> list[Figure]:
    """Bar `gate.ms`."""
    settings = settings_below(work)
    with Registry() as registry:
        await furnish(registry, settings, IMAGES)
    play_booted(settings, OstreeSysroot(settings).deployments()[0])
    hold = ["sh", REPOSITORY / "packaging/libexec/hold", settings.paths.ostree_run, settings.paths.run]
    argv = [
        sys.executable,
        "-I",
        "-c",
        _PROGRAM,
        REPOSITORY / "daemon",
        json.dumps(asdict(settings), default=os.fspath),
    ]
    spent: list[float] = []
    for number in range(max(4 * repeats, 12) + 1):
        subprocess.run(hold, check=True)
        began = time.perf_counter()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        # The first run reads what nobody has read yet; at a shutdown the daemon has.
        spent += [(time.perf_counter() - began) * 1000] if number else []
        assert done.stdout == "released\n", done
    print(f"  {median(spent):.0f} ms, {max(spent):.0f} ms at most")
    compared = f"process start to end, {IMAGES} images, all present, released; at most {max(spent):.0f}"
    return [Figure("gate.ms", median(spent), "ms", "≤ 300", compared, tuple(spent))]
