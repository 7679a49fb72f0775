# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from lashd.words.config import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs/settings.md").read_text(encoding="utf-8")


def rows() -> dict[str, dict[str, str]]:
    """Section → key → default, as the page has them."""
    found: dict[str, dict[str, str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if section := re.fullmatch(r"\*\*\[(\w+)\]\*\*", cells[0]):
            keys = found.setdefault(section[1], {})
        elif line.startswith("| `"):
            names, defaults = (re.findall(r"`([^`]*)`", cell) for cell in cells[:2])
            keys |= dict(zip(names, defaults, strict=True))
    return found


def test_the_page_has_every_setting_with_its_default() -> None:
    defaults = json.loads(json.dumps(asdict(Settings()), default=str))
    wanted = {section: {key: json.dumps(value) for key, value in keys.items()} for section, keys in defaults.items()}
    assert rows() == wanted
