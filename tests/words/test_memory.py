# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

from tests.bus.conftest import REPOSITORY

# Many small pieces, of which the last one stays: the C library keeps all that lies below it.
SCRIPT = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from lashd.words.memory import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
pieces = [libc.malloc(2000) for _ in range(10000)]
for piece in pieces:
    ctypes.memset(piece, 1, 2000)
for piece in pieces[:-1]:
    libc.free(piece)
before = resident()
give_back()
print(before - resident())
"""


def test_what_was_freed_is_given_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(REPOSITORY / "daemon")], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) > 15000, "KiB of the 20 MB"
