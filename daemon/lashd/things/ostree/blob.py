# SPDX-License-Identifier: Apache-2.0
"""One layer blob as a stream: counted, hashed, decompressed, and never larger than it may be.

Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from lashd.things.ostree.decompress import Decoder, decoder_for
from lashd.words.errors import ErrorName, LashdError

_CHUNK = 256 * 1024
# What layers are, whoever packed them; the first bytes, not this word, say how one is compressed.
_MEDIA_TYPES = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.rootfs.",
)


class BlobSource:
    """Compressed bytes from a file descriptor. `progress` is told the number of bytes read so far."""

    def __init__(self, descriptor: int, digest: str, size: int, progress: Callable[[int], None]) -> None:
        if not digest.startswith("sha256:"):
            raise LashdError(ErrorName.DIGEST_MISMATCH, f"The layer {digest} has a digest of an unknown kind.")
        self._descriptor = descriptor
        self._digest = digest
        self._size = size
        self._progress = progress
        self._hash = hashlib.sha256()
        self._read = 0

    def read(self) -> bytes:
        """The next bytes, empty at the end. Raises DigestMismatch when there are more than there may be."""
        data = os.read(self._descriptor, _CHUNK)
        self._hash.update(data)
        self._read += len(data)
        if self._read > self._size:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The layer {self._digest} has more than the {self._size} bytes that its manifest says; "
                "it was not used.",
            )
        self._progress(self._read)
        return data

    def verify(self) -> None:
        """Read to the end. Raises DigestMismatch unless these were the bytes the manifest names."""
        while self.read():
            pass
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest or self._read != self._size:
            raise LashdError(
                ErrorName.DIGEST_MISMATCH,
                f"The layer {self._digest} of {self._size} bytes arrived as {found} with {self._read} bytes; "
                "it was not used.",
                # A transfer that broke off is worth another try, other content under that digest is not.
                retryable=self._read < self._size,
            )


class TarStream:
    """The decompressed layer, as `tarfile` wants it: read, tell, and seek forward.

    `limit` bounds all bytes that come out. Between `expect_header` and the next call of it, reads that are not of
    `content` share a small budget, so that a header cannot fill the memory. Raises ValueError for damaged input.
    """

    HEADER_LIMIT = 4 * 1024 * 1024

    def __init__(self, source: BlobSource, media_type: str, limit: int) -> None:
        if media_type.endswith("+encrypted") or (media_type and not media_type.startswith(_MEDIA_TYPES)):
            raise ValueError(f"its media type '{media_type}' is not that of a layer")
        self._source = source
        self._limit = limit
        self._decoder: Decoder | None = None
        self._pending = bytearray()
        self._ended = False
        self._position = 0
        self._header_left = self.HEADER_LIMIT
        self.last_block = b""

    def expect_header(self) -> None:
        self._header_left = self.HEADER_LIMIT

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise ValueError("its headers point backwards")
        while self._position < position:
            if not self._take(min(position - self._position, _CHUNK)):
                break
        return self._position

    def read(self, size: int = -1) -> bytes:
        self._header_left -= size
        if size < 0 or self._header_left < 0:
            raise ValueError("a header in it is larger than any real one")
        data = self._take(size)
        self.last_block = data
        return data

    def content(self, size: int) -> bytes:
        """`size` bytes of a file's content. Raises ValueError when the stream ends before."""
        data = self._take(size)
        if len(data) < size:
            raise ValueError("it ends within a file")
        return data

    def hole(self, size: int) -> bytes:
        """`size` zeros of a sparse file: they are not in the stream, but they will be on the disk."""
        self._charge(size)
        return bytes(size)

    def _charge(self, size: int) -> None:
        self._limit -= size
        if self._limit < 0:
            raise LashdError(
                ErrorName.NO_SPACE, "A layer of the host image unpacks to more bytes than there is free space for."
            )

    def _take(self, size: int) -> bytes:
        while len(self._pending) < size and not self._ended:
            self._more(max(size - len(self._pending), _CHUNK))
        data = bytes(self._pending[:size])
        del self._pending[:size]
        self._position += len(data)
        return data

    def _more(self, size: int) -> None:
        if self._decoder is None:
            start = b""
            while len(start) < 4 and (data := self._source.read()):
                start += data
            self._decoder = decoder_for(start)
            self._decoder.feed(start)
        while not (data := self._decoder.take(size)):
            compressed = self._source.read()
            if not compressed:
                self._decoder.finish()
                self._ended = True
                return
            self._decoder.feed(compressed)
        self._pending += data
        self._charge(len(data))
