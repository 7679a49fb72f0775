# SPDX-License-Identifier: Apache-2.0
"""What was said in the journal with an id of its own."""

from __future__ import annotations

import pytest

from lashd.words.events import MessageId


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The fields of each such entry, with `NAME`, what the id is called, in the place of the id."""
    entries = [{key: value for key, value in vars(record).items() if key.isupper()} for record in caplog.records]
    return [{"NAME": MessageId(entry.pop("MESSAGE_ID")).name, **entry} for entry in entries if "MESSAGE_ID" in entry]
