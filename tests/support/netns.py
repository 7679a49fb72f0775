# SPDX-License-Identifier: Apache-2.0
"""Enter another network namespace in a thread of its own: sockets made there stay there, the process does not move."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def enter(namespace: Path | None) -> None:
    """Move the calling *thread* into the network namespace at `namespace` (`/proc/PID/ns/net`); None: stay."""
    if namespace is None:
        return
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError("only a thread of its own may change its network namespace")
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(descriptor)


def within(namespace: Path | None, action: Callable[[], T]) -> T:
    """The result of `action`, called in `namespace`."""
    if namespace is None:
        return action()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter(namespace)
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
