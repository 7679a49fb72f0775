# SPDX-License-Identifier: Apache-2.0
"""The part of policy.json that we judge ourselves: nothing is asked for, or the image is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lashd.things.policy import require_no_signature
from lashd.words.errors import ErrorName, LashdError

ANY = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]
IMAGE = "docker://r.example:5000/edge/os:1"


def docker(**scopes: Any) -> dict[str, Any]:
    return {"default": ANY, "transports": {"docker": scopes}}


@pytest.mark.parametrize(
    ("policy", "image", "says"),
    [
        ({"default": ANY}, IMAGE, None),
        ({"default": REJECT}, IMAGE, "rejects"),
        ({"default": SIGNED}, IMAGE, "demands a signature"),
        ({"default": ANY + SIGNED}, IMAGE, "demands a signature"),
        ({"default": []}, IMAGE, "rejects"),
        ({"default": REJECT, "transports": {"docker": {"": ANY}}}, IMAGE, None),
        ({"default": REJECT, "transports": {"docker": {"r.example:5000/edge": ANY}}}, IMAGE, None),
        (docker(**{"r.example:5000/edge/os:1": REJECT}), IMAGE, "rejects"),
        (docker(**{"r.example:5000/edge/os": REJECT}), IMAGE, "rejects"),
        (docker(**{"r.example:5000/edge/os": REJECT}), "docker://r.example:5000/edge/os@sha256:" + "1" * 64, "rejects"),
        (docker(**{"r.example:5000": REJECT, "r.example:5000/edge": ANY}), IMAGE, None),
        (docker(**{"r.example:5000": REJECT}), IMAGE, "rejects"),
        (docker(**{"*.example": REJECT}), IMAGE, "rejects"),
        (docker(**{"r.example:5000/edg": REJECT, "example": REJECT}), IMAGE, None),
        (docker(**{"": REJECT}), IMAGE, "rejects"),
        ({"default": ANY, "transports": {"oci": {"/other": REJECT}}}, "oci:/images:1", "rejects"),
        ({"default": ANY, "transports": {"docker": {"": REJECT}}}, "oci:/images:1", None),
        ({}, IMAGE, "cannot be read"),
    ],
)
def test_what_is_demanded(policy: dict[str, Any], image: str, says: str | None, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    if says is None:
        require_no_signature(path, image)
    else:
        with pytest.raises(LashdError, match=says) as failure:
            require_no_signature(path, image)
        assert failure.value.name is ErrorName.SIGNATURE_REJECTED


def test_no_policy_is_no_permission(tmp_path: Path) -> None:
    with pytest.raises(LashdError, match="cannot be read"):
        require_no_signature(tmp_path / "none.json", IMAGE)


def test_a_policy_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.json")
    with pytest.raises(LashdError, match="cannot be read"):
        require_no_signature(tmp_path / "policy.json", IMAGE)
