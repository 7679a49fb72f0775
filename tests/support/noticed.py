# SPDX-License-Identifier: Apache-2.0
"""Stages something on a booted host, as others do, and sees when lashd's lock is there."""

from __future__ import annotations

from demo.host import Host

# Prints how long after libostree's note of what is staged our lock for just that is there, in milliseconds.
_PROGRAM = """
import pathlib, subprocess, sys, time
run = pathlib.Path("/run/ostree")
staged, lock = run / "staged-deployment", run / "staged-deployment-locked"
before = staged.stat().st_ino if staged.exists() else 0
process = subprocess.Popen(["ostree", "admin", "deploy", "--stage", *sys.argv[1:]], stdout=subprocess.DEVNULL)
while not staged.exists() or staged.stat().st_ino == before:
    time.sleep(0.002)
since = time.monotonic()
name = staged.read_bytes()
while True:
    try:
        lines = lock.read_text().splitlines()
    except FileNotFoundError:
        lines = []
    if len(lines) > 1 and lines[0] == "lashd" and lines[1].encode() in name:
        break
    assert time.monotonic() - since < 15
    time.sleep(0.002)
took = time.monotonic() - since
assert process.wait() == 0
print(took * 1000)
"""


def stage(host: Host, *argv: str) -> float:
    """`ostree admin deploy --stage` with `argv`: after how many milliseconds it is held. Fails after 15 s."""
    return float(host.run("python3", "-", *argv, input=_PROGRAM.encode(), timeout=120).output)
