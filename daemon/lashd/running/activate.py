# SPDX-License-Identifier: Apache-2.0
"""Activation: at boot, before any container starts, names get the meaning that the booted deployment is bound to.

A program of its own, `/usr/lib/lashd/activate`, that needs neither network nor bus nor the daemon. Nearly always every
name is right already: then it reads a few files, starts no process and writes nothing. With `--check` it only says
whether every bound image of the booted deployment is there (for greenboot).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lashd.running.booted import Booted, check, look
from lashd.steps.names import Digests, digests_of, give_names, moves, wrong_names
from lashd.steps.protect import protection_of
from lashd.things import bars, journal
from lashd.things.store import Store
from lashd.words import events, files
from lashd.words.config import DIRECTORIES, Settings, load_or_default
from lashd.words.errors import LashdError
from lashd.words.events import MessageId
from lashd.words.model import BoundImage

# A boot is not kept waiting for longer; the unit's own limit is a little above.
LIMIT_SECONDS = 120.0
UNIT = "lashd-activate.service"
_RELOAD_SECONDS = 30.0
_REPORT = "activation.json"
_BARRED = "barred"
_REPORT_LIMIT = 1024 * 1024

_INFO, _WARNING, _ERROR = 6, 4, 3  # syslog's


def in_order(settings: Settings, booted: Booted) -> bool:
    """Whether there is nothing to do at all, as at nearly every boot: `activate` would change nothing and say nothing.

    Needs less to be loaded than `activate` does.
    """
    digests = digests_of(booted.record)
    bound, store = booted.found.images, booted.store
    try:
        if moves(store.index(), bound, digests) or protection_of(settings, store).lost(booted.record):
            return False
    except LashdError:
        return False
    wrong = any(_wrong(image, digests, store, "") for image in bound)
    reasons = settings.paths.run / _BARRED
    return not (wrong or (settings.paths.run / _REPORT).exists() or bars.barred(reasons_in=reasons))


async def activate(settings: Settings, booted: Booted) -> dict[str, str]:
    """Give the names of `booted` their meaning, and answer those units whose name is still wrong, each with a sentence.

    The answer is also in a file (`read_report`), and by the setting `gate.strict_names` the services of such units are
    barred; what an earlier call left of both and is true no more is removed. Never raises LashdError.
    """
    digests = digests_of(booted.record)
    bound, store = booted.found.images, booted.store
    import asyncio

    from lashd.running import restarts

    before = restarts.meanings(bound, store)
    problem = ""
    end = asyncio.get_running_loop().time() + LIMIT_SECONDS
    # Half of the time at most, and whatever becomes of it: names of images that are there must not wait for others.
    with contextlib.suppress(LashdError, TimeoutError):
        async with asyncio.timeout(LIMIT_SECONDS / 2):
            for sentence in await protection_of(settings, store).bring_back(booted.record):
                _say(_INFO, sentence, MessageId.BROUGHT_BACK)
    try:
        wanted = moves(store.index(), bound, digests)
        if wanted:
            settings.paths.run.mkdir(parents=True, exist_ok=True)
            async with asyncio.timeout_at(end):
                await give_names(store, bound, digests)
            for move in wanted:
                _say(_INFO, f"{move.name} now means {move.source.digest}, which this deployment is bound to.")
    except LashdError as error:
        problem = error.message
    except TimeoutError:
        problem = f"Giving names their meaning took longer than {LIMIT_SECONDS:.0f} seconds and was given up."
    wrong = {image.unit: sentence for image in bound if (sentence := _wrong(image, digests, store, problem))}
    # At boot nothing runs yet; later it may.
    for sentence in restarts.note(settings, before, restarts.meanings(bound, store)):
        _say(_WARNING, sentence)
    if problem and not wrong:
        # The names are right, by the store's own word; what failed is the way there, or making it durable.
        _say(_WARNING, problem)
    await _publish(settings, bound, wrong)
    return wrong


def read_report(settings: Settings) -> dict[str, str]:
    """The units whose name was wrong when this system booted, each with a sentence; empty when all were right.

    Where activation failed altogether there is one, `UNIT`.
    """
    try:
        report = json.loads(files.read_small(settings.paths.run / _REPORT, _REPORT_LIMIT))
        return {str(unit): str(sentence) for unit, sentence in report.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _wrong(image: BoundImage, digests: Digests, store: Store, problem: str) -> str:
    """Why the unit of `image` would not start what it is bound to; empty when its names are right."""
    wanted = digests.get(str(image.reference)) or image.reference.digest
    floating = [name for name in (image.reference, *image.names) if not name.pinned]
    if not wanted or not floating:
        return ""
    try:
        index = store.index()
    except LashdError as error:
        return f"What {floating[0]} ({image.unit}) means cannot be told. {error.message}"
    names = wrong_names(index, image, digests)
    if not names:
        return ""
    holder = index.image_named(names[0])
    means = f"means another image ({holder.digest or holder.id})" if holder else "means nothing"
    here = index.image_with_digest(image.reference.name, wanted) is not None
    why = problem if here else "That image is not in the store."
    return (
        f"{names[0]} ({image.unit}) {means} in the bound image store, but this deployment is bound to {wanted}. "
        f"{f'{why} ' if why else ''}'lashctl bind booted' mends it."
    )


async def _publish(settings: Settings, bound: Sequence[BoundImage], wrong: Mapping[str, str]) -> None:
    """Say it where others look: in a file, in the journal, and to systemd when such services must not start."""
    for sentence in wrong.values():
        _say(_ERROR, sentence, MessageId.RUNNING_LACKS)
    strict = settings.gate.strict_names
    services = {image.service: wrong[image.unit] for image in bound if image.unit in wrong} if strict else {}
    report, reasons = settings.paths.run / _REPORT, settings.paths.run / _BARRED
    root = settings.paths.root
    try:
        if wrong:
            report.parent.mkdir(parents=True, exist_ok=True)
            files.write_durably(report, json.dumps(wrong, indent=1).encode() + b"\n")
        elif report.exists():
            report.unlink()  # after a soft reboot, or when it was mended
        if services or bars.barred(reasons_in=reasons):
            changed = bars.set_bars(services, reasons_in=reasons, units=root / "run/systemd/system")
            for service, sentence in services.items():
                bars.log_for(service, f"Not started: {sentence}", journal=root / "run/systemd/journal/socket")
            if changed:
                await _reload(services)
    except OSError as error:
        _say(_ERROR, f"The names that are wrong could not be noted in {settings.paths.run}: {error}.")


async def _reload(services: Mapping[str, str]) -> None:
    from lashd.words.run import run

    # By PID 1's own socket: the bus is not there yet.
    try:
        done = await run(["systemctl", "daemon-reload"], timeout=_RELOAD_SECONDS)
        problem = done.stderr.strip() if done.status else ""
    except LashdError as error:
        problem = error.message
    if problem:
        _say(_ERROR, f"systemd could not be told to leave {', '.join(sorted(services))} alone: {problem}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when all names are right (with --check: all images there), 1 when not, 2 for usage."""
    only_check, directories = _options(sys.argv[1:] if arguments is None else arguments)
    # Else, for a mistake in a settings file, the new system would run the old one's applications.
    settings = load_or_default(lambda sentence: _say(_ERROR, sentence, MessageId.SETTINGS_BROKEN), directories)
    try:
        booted = look(settings)
        if booted is None:
            return 0
        if only_check:
            told = check(booted)
            for well, sentence in told:
                _say(_INFO if well else _ERROR, sentence, None if well else MessageId.RUNNING_LACKS)
            return 0 if all(well for well, _ in told) else 1
        if in_order(settings, booted):
            return 0
        import asyncio

        # /tmp and /var/tmp may not be there yet.
        os.environ["TMPDIR"] = os.fspath(settings.paths.run)
        return 1 if asyncio.run(activate(settings, booted)) else 0
    except LashdError as error:
        problem = error.message
    except OSError as error:
        problem = f"The names of the booted deployment could not be judged: {error}."
    _say(_ERROR, problem, MessageId.RUNNING_LACKS)
    if not only_check:
        _note_failure(settings, problem)
    return 1


def _note_failure(settings: Settings, problem: str) -> None:
    """Leave word of an activation that failed altogether, for the daemon, which does it again."""
    sentence = (
        f"Image names were not given their meaning when this system booted, so services may run another image than "
        f"they are bound to. {problem} lashd does it again once every bound image is there."
    )
    report = settings.paths.run / _REPORT
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        files.write_durably(report, json.dumps({UNIT: sentence}, indent=1).encode() + b"\n")
    except OSError as error:
        _say(_ERROR, f"That activation failed could not be noted in {settings.paths.run}: {error}.")


def _options(arguments: Sequence[str]) -> tuple[bool, Sequence[Path]]:
    """Whether only to check, and where the settings are."""
    if not arguments:
        return False, DIRECTORIES
    import argparse  # at boot there are none to be read

    parser = argparse.ArgumentParser(
        prog="activate", description="Gives image names the meaning that the booted deployment is bound to."
    )
    parser.add_argument("--check", action="store_true", help="only say whether every bound image is there")
    parser.add_argument("--settings", metavar="DIR", type=Path, nargs="+", help="read settings from here instead")
    options = parser.parse_args(arguments)
    return options.check, options.settings or DIRECTORIES


def _say(level: int, sentence: str, message: MessageId | None = None) -> None:
    stream = sys.stderr if level < _INFO else sys.stdout
    fields = events.fields(message) if message is not None else {}
    if fields and journal.tell(stream, sentence, fields, priority=level, identifier="activate"):
        return
    # systemd takes the number in front for the priority of the line in the journal.
    prefix = f"<{level}>" if journal.goes_to_journal(stream) else ""
    with contextlib.suppress(OSError):
        print(f"{prefix}{sentence}", file=stream, flush=True)


if __name__ == "__main__":
    sys.exit(main())
