# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lashd.bus.options import LONGEST, METHODS, decode, decode_image
from lashd.words.errors import ErrorName, LashdError


def v(signature: str, value: object) -> SimpleNamespace:
    return SimpleNamespace(signature=signature, value=value)


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "given", "wanted"),
    [
        ("Upgrade", {}, {}),
        ("Upgrade", {"expected-digest": v("s", DIGEST)}, {"expected-digest": DIGEST}),
        ("Rollback", {"drop-staged": v("b", True)}, {"drop-staged": True}),
        (
            "Bind",
            {"deployment": v("s", "booted"), "reason": v("s", "größer")},
            {"deployment": "booted", "reason": "größer"},
        ),
        (
            "Plan",
            {"kind": v("s", "upgrade"), "idempotency-key": v("s", "k")},
            {"kind": "upgrade", "idempotency-key": "k"},
        ),
        ("Wait", {"timeout-ms": v("u", 0)}, {"timeout-ms": 0}),
        ("Release", {"expected-digest": v("s", "a" * 64)}, {"expected-digest": "a" * 64}),
        ("Collect", {"dry-run": v("b", True)}, {"dry-run": True}),
        ("Upgrade", {"initiator": v("s", "x" * LONGEST)}, {"initiator": "x" * LONGEST}),
    ],
)
def test_good(method, given, wanted) -> None:
    assert decode(method, given) == wanted


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("Upgrade", {"expected-digests": v("s", DIGEST)}, "no option 'expected-digests'"),
        ("ListJobs", {"all": v("b", True)}, "no option 'all'; it knows none"),
        ("Upgrade", {"x" * 999: v("s", "")}, "x" * 64 + "…"),
        ("Upgrade", {"expected-digest": v("s", "latest")}, "'expected-digest' of Upgrade must be a digest"),
        ("Upgrade", {"expected-digest": v("b", True)}, "'expected-digest' of Upgrade must be of type 's', not 'b'"),
        ("Rollback", {"drop-staged": v("s", "yes")}, "must be of type 'b'"),
        ("Bind", {"deployment": v("s", "")}, "'deployment' of Bind must not be empty"),
        ("Plan", {"kind": v("s", "rollback")}, "must be one of bind, upgrade"),
        ("Wait", {"timeout-ms": v("i", -1)}, "must be of type 'u'"),
        ("Wait", {"timeout-ms": v("u", 2**32 - 1)}, "must not be more than"),
        ("Upgrade", {"reason": v("s", "x" * (LONGEST + 1))}, "has 513 characters"),
        ("Upgrade", {"initiator": v("s", "me\nFAKE=1")}, "control characters"),
        ("Upgrade", {"initiator": v("s", "\x1b[2J")}, "control characters"),
        ("Release", {"expected-digest": v("s", "a" * 63)}, "or a checksum"),
        ("Reboot", {"when": v("s", "later")}, "must be one of now, ready, window, never"),
        # What a method does not honour it does not take.
        ("Upgrade", {"dry-run": v("b", True)}, "no option 'dry-run'"),
        ("Bind", {"expected-digest": v("s", DIGEST)}, "no option 'expected-digest'"),
    ],
)
def test_bad(method, given, says) -> None:
    with pytest.raises(LashdError) as caught:
        decode(method, given)
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
    assert says in caught.value.message


@given(
    st.sampled_from(sorted(METHODS)),
    st.dictionaries(
        st.one_of(st.text(max_size=20), st.sampled_from(sorted({key for table in METHODS.values() for key in table}))),
        st.one_of(
            st.text().map(lambda text: v("s", text)),
            st.booleans().map(lambda value: v("b", value)),
            st.integers(0, 2**32 - 1).map(lambda value: v("u", value)),
            st.lists(st.text()).map(lambda value: v("as", value)),
        ),
        max_size=3,
    ),
)
def test_plain_values_or_invalid_argument(method, given) -> None:
    with contextlib.suppress(LashdError):
        assert decode(method, given) == {key: variant.value for key, variant in given.items()}


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("quay.io/edge/os:next", "quay.io/edge/os:next"),
        ("docker://quay.io/edge/os", "quay.io/edge/os:latest"),
        ("localhost:5000/os:1", "localhost:5000/os:1"),
        (f"quay.io/edge/os:next@sha256:{'1' * 64}", f"quay.io/edge/os@sha256:{'1' * 64}"),
    ],
)
def test_a_host_image(text: str, image: str) -> None:
    assert decode_image("Switch", text) == image


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("os:next", "write it with its registry"),
        ("edge/os:next", "write it with its registry"),
        ("quay.io/Edge/os", "quay.io/Edge/os"),
        ("oci:/srv/os", "does not name a registry"),
        ("quay.io/edge/os\n--apply", "control characters"),
        ("--apply", "--apply"),
        ("", "Nothing was changed"),
        ("quay.io/" + "o" * 600, "512 are allowed"),
    ],
)
def test_no_host_image(text: str, says: str) -> None:
    with pytest.raises(LashdError, match=re.escape(says)) as caught:
        decode_image("Switch", text)
    assert caught.value.name is ErrorName.INVALID_ARGUMENT
