# SPDX-License-Identifier: Apache-2.0
"""The test registry and its faults are what they say: seen through plain HTTP and through skopeo."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
from pathlib import Path

import pytest

from tests.support.faulty import Cut, Delay, Faulty, Garble, Length, Reset, Stall, Status
from tests.support.images import build, build_index, digest_of, files, random_bytes
from tests.support.registry import Registry

IMAGE = build([files({"usr/bin/agent": "x"}), random_bytes(300_000, seed=1), files({"z": "z"}, compression="zstd")])
BLOB = IMAGE.layers[1]


def get(address: str, path: str, timeout: float = 5) -> tuple[int, dict[str, str], bytes]:
    host, _, port = address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def copy(source: str, destination: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["skopeo", "copy", "--quiet", *options, f"docker://{source}", f"dir:{destination}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_what_is_pushed_comes_back(registry: Registry, faulty: Faulty, tmp_path: Path) -> None:
    index = build_index([IMAGE, build([b"other"], arch="s390x")])
    assert registry.push("edge/agent", IMAGE, "1") == IMAGE.digest
    assert registry.push("edge/agent", index, "all") == index.digest
    for reference in ("1", IMAGE.digest, "all"):
        source = faulty.reference("edge/agent", reference)
        done = copy(source, tmp_path / "copy", "--src-tls-verify=false")
        assert done.returncode == 0, done.stderr
        assert digest_of((tmp_path / "copy/manifest.json").read_bytes()) == IMAGE.digest
    assert registry.blob_path(BLOB.digest).read_bytes() == BLOB.blob


def test_images_are_the_same_each_time() -> None:
    assert (
        build([{"a": "1"}, random_bytes(1000, seed=3)]).digest == build([{"a": "1"}, random_bytes(1000, seed=3)]).digest
    )
    assert random_bytes(1000, seed=3).digest != random_bytes(1000, seed=4).digest


@pytest.mark.parametrize("tls", [False, True])
def test_users_and_tls(tls: bool, tmp_path: Path) -> None:
    with Registry(users={"edge": "secret"}, tls=tls) as registry:
        registry.push("a/b", IMAGE, "1")
        options = [f"--src-cert-dir={registry.certificates}"] if tls else ["--src-tls-verify=false"]
        source = registry.reference("a/b", "1")
        assert copy(source, tmp_path / "1", *options, "--src-creds=edge:secret").returncode == 0
        assert "authentication required" in copy(source, tmp_path / "2", *options, "--src-creds=edge:wrong").stderr


def test_stopped_and_started_again(registry: Registry) -> None:
    registry.push("a/b", IMAGE, "1")
    registry.stop()
    with pytest.raises(ConnectionRefusedError):
        get(registry.address, "/v2/")
    registry.start()
    assert get(registry.address, f"/v2/a/b/blobs/{BLOB.digest}")[2] == BLOB.blob


def test_each_fault(registry: Registry, faulty: Faulty) -> None:
    registry.push("a/b", IMAGE, "1")
    path = f"/v2/a/b/blobs/{BLOB.digest}"
    size = len(BLOB.blob)
    assert get(faulty.address, path)[2] == BLOB.blob
    assert (faulty.requests("/blobs/"), faulty.bytes_sent("/blobs/")) == (1, size)

    faulty.on("/blobs/", Status(429, retry_after=7), times=1)
    status, headers, _ = get(faulty.address, path)
    assert (status, headers["Retry-After"]) == (429, "7")

    faulty.on("/blobs/", Reset(), times=1)
    with pytest.raises(ConnectionResetError):
        get(faulty.address, path)

    faulty.on("/blobs/", Cut(after=1000), times=1)
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(faulty.address, path)
    assert len(cut.value.partial) == 1000

    faulty.on("/blobs/", Stall(after=1000), times=1)
    with pytest.raises(TimeoutError):
        get(faulty.address, path, timeout=0.2)
    assert faulty.matching("/blobs/")[-1].sent == 1000

    faulty.on("/blobs/", Length(by=5), times=1)
    with contextlib.suppress(http.client.IncompleteRead):
        assert get(faulty.address, path)[1]["Content-Length"] == str(size + 5)

    faulty.on("/blobs/", Garble(), times=1)
    wrong = get(faulty.address, path)[2]
    assert len(wrong) == size
    assert wrong != BLOB.blob

    faulty.on("/blobs/", Delay(0.05))
    assert get(faulty.address, path)[2] == BLOB.blob  # all used up but the delay
    faulty.heal()
    faulty.forget()
    assert get(faulty.address, path)[2] == BLOB.blob
    assert faulty.requests("/blobs/") == 1
    assert faulty.bytes_per_path() == {path: size}


def test_in_another_network_namespace() -> None:
    script = "ip link set lo up; echo up; exec cat"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=-1, stdout=-1) as it:
        assert it.stdout is not None
        try:
            assert it.stdout.readline() == b"up\n"
            namespace = Path(f"/proc/{it.pid}/ns/net")
            with Registry(netns=namespace) as registry, Faulty(registry.address, netns=namespace) as faulty:
                registry.push("a/b", IMAGE, "1")
                argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{faulty.reference('a/b', '1')}"]
                done = subprocess.run(["nsenter", f"--net={namespace}", *argv], capture_output=True, check=False)
                assert done.stdout == IMAGE.manifest
                with pytest.raises(ConnectionRefusedError):
                    get(registry.address, "/v2/")
        finally:
            it.kill()
