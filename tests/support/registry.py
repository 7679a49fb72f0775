# SPDX-License-Identifier: Apache-2.0
"""A real registry (`docker-registry`) on a free port of 127.0.0.1, and the few HTTP calls that fill it.

    with Registry() as registry:
        digest = registry.push("edge/agent", image, tag="1")      # see images.py
        registry.reference("edge/agent", digest)                   # 127.0.0.1:PORT/edge/agent@sha256:…

With `netns` it runs, and is filled, in another network namespace. `storage` may be shared by several registries.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import http.client
import json
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.images import Image, Index
from tests.support.netns import within

_LISTENING = re.compile(r"listening on [^ \"]*:([0-9]+)")
_START_SECONDS = 15.0


class Registry:
    """One registry process. `users` maps names to passwords (then everything needs them); `tls` serves https."""

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        storage: Path | None = None,
        port: int = 0,
        netns: Path | None = None,
    ) -> None:
        self.users = dict(users or {})
        self.tls = tls
        self.netns = netns
        self.port = port
        self._own = Path(tempfile.mkdtemp(prefix="lashd-registry-"))
        self.storage = storage or self._own / "storage"
        self._process: subprocess.Popen[bytes] | None = None

    # Its life

    def start(self) -> Self:
        """Start (or start again, on the same port and storage)."""
        assert self._process is None
        config = self._own / "config.json"  # JSON is YAML
        config.write_text(json.dumps(self._config()))
        argv = ["docker-registry", "serve", str(config)]
        if self.netns is not None:
            argv = ["nsenter", f"--net={self.netns}", "--", *argv]
        log = self._own / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_SECONDS
        while not (found := _LISTENING.search(log.read_text(errors="replace"))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"docker-registry did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        self.port = int(found[1])
        return self

    def stop(self) -> None:
        """Stop; the content stays for the next `start`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """From now on it takes connections and answers nobody, until `resume` or `stop`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._own, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Where it is

    @property
    def address(self) -> str:
        """127.0.0.1:PORT"""
        return f"127.0.0.1:{self.port}"

    @property
    def certificates(self) -> Path:
        """A directory for --cert-dir, with the registry's own certificate as its authority (`tls` only)."""
        return self._own / "certs"

    def reference(self, name: str, tag_or_digest: str = "latest") -> str:
        return f"{self.address}/{name}{'@' if ':' in tag_or_digest else ':'}{tag_or_digest}"

    # What it holds

    def push(self, name: str, image: Image | Index, tag: str = "") -> str:
        """Push an image, or an index with all its images; returns its digest. Blobs that are there are not sent."""
        connection = self._connection()
        try:
            members = image.images if isinstance(image, Index) else (image,)
            for member in members:
                for digest, blob in member.blobs.items():
                    self._push_blob(connection, name, digest, blob)
                if isinstance(image, Index):
                    self._put_manifest(connection, name, member.digest, member.media_type, member.manifest)
            return self._put_manifest(connection, name, tag or image.digest, image.media_type, image.manifest)
        finally:
            connection.close()

    def put_manifest(self, name: str, tag_or_digest: str, media_type: str, raw: bytes) -> str:
        """Put any bytes the registry accepts as a manifest; returns their digest."""
        connection = self._connection()
        try:
            return self._put_manifest(connection, name, tag_or_digest, media_type, raw)
        finally:
            connection.close()

    def blob_path(self, digest: str) -> Path:
        """The file of a blob or manifest, to be damaged by a test."""
        algorithm, _, hexadecimal = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / hexadecimal[:2] / hexadecimal / "data"

    def _push_blob(self, connection: http.client.HTTPConnection, name: str, digest: str, blob: bytes) -> None:
        status, _, _ = self._call(connection, "HEAD", f"/v2/{name}/blobs/{digest}")
        if status == 200:
            return
        status, headers, body = self._call(connection, "POST", f"/v2/{name}/blobs/uploads/", b"")
        assert status == 202, (status, body)
        place = re.sub(r"^https?://[^/]+", "", headers["Location"])
        place += ("&" if "?" in place else "?") + f"digest={digest}"
        status, _, body = self._call(connection, "PUT", place, blob, {"Content-Type": "application/octet-stream"})
        assert status == 201, (status, body)

    def _put_manifest(
        self, connection: http.client.HTTPConnection, name: str, reference: str, media_type: str, raw: bytes
    ) -> str:
        place = f"/v2/{name}/manifests/{reference}"
        status, _, body = self._call(connection, "PUT", place, raw, {"Content-Type": media_type})
        assert status == 201, (status, body)
        return "sha256:" + hashlib.sha256(raw).hexdigest()

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=60, context=context
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        within(self.netns, connection.connect)
        # Else, in another namespace, a lost connection would be made again in this one.
        connection.auto_open = self.netns is None
        return connection

    def _call(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        sent = dict(headers or {})
        if self.users:
            user, password = next(iter(self.users.items()))
            sent["Authorization"] = "Basic " + basic(user, password)
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        return response.status, response.headers, response.read()  # type: ignore[return-value]

    def _config(self) -> dict[str, object]:
        http_section: dict[str, object] = {"addr": f"127.0.0.1:{self.port}", "secret": secrets.token_hex(16)}
        if self.tls:
            certificate, key = self._certificate()
            http_section["tls"] = {"certificate": str(certificate), "key": str(key)}
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http_section,
            # Foreign layers may point anywhere; nobody fetches them here.
            "validation": {"manifests": {"urls": {"allow": [".*"]}}},
        }
        if self.users:
            path = self._own / "htpasswd"
            path.write_text("".join(f"{user}:{_bcrypt(password)}\n" for user, password in self.users.items()))
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
        return config

    def _certificate(self) -> tuple[Path, Path]:
        self.certificates.mkdir(exist_ok=True)
        certificate, key = self.certificates / "ca.crt", self._own / "server.key"
        if not certificate.exists():
            argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            argv += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
            argv += ["-keyout", str(key), "-out", str(certificate)]
            subprocess.run(argv, check=True, capture_output=True)
        return certificate, key


def basic(user: str, password: str) -> str:
    """User and password as HTTP and auth files carry them."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def auth_file(entries: Mapping[str, tuple[str, str]]) -> str:
    """The text of an auth.json: {registry or registry/repository: (user, password)}."""
    return json.dumps({"auths": {key: {"auth": basic(*pair)} for key, pair in entries.items()}})


def _bcrypt(password: str) -> str:
    # The registry takes nothing but bcrypt, which the C library's crypt(3) knows; Python 3.13 has no `crypt` any more.
    library = ctypes.CDLL(ctypes.util.find_library("crypt"))
    library.crypt.restype = ctypes.c_char_p
    hashed: bytes | None = library.crypt(password.encode(), b"$2b$04$" + secrets.token_hex(11).encode())
    if not hashed or not hashed.startswith(b"$2b$"):
        raise RuntimeError("this machine's crypt(3) has no bcrypt")
    return hashed.decode()
