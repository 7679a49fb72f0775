# SPDX-License-Identifier: Apache-2.0
"""docs/bootc.md names tests: each is there, none of the booted host is forgotten. Run with -s it prints the table."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_table_of_faults_names_tests() -> None:
    document = (REPOSITORY / "docs/bootc.md").read_text(encoding="utf-8")
    tests = (REPOSITORY / "tests/host/test_bootc.py").read_text(encoding="utf-8")
    print("\n".join(line for line in document.splitlines() if line.startswith("|") and "test_" in line))
    there = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", document))
    # What is no fault of bootc's.
    others = {"test_an_upgrade_through_bootc_and_back", "test_bootc_goes_on_without_lashd"}
    assert named | others == there
    assert not named & others
