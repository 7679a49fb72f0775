# SPDX-License-Identifier: Apache-2.0
"""The failure table, line by line: messages as the tools print them, the name and the verdict that must come of each.

The lines of skopeo 1.9 were taken from the tool itself; those marked 1.18 are of newer versions of the same libraries.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.things.failures import TABLE, explain, last_line
from lashd.words.errors import ErrorName

AUTH = (ErrorName.AUTHENTICATION_FAILED, False)
NOT_FOUND = (ErrorName.NOT_FOUND, False)
AGAIN = (ErrorName.PULL_FAILED, True)
USELESS = (ErrorName.PULL_FAILED, False)
NETWORK = (ErrorName.NETWORK_UNAVAILABLE, True)
TLS = (ErrorName.NETWORK_UNAVAILABLE, False)
DIGEST = (ErrorName.DIGEST_MISMATCH, True)
SIGNATURE = (ErrorName.SIGNATURE_REJECTED, False)
SPACE = (ErrorName.NO_SPACE, False)
LOCKED = (ErrorName.SYSROOT_LOCKED, True)
HOST = (ErrorName.HOST_COMMAND_FAILED, False)

REF = "registry.example:5000/edge/agent"
BLOB = "sha256:6ff8dd9f4ecf6ba23bd391f0e246af35469705877325737dedbb2a70b4499c39"
OPEN = f"initializing source docker://{REF}:1: "
PING = f"{OPEN}pinging container registry registry.example:5000: "
READ = f"{OPEN}reading manifest 1 in {REF}: "
PARSE = f'Error parsing image name "docker://{REF}:1": '

SKOPEO = [
    # 1.9: the registry answers
    (f"{PARSE}reading manifest 1 in {REF}: manifest unknown: manifest unknown", NOT_FOUND),
    (f"{READ}StatusCode: 404, ", NOT_FOUND),
    (f"{PING}invalid status code from registry 404 (Not Found)", NOT_FOUND),
    (f"reading blob {BLOB}: Error fetching blob: invalid status code from registry 404 (Not Found)", NOT_FOUND),
    (f"{READ}unauthorized: authentication required", AUTH),
    (f"{READ}unauthorized", AUTH),
    (f"{READ}denied", AUTH),
    (f"{READ}StatusCode: 403, ", AUTH),
    (f"{PING}invalid status code from registry 403 (Forbidden)", AUTH),
    (f"reading blob {BLOB}: unable to retrieve auth token: invalid username/password: unauthorized", AUTH),
    (
        f'{PARSE}getting username and password: 1 error occurred:\n\t* reading JSON file "/run/a.json": unmarshaling '
        'JSON at "/run/a.json": unexpected end of JSON input\n\n',
        AUTH,
    ),
    (f"{PING}too many requests to registry", AGAIN),
    (
        f"{READ}toomanyrequests: You have reached your pull rate limit. https://www.docker.com/increase-rate-limit",
        AGAIN,
    ),
    (f"{PING}invalid status code from registry 503 (Service Unavailable)", AGAIN),
    (f"{READ}received unexpected HTTP status: 502 Bad Gateway", AGAIN),
    (f"reading blob {BLOB}: Error fetching blob: invalid status code from registry 500 (Internal Server Error)", AGAIN),
    # 1.9: the way there
    (f'{PING}Get "http://registry.example:5000/v2/": dial tcp 127.0.0.1:1: connect: connection refused', NETWORK),
    (f'{PING}Get "https://r.example/v2/": dial tcp: lookup r.example on 10.0.0.1:53: no such host', NETWORK),
    (
        f'{PING}Get "https://r.example/v2/": read tcp 10.0.0.1:50276->10.0.0.2:443: read: connection reset by peer',
        AGAIN,
    ),
    (f'{PING}Get "https://r.example/v2/": http: server gave HTTP response to HTTPS client', TLS),
    (f'{PING}Get "https://r.example/v2/": x509: certificate signed by unknown authority', TLS),
    (f"{OPEN}unexpected EOF", AGAIN),
    ('writing blob: storing blob to file "/var/tmp/storage3558575344/1": happened during read: unexpected EOF', AGAIN),
    # 1.9: content, policy, this host
    (f"Download config.json digest {BLOB} does not match expected {BLOB}", DIGEST),
    ("sh: 1: exec: skopeo: not found", HOST),
    (f"writing blob: happened during read: Digest did not match, expected {BLOB}, got {BLOB}", DIGEST),
    (
        f"determining manifest MIME type for docker://{REF}@{BLOB}: Manifest does not match provided manifest digest "
        f"{BLOB}",
        DIGEST,
    ),
    (
        f'writing blob: adding layer with blob "{BLOB}": processing tar file(archive/tar: invalid tar header): exit '
        "status 1",
        USELESS,
    ),
    (
        f"choosing an image from manifest list docker://{REF}:1: no image found in image index for architecture amd64, "
        'variant "", OS linux',
        NOT_FOUND,
    ),
    (f"Source image rejected: Running image docker://{REF}:1 is rejected by policy.", SIGNATURE),
    ("Source image rejected: A signature was required, but no signature exists", SIGNATURE),
    ("Error loading trust policy: open /etc/containers/policy.json: no such file or directory", SIGNATURE),
    (f"{PARSE}registry registry.example:5000 is blocked in /etc/containers/registries.conf or /etc/x.d", SIGNATURE),
    (f'{PARSE}loading registries configuration: loading registries configuration "/etc/r.conf": toml: line 2', HOST),
    ("writing blob: write /sysroot/ostree/bootc/storage/dir-put-blob39078129: no space left on device", SPACE),
    (
        f'writing blob: adding layer with blob "{BLOB}": processing tar file(write /opt/data: no space left on device)'
        ": exit status 1",
        SPACE,
    ),
    ("Invalid destination name containers-storage:[overlay@/s+/r]x/y:1: mkdir /s: read-only file system", HOST),
    (
        "Invalid source name docker://127.0.0.1:1/A/b: invalid reference format: repository name must be lowercase",
        (ErrorName.BOUND_IMAGE_INVALID, False),
    ),
    # 1.18
    (f"{READ}denied: requested access to the resource is denied", AUTH),
    (f"{PING}Requesting bearer token: invalid status code from registry 403 (Forbidden)", AUTH),
    (f"{PING}Requesting bearer token: received unexpected HTTP status: 503 Service Unavailable", AGAIN),
    (f"reading blob {BLOB}: fetching blob: received unexpected HTTP status: 504 Gateway Timeout", AGAIN),
    (f"{READ}name unknown: repository name not known to registry", NOT_FOUND),
    (
        'choosing image instance: no image found in image index for architecture "arm64", variant "v8", OS "linux"',
        NOT_FOUND,
    ),
    (f'{PING}Get "https://r.example/v2/": tls: failed to verify certificate: x509: certificate has expired', TLS),
    (f'{PING}Get "https://r.example/v2/": net/http: TLS handshake timeout', NETWORK),
    (f'{PING}Get "https://r.example/v2/": dial tcp 10.0.0.2:443: i/o timeout', NETWORK),
    (f'{PING}Get "https://r.example/v2/": dial tcp 10.0.0.2:443: connect: no route to host', NETWORK),
    (f'{PING}Get "https://r.example/v2/": dial tcp 10.0.0.2:443: connect: network is unreachable', NETWORK),
    (f'{PING}Get "https://r.example/v2/": dial tcp: lookup r.example on [::1]:53: server misbehaving', NETWORK),
    (f'{PING}Get "https://r.example/v2/": context deadline exceeded', NETWORK),
    ("reading blob: stream error: stream ID 3; INTERNAL_ERROR; received from peer", AGAIN),
    ("Source image rejected: None of the signatures were accepted, reasons: Signature by key X; and Y", SIGNATURE),
    ("Source image rejected: cryptographic signature verification failed: invalid signature", SIGNATURE),
    ("unsupported legacy manifest MIME type: application/vnd.docker.distribution.manifest.v1+json", USELESS),
    (f'{PING}StatusCode: 403, ""', AUTH),
    (f"{READ}authentication required", AUTH),
    (f'{READ}StatusCode: 404, ""', NOT_FOUND),
    (f"{PING}received unexpected HTTP status: 500 Internal Server Error", AGAIN),
    (f"reading blob {BLOB}: fetching blob: toomanyrequests: too many requests to registry", AGAIN),
    ("writing blob: happened during read: unexpected EOF (after reconnecting, fetching blob: unexpected EOF)", AGAIN),
    (
        f'writing blob: adding layer with blob "{BLOB}"/""/"{BLOB}": unpacking failed (error: exit status 1; output: '
        "write /opt/data: no space left on device)",
        SPACE,
    ),
    (
        f'writing blob: layer 0 (blob "{BLOB}"/""/"{BLOB}") does not match config\'s DiffID "{BLOB}"',
        (ErrorName.DIGEST_MISMATCH, False),
    ),
    # The image proxy's own
    (f"corrupted blob, expecting {BLOB}", DIGEST),
    ("expected 300000 bytes in blob, got 1000", AGAIN),
]

OTHERS = [
    (
        "podman",
        "Error: short-name resolution enforced but cannot prompt without a TTY",
        (ErrorName.BOUND_IMAGE_INVALID, False),
    ),
    ("podman", "Error: layer not known", (ErrorName.STORE_DAMAGED, False)),
    ("ostree", "error: Locking repo exclusive failed: Resource temporarily unavailable", LOCKED),
    ("ostree", "error: min-free-space-size 500MB would be exceeded, at least 11 kB requested", SPACE),
    ("ostree", "error: Refspec 'os/v9' not found", NOT_FOUND),
    ("ostree", "error: While fetching http://h/repo/config: [7] Could not connect to server", NETWORK),
    ("ostree", "error: While fetching http://h/repo/config: [6] Could not resolve hostname", NETWORK),
    ("ostree", "error: While fetching http://h/repo/config: Server returned HTTP 404", NOT_FOUND),
    ("ostree", "error: While fetching http://h/repo/config: Server returned HTTP 503", AGAIN),
    ("ostree", "error: Commit 1a2b: GPG signatures found, but none are in trusted keyring", SIGNATURE),
    ("ostree", "error: Corrupted file object; checksum expected='12' actual='34'", DIGEST),
    ("ostree", "error: opendir(ostree/repo): No such file or directory", (ErrorName.HOST_COMMAND_FAILED, True)),
    ("skopeo", "setpriv: failed to execute skopeo: No such file or directory", HOST),
    ("skopeo", "fork/exec /usr/bin/skopeo: cannot allocate memory", (ErrorName.HOST_COMMAND_FAILED, True)),
    ("skopeo", "", AGAIN),
]


def logrus(message: str) -> str:
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'time="2026-01-01T00:00:00Z" level=fatal msg="{quoted}"\n'


@pytest.mark.parametrize(("message", "expected"), SKOPEO)
def test_skopeo(message: str, expected: tuple[ErrorName, bool]) -> None:
    failure = explain("skopeo", 1, logrus(message), "edge/agent:1")
    assert (failure.name, failure.retryable) == expected
    # The proxy hands out the bare text, without skopeo's log format around it.
    assert explain("skopeo", 1, " ".join(message.split()), "edge/agent:1").name is failure.name


@pytest.mark.parametrize(("program", "message", "expected"), OTHERS)
def test_other_tools(program: str, message: str, expected: tuple[ErrorName, bool]) -> None:
    failure = explain(f"/usr/bin/{program}", 1, message, "os/v2")
    assert (failure.name, failure.retryable) == expected


def test_every_row_is_reached() -> None:
    """A row that no line of this file needs is a row that nobody has tried."""
    texts = [text for text, _ in SKOPEO] + [text for _, text, _ in OTHERS]
    needed = {explain("skopeo", 1, text, "X").message.partition(" (skopeo")[0] for text in texts}
    unreached = [row.meaning for row in TABLE if f"X could not be fetched: {row.meaning}" not in needed]
    assert not unreached


def test_the_message_stands_alone() -> None:
    failure = explain("skopeo", 1, logrus(f"{PARSE}reading manifest 1 in {REF}: manifest unknown"), f"{REF}:1")
    assert failure.message == (
        f"{REF}:1 could not be fetched: the registry does not have it; check its name, tag and digest "
        f"(skopeo: reading manifest 1 in {REF}: manifest unknown)."
    )


def test_ended_by_a_signal() -> None:
    failure = explain("skopeo", -9, "", "edge/agent:1")
    assert failure.message == "edge/agent:1 could not be fetched: skopeo was ended by signal 9."
    assert (failure.name, failure.retryable) == AGAIN


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("toomanyrequests: retry-after: 714.5µs, allowed: 44000/minute", 714.5e-6),
        ("toomanyrequests: Retry after 30s", 30.0),
        ("too many requests, try again in 2 minutes", 120.0),
        ("too many requests: retry after 90 seconds", 90.0),
        ("too many requests: retry-after: 5", 5.0),
        ("too many requests", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert explain("skopeo", 1, text, "X").retry_after == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "text",
    [
        'Get "https://edge:hunter2@registry.example/v2/": EOF',
        'Get "https://cdn.example/blob?X-Amz-Signature=hunter2&x=1": EOF',
        "server said: Authorization: Basic aHVudGVyMjpodW50ZXIy: EOF".replace("aHVudGVyMjpodW50ZXIy", "hunter2hunter2"),
        "Bearer hunter2.hunter2.hunter2 refused",
    ],
)
def test_no_credentials(text: str) -> None:
    for stderr in (text, logrus(text)):
        assert "hunter2" not in explain("skopeo", 1, stderr, "X").message


def test_the_last_meaningful_line() -> None:
    text = "Trying to pull…\n" + logrus('a "quoted"\n\tfailure.') + "\n"
    assert last_line(text) == 'a "quoted" failure'
    assert last_line("note\nerror: this one\nmore about it\n") == "error: this one"
    assert last_line("\n\n") == ""
    failure = explain("skopeo", 1, f"no space left on device: {'x' * 5000}", "X")
    assert failure.name is ErrorName.NO_SPACE
    assert len(failure.message) < 500


TRIGGERS = ["denied", "unauthorized", "x509", "eof", "forbidden", "429", "http-503", "manifest-unknown", "certificate"]


@given(
    st.lists(st.sampled_from([*TRIGGERS, "edge", "a"]), min_size=1, max_size=3),
    st.sampled_from(["1", "denied", "503", "eof"]),
    st.sampled_from([case for case in SKOPEO if REF in case[0]]),
)
def test_a_name_decides_nothing(path: list[str], tag: str, case: tuple[str, tuple[ErrorName, bool]]) -> None:
    message, expected = case
    named = re.sub(
        re.escape(REF) + "(:1)?", lambda found: f"r.example/{'/'.join(path)}" + (f":{tag}" if found[1] else ""), message
    )
    failure = explain("skopeo", 1, logrus(named), "X")
    assert (failure.name, failure.retryable) == expected, named
