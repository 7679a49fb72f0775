# SPDX-License-Identifier: Apache-2.0
"""The one place where a tool's failure becomes one of our errors.

A row is a pattern in the tool's own words, the name from the closed list, whether it is worth trying again, and what it
means and asks for. The first row that fits decides, so what is more exact stands further up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from lashd.words.errors import ErrorName, LashdError

_QUOTE_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of failure, of any tool. `meaning` completes «X could not be fetched: …», or «X failed: …».

    `pattern` is looked for anywhere in the tool's last line; `retryable` None leaves it to the name.
    """

    pattern: re.Pattern[str]
    name: ErrorName
    meaning: str
    retryable: bool | None = None


def row(pattern: str, name: ErrorName, meaning: str, retryable: bool | None = None) -> Row:
    """A row of a table; letter case is ignored. Raises re.error for a `pattern` that is none."""
    return Row(re.compile(pattern, re.IGNORECASE), name, meaning, retryable)


TABLE: tuple[Row, ...] = (
    # This host
    row(
        r"setpriv: failed to execute|executable file not found|\b\d+: exec: \S+: not found",
        ErrorName.HOST_COMMAND_FAILED,
        "a program that is needed is not installed; install it",
        False,
    ),
    row(
        r"no space left on device|disk quota exceeded|min-free-space",
        ErrorName.NO_SPACE,
        "there is not enough free space; free some and try again",
    ),
    row(
        r"read-only file system",
        ErrorName.HOST_COMMAND_FAILED,
        "the place it goes to is read-only; check that the disk is healthy and mounted as it should be",
        False,
    ),
    row(
        r"cannot allocate memory|too many open files",
        ErrorName.HOST_COMMAND_FAILED,
        "the host ran out of memory or of open files",
        True,
    ),
    row(
        r"sysroot lock|locking (repo|sysroot)|unable to acquire lock|\bflock\b.*temporarily unavailable",
        ErrorName.SYSROOT_LOCKED,
        "another program is changing the system; try again when it has ended",
    ),
    # Signatures and policy, before anything that a policy's text could be taken for
    row(
        r"loading trust policy|invalid policy in",
        ErrorName.SIGNATURE_REJECTED,
        "the signature policy of this host cannot be read; mend /etc/containers/policy.json",
    ),
    row(
        r"source image rejected|rejected by policy|signature (was required|for identity .* is not accepted)"
        r"|none of the signatures were accepted|signature verification failed|no gpg or sign-api signatures"
        r"|gpg signatures? found, but none|can't check signature|bad gpg signature|invalid gpg signature",
        ErrorName.SIGNATURE_REJECTED,
        "the signature policy of this host rejects it; sign the image, or change the policy",
    ),
    row(
        r"\bis blocked\b|blocked by configuration",
        ErrorName.SIGNATURE_REJECTED,
        "registries.conf of this host blocks the registry; unblock it, or use another",
    ),
    # Content
    row(
        r"digest did not match|download config\.json digest \S+ does not match"
        r"|does not match provided manifest digest|corrupted blob|corrupted .* object; checksum"
        r"|unexpected digest|digest mismatch|checksum mismatch",
        # A proxy's damaged cache entry is often replaced at the next request, and the caller counts the attempts.
        ErrorName.DIGEST_MISMATCH,
        "what arrived is not what was asked for and was not used; the registry or a proxy in front of it is damaged",
        True,
    ),
    row(
        r"does not match config's diffid",
        ErrorName.DIGEST_MISMATCH,
        "its configuration names other layers than its manifest; push the image again",
        False,
    ),
    row(
        r"invalid tar header|invalid (gzip )?header\b|error creating (gzip|zstd) reader|magic number mismatch",
        ErrorName.PULL_FAILED,
        "one of its layers is not a tar archive; push the image again",
        False,
    ),
    row(
        r"unsupported (legacy )?manifest (mime|media)? ?type|unsupported (image-specific operation|schema version)"
        r"|schema ?1\b",
        ErrorName.PULL_FAILED,
        "the image is in a format that is no longer supported; push it again with a current tool",
        False,
    ),
    row(
        r"no image found in (manifest list|image index)",
        ErrorName.NOT_FOUND,
        "it has no image for this machine's architecture; push one, or set Arch= in the unit file",
    ),
    # The registry's answers, by number and by word
    row(
        r"toomanyrequests|too many requests|rate limit|\b429\b",
        ErrorName.PULL_FAILED,
        "the registry asks for fewer requests; try again later",
        True,
    ),
    row(
        r"(status(code)?:?|status code from registry|server returned (http )?(status )?|http) ?5\d\d\b"
        r"|internal server error|bad gateway|service unavailable|gateway time-?out",
        ErrorName.PULL_FAILED,
        "the registry has a fault of its own; try again later",
        True,
    ),
    row(
        r"getting username and password|unmarshaling json at"
        r"|reading json file|looking up credentials|credential helper",
        ErrorName.AUTHENTICATION_FAILED,
        "the credentials of this host cannot be read; mend the auth file",
    ),
    row(
        r"unauthorized|authentication required|\bdenied\b|invalid username|forbidden|no basic auth credentials"
        r"|(status(code)?:?|status code from registry|server returned (http )?(status )?|http) ?40[13]\b",
        ErrorName.AUTHENTICATION_FAILED,
        "the registry refused the credentials, or has none of this name to show; check the name and the auth file",
    ),
    row(
        r"(manifest|name|blob) unknown|repository .*not (found|known)|manifest .*not found|no such (branch|metadata)"
        r"|refspec .* not found|(status(code)?:?|status code from registry|server returned (http )?(status )?|http)"
        r" ?404\b",
        ErrorName.NOT_FOUND,
        "the registry does not have it; check its name, tag and digest",
    ),
    # The way there
    row(
        r"server gave http response to https client",
        ErrorName.NETWORK_UNAVAILABLE,
        "the registry speaks plain HTTP; set TLSVerify=false in the unit, or insecure in registries.conf",
        False,
    ),
    row(
        r"x509:|certificate|tls: (?!.*timeout)|first record does not look like a tls handshake",
        ErrorName.NETWORK_UNAVAILABLE,
        "the registry's certificate is not accepted; install its authority, and check this host's clock",
        False,
    ),
    row(
        r"no such host|(?<!short-)name resolution|server misbehaving|could not resolve|no servers could be reached",
        ErrorName.NETWORK_UNAVAILABLE,
        "the registry's name cannot be resolved; check its spelling and the DNS of this host",
    ),
    row(
        r"connection refused|no route to host|(network|host) is (unreachable|down)|could ?n.t connect"
        r"|could not connect|handshake timeout|dial tcp.*timeout|connect: connection timed out",
        ErrorName.NETWORK_UNAVAILABLE,
        "the registry cannot be reached; check the network",
    ),
    row(
        r"i/o timeout|deadline exceeded|connection timed out|client\.timeout|timed? ?out",
        ErrorName.NETWORK_UNAVAILABLE,
        "the registry did not answer in time; check the network",
    ),
    row(
        r"\beof\b|connection reset|broken pipe|connection closed|stream error|goaway|use of closed network"
        r"|expected \d+ bytes in blob",
        ErrorName.PULL_FAILED,
        "the connection to the registry broke off; try again",
        True,
    ),
    # What was asked for
    row(
        r"invalid reference format|invalid (source|destination) name|did not resolve|short-name",
        ErrorName.BOUND_IMAGE_INVALID,
        "its name is not one that container tools accept; mend its unit file",
    ),
    row(
        r"loading registries configuration",
        ErrorName.HOST_COMMAND_FAILED,
        "registries.conf of this host cannot be read; mend it",
        False,
    ),
    row(
        r"layer not known|image not known|(images|layers)\.json|identifier is not a(n image|layer)",
        ErrorName.STORE_DAMAGED,
        "the bound image store is damaged",
    ),
)

_FETCHERS = frozenset({"skopeo", "podman"})
# A duration in the registry's own words, as in «toomanyrequests: retry-after: 714.5µs, allowed: 44000/minute».
_RETRY_AFTER = re.compile(
    r"(?:retry|try again)[ -](?:after|in):? *(\d+(?:\.\d+)?) *(ns|[uµ]s|ms|s|m|h)?\w*", re.IGNORECASE
)
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
# What a name could contain must decide nothing: an image may well be called «denied».
_NAMES = re.compile(
    r"[a-z][a-z0-9+-]*://[^\s\"\\]+|(?:\bmanifest|\bin|\bregistry|\bblob|\brepository) [^\s:]+[:/][^\s\"]+"
    r"|\[[^]\s]*\][^\s:]*(?::[^\s:]+)?|(?<!\S)\"?/[^\s:\"]+"
)
# What repeats only which image it is about.
_PREFACE = re.compile(r"^(?:Error parsing image name \"[^\"]*\"|initializing source \S+): ")
_LOGRUS = re.compile(r"level=(?:fatal|error) msg=\"((?:[^\"\\]|\\.)*)\"")


def explain(program: str, status: int, stderr: str, subject: str) -> LashdError:
    """The error for `program` having ended with `status` (negative: a signal) and written `stderr`.

    The message says what happened to `subject` (an image, a deployment), what it means and what to do, and quotes the
    tool's last meaningful line without credentials. A failure that fits no row is PullFailed for tools that fetch and
    HostCommandFailed for others, worth another attempt.
    """
    program = PurePath(program).name
    whole = last_line(stderr)
    line = whole if len(whole) <= _QUOTE_LIMIT else "…" + whole[-_QUOTE_LIMIT:]
    words = _NAMES.sub(" ", whole)
    found = next((one for one in TABLE if one.pattern.search(words)), None)
    if found is not None:
        name, meaning, retryable = found.name, found.meaning, found.retryable
    elif status < 0:
        name, meaning, retryable = _unknown(program), f"{program} was ended by signal {-status}", True
    else:
        name, meaning, retryable = _unknown(program), f"{program} ended with status {status}", None
    quoted = f" ({program}: {line})" if line else ""
    happened = "could not be fetched" if program in _FETCHERS else "failed"
    message = f"{subject} {happened}: {meaning}{quoted}."
    return LashdError(name, message, retryable=retryable, retry_after=_retry_after(whole))


def last_line(stderr: str) -> str:
    """The tool's last meaningful line as plain text without credentials."""
    fatal = _LOGRUS.findall(stderr)
    if fatal:
        text = re.sub(r"\\(.)", lambda found: {"n": " ", "t": " "}.get(found[1], found[1]), fatal[-1])
    else:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(error|fatal)\b", line, re.IGNORECASE)]
        text = (errors or lines or [""])[-1]
    text = _PREFACE.sub("", " ".join(text.split())).rstrip(".")
    text = re.sub(r"(://)[^/\s@\"]*@", r"\1", text)
    # Signed addresses carry their secret in the query.
    text = re.sub(r"(://[^\s?\"]+)\?[^\s\"]+", r"\1?…", text)
    return re.sub(r"(?i)\b(bearer|basic) [a-z0-9._~+/=-]{8,}", r"\1 …", text)


def _unknown(program: str) -> ErrorName:
    return ErrorName.PULL_FAILED if program in _FETCHERS else ErrorName.HOST_COMMAND_FAILED


def _retry_after(line: str) -> float | None:
    found = _RETRY_AFTER.search(line)
    if found is None:
        return None
    return float(found[1]) * _UNITS[(found[2] or "").lower()]
