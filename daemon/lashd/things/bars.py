# SPDX-License-Identifier: Apache-2.0
"""Services that systemd must not start: a drop-in with an assertion for each, and a file that says why.

The assertion is that the file with the reason is not there. So `systemctl status` names that file, a bar is lifted by
removing it, without telling systemd anything, and nothing is tried again and again as Restart= would have it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lashd.things.journal import send

# Whatever else a service may be called, systemd has no unit of such a name.
_SERVICE = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service", re.ASCII)
_DROP_IN = "50-lashd-names.conf"
_TEXT = """\
# Written by lashd: the image that this service would start is not the one that the deployment is bound to.
# The file below says more; lashd removes it when that has been mended.
[Unit]
AssertPathExists=!{reason}
"""


def set_bars(reasons: Mapping[str, str], *, reasons_in: Path, units: Path) -> bool:
    """Let exactly the services of `reasons` (`agent.service` → a sentence) be barred, and those barred before no more.

    `reasons_in` is the directory for the reasons, `units` that of systemd's runtime units. Answers whether systemd has
    to read its units anew. Names that no service can have are left out. Raises OSError.
    """
    wanted = {service: sentence for service, sentence in reasons.items() if _SERVICE.fullmatch(service)}
    for service in barred(reasons_in=reasons_in):
        if service not in wanted:
            (reasons_in / service).unlink(missing_ok=True)
            (units / f"{service}.d" / _DROP_IN).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (units / f"{service}.d").rmdir()
    changed = False
    for service, sentence in wanted.items():
        reasons_in.mkdir(parents=True, exist_ok=True)
        (reasons_in / service).write_text(f"{sentence}\n", encoding="utf-8")
        drop_in, text = units / f"{service}.d" / _DROP_IN, _TEXT.format(reason=reasons_in / service)
        if not drop_in.exists() or drop_in.read_text(encoding="utf-8") != text:
            drop_in.parent.mkdir(parents=True, exist_ok=True)
            drop_in.write_text(text, encoding="utf-8")
            changed = True
    return changed


def barred(*, reasons_in: Path) -> tuple[str, ...]:
    """The services that are barred now."""
    with contextlib.suppress(OSError):
        return tuple(sorted(os.listdir(reasons_in)))  # noqa: PTH208
    return ()


def log_for(service: str, sentence: str, *, journal: Path) -> None:
    """Put `sentence` into the journal as an error of `service`, where `systemctl status` of it shows it.

    `journal` is the journal's socket; nothing happens without one. Needs uid 0, or the journal files it under us.
    """
    lines = {"MESSAGE": sentence.replace("\n", " "), "PRIORITY": "3", "SYSLOG_IDENTIFIER": "lashd"}
    send(lines | {"OBJECT_SYSTEMD_UNIT": service}, journal=journal)
