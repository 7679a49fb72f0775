# SPDX-License-Identifier: Apache-2.0
"""Decompression piece by piece, chosen by the first bytes, as every tool that unpacks layers chooses it.

Standard library, and libzstd through ctypes (libostree's own tar reader needs that library anyway).
"""

from __future__ import annotations

import ctypes
import zlib
from typing import Protocol

from lashd.words.errors import ErrorName, LashdError

_CHUNK = 256 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Decoder(Protocol):
    """Fed with compressed bytes once `take` has nothing more; `finish` is called at their end.

    `take` answers at most about `limit` bytes at a time. Both raise ValueError for damaged data.
    """

    def feed(self, data: bytes) -> None: ...

    def take(self, limit: int) -> bytes: ...

    def finish(self) -> None: ...


def decoder_for(start: bytes) -> Decoder:
    """`start`: the first bytes of the blob, at least four unless it is shorter."""
    if start.startswith(_GZIP):
        return _Gzip()
    # Skippable frames may stand before the first real one.
    if start.startswith(_ZSTD) or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        return _Zstd()
    return _Plain()


class _Plain:
    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data = data

    def take(self, limit: int) -> bytes:
        data, self._data = self._data, b""
        return data

    def finish(self) -> None:
        pass


class _Gzip:
    """Gzip, of one or many members."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._data = b""
        self._whole = False

    def feed(self, data: bytes) -> None:
        self._data += data

    def take(self, limit: int) -> bytes:
        while self._data:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            try:
                out = self._member.decompress(self._data, limit)
            except zlib.error as error:
                raise ValueError(f"its compression is damaged ({error})") from error
            self._data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._whole = self._member.eof
            if out:
                return out
        return b""

    def finish(self) -> None:
        if not self._whole:
            raise ValueError("its compressed data breaks off")


class _Buffer(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


class _Zstd:
    """Zstandard by the system's library; its default limit on the window (128 MiB) bounds the memory."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libzstd.so.1")
        except OSError as error:
            raise LashdError(
                ErrorName.HOST_COMMAND_FAILED,
                "A layer is compressed with zstd, and this host has no libzstd; install it.",
                retryable=False,
            ) from error
        library.ZSTD_createDStream.restype = ctypes.c_void_p
        library.ZSTD_freeDStream.argtypes = (ctypes.c_void_p,)
        library.ZSTD_decompressStream.restype = ctypes.c_size_t
        library.ZSTD_decompressStream.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer))
        library.ZSTD_isError.argtypes = (ctypes.c_size_t,)
        library.ZSTD_getErrorName.argtypes = (ctypes.c_size_t,)
        library.ZSTD_getErrorName.restype = ctypes.c_char_p
        self._library = library
        self._stream = library.ZSTD_createDStream()
        self._out = ctypes.create_string_buffer(_CHUNK)
        self._data = b""
        self._input = _Buffer()
        self._hint = 1  # 0 when a frame has ended and everything of it was handed out
        self._full = False

    def __del__(self) -> None:
        if getattr(self, "_stream", None):
            self._library.ZSTD_freeDStream(self._stream)

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._input.position :] + data
        self._input = _Buffer(ctypes.cast(ctypes.c_char_p(self._data), ctypes.c_void_p), len(self._data), 0)

    def take(self, limit: int) -> bytes:
        while self._full or self._input.position < self._input.size:
            out = _Buffer(ctypes.addressof(self._out), len(self._out), 0)
            hint = self._library.ZSTD_decompressStream(self._stream, ctypes.byref(out), ctypes.byref(self._input))
            if self._library.ZSTD_isError(hint):
                raise ValueError(f"its compression is damaged ({self._library.ZSTD_getErrorName(hint).decode()})")
            # When nothing was left to do, libzstd answers with the hint for the next frame: keep the old word.
            if out.position or self._input.position == self._input.size:
                self._hint = hint
            # A full output buffer means that there may be more without further input.
            self._full = out.position == out.size
            if out.position:
                return self._out.raw[: out.position]
        return b""

    def finish(self) -> None:
        if self._hint != 0:
            raise ValueError("its compressed data breaks off")
