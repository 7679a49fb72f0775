# SPDX-License-Identifier: Apache-2.0
"""The closed list: complete, whole sentences, one exit status each."""

from __future__ import annotations

from lashd.words.errors import ERRORS, EXIT_NOTHING_TO_DO, ErrorName, LashdError


def test_table_is_complete() -> None:
    assert set(ERRORS) == set(ErrorName)


def test_exit_statuses_differ_and_leave_room() -> None:
    statuses = [facts.exit_status for facts in ERRORS.values()]
    assert len(set(statuses)) == len(statuses)
    assert not {0, 1, EXIT_NOTHING_TO_DO} & set(statuses)
    assert all(status < 126 for status in statuses)


def test_sentences_stand_alone() -> None:
    for facts in ERRORS.values():
        assert facts.sentence[0].isupper() or facts.sentence.startswith("lashd")
        assert facts.sentence.endswith(".")


def test_error_takes_its_facts_from_the_table() -> None:
    error = LashdError(ErrorName.NO_SPACE)
    assert error.dbus_name == "io.github.lashd1.Error.NoSpace"
    assert (str(error), error.retryable, error.exit_status) == (ERRORS[ErrorName.NO_SPACE].sentence, False, 16)
    assert LashdError(ErrorName.NO_SPACE, "Full.", retryable=True).retryable
