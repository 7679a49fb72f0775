# SPDX-License-Identifier: Apache-2.0
"""Which credentials file a pull uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lashd.things.auth import HOST_FILES, auth_file, host_file, missing_auth_file
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import PullOptions
from lashd.words.reference import parse_reference
from tests.support.registry import auth_file as entries

AGENT = parse_reference("registry.example:5000/edge/agent:1")


def write(root: Path, name: str, content: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_first_that_exists(settings: Settings) -> None:
    root = settings.paths.root
    for name in reversed(HOST_FILES):
        path = write(root, name, entries({"registry.example:5000": ("u", "p")}))
        assert auth_file(AGENT, PullOptions(), settings) == path
        assert host_file(settings) == path


def test_no_file_at_all(settings: Settings) -> None:
    assert auth_file(AGENT, PullOptions(), settings) is None
    assert host_file(settings) is None


@pytest.mark.parametrize(
    ("key", "reference", "host_decides"),
    [
        ("registry.example:5000", "registry.example:5000/edge/agent", True),
        ("registry.example:5000/edge", "registry.example:5000/edge/agent", True),
        ("registry.example:5000/edge/agent", "registry.example:5000/edge/agent:1", True),
        ("registry.example:5000/edge/agent", "registry.example:5000/edge/other", False),
        ("registry.example:5000/edg", "registry.example:5000/edge/agent", False),
        ("registry.example", "registry.example:5000/edge/agent", False),
        ("other.example", "registry.example:5000/edge/agent", False),
        ("https://index.docker.io/v1/", "docker.io/library/alpine", True),
        ("docker.io", "docker.io/library/alpine", True),
        ("https://registry.example:5000/v2/", "registry.example:5000/edge/agent", True),
    ],
)
def test_the_units_file_where_the_hosts_says_nothing(
    settings: Settings, key: str, reference: str, host_decides: bool
) -> None:
    host = write(settings.paths.root, HOST_FILES[1], entries({key: ("u", "p")}))
    own = write(settings.paths.root, "etc/agent/auth.json", "{}")
    options = PullOptions(auth_file="/etc/agent/auth.json")
    assert auth_file(parse_reference(reference), options, settings) == (host if host_decides else own)


def test_a_credential_helper_counts(settings: Settings) -> None:
    host = write(settings.paths.root, HOST_FILES[0], '{"credHelpers": {"registry.example:5000": "secretservice"}}')
    write(settings.paths.root, "own.json", "{}")
    assert auth_file(AGENT, PullOptions(auth_file="/own.json"), settings) == host


def test_a_missing_file_of_the_unit(settings: Settings) -> None:
    options = PullOptions(auth_file="/etc/agent/none.json")
    assert auth_file(AGENT, options, settings) is None
    assert missing_auth_file(options, settings) == settings.paths.root / "etc/agent/none.json"
    assert missing_auth_file(PullOptions(), settings) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": 3}'])
def test_a_file_that_cannot_be_read(settings: Settings, content: str) -> None:
    path = write(settings.paths.root, HOST_FILES[0], content)
    with pytest.raises(LashdError) as failure:
        auth_file(AGENT, PullOptions(), settings)
    assert failure.value.name is ErrorName.AUTHENTICATION_FAILED
    assert str(path) in failure.value.message
    assert not failure.value.retryable
