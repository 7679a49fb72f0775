# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: a million made-up inputs to the parsers of what others wrote; writes build/fuzz.json.

python -m tests.fuzz [--inputs N] [--seed N] [--jobs N] [--only TARGET [--block N]]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.run import BLOCK, Tally, block
from tests.fuzz.targets import TARGETS

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", choices=[kind.name for kind in TARGETS], help="one target")
    parser.add_argument("--block", type=int, help="one block of that target again, as a finding names it")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/fuzz.json", help="where the figures go")
    options = parser.parse_args()
    began = time.monotonic()
    tallies = {kind.name: Tally(kind.name) for kind in TARGETS if options.only in (None, kind.name)}
    work = []
    for kind in TARGETS:
        if kind.name in tallies:
            total = options.inputs if options.only else options.inputs * kind.share // 100
            starts = range(0, total, BLOCK) if options.block is None else [options.block * BLOCK]
            work += [(kind.name, options.seed, at // BLOCK, min(BLOCK, total - at)) for at in starts]
    # The slow ones first, so that no process is left with one alone at the end.
    work.reverse()
    with ProcessPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(block, *one) for one in work]):
            tally = done.result()
            tallies[tally.target].add(tally)
            for line in tally.detail[:5]:
                print(f"  {tally.target}: {line[:400]}", flush=True)
    show(list(tallies.values()))
    seconds = time.monotonic() - began
    print(f"{sum(tally.inputs for tally in tallies.values()):,} inputs in {seconds:.0f} s, seed {options.seed}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: asdict(tally) for name, tally in tallies.items()}
    options.output.write_text(
        json.dumps({"seed": options.seed, "seconds": round(seconds, 1), "targets": rows}, indent=2) + "\n"
    )
    return 1 if any(tally.crashes or tally.hangs or not tally.inputs for tally in tallies.values()) else 0


def show(tallies: list[Tally]) -> None:
    """Print the table."""
    print(f"     {'target':18} {'inputs':>9} {'accepted':>9} {'crashes':>7} {'hangs':>5} {'µs each':>8} {'slowest':>9}")
    for tally in tallies:
        mark = "BAD " if tally.crashes or tally.hangs or not tally.inputs else "ok  "
        print(
            f"{mark} {tally.target:18} {tally.inputs:9,} {tally.accepted:9,} {tally.crashes:7} {tally.hangs:5} "
            f"{1e6 * tally.seconds / max(1, tally.inputs):8.0f} {1e3 * tally.slowest:6.1f} ms"
        )


if __name__ == "__main__":
    sys.exit(main())
