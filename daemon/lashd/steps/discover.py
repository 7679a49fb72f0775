# SPDX-License-Identifier: Apache-2.0
"""Discover: what one deployment binds, read from its own root.

Everything that bootc accepts in bound-images.d is accepted, and some of what it refuses without need. What cannot be
used is reported entry by entry, so that one mistake does not hide the other images.
"""

from __future__ import annotations

import errno
import heapq
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from lashd.things.etcmerge import Unmergeable
from lashd.things.mergedroot import open_root
from lashd.things.quadlet import SECTIONS, Damage, Quadlets, Unit, Unusable, extension, image_unit_of, is_unit_name
from lashd.things.quadletuse import pull_options, read_names_store, use_problems
from lashd.things.rootfs import Entry, Root, TooMuch, Unreadable
from lashd.things.shortnames import ShortNames
from lashd.things.specifiers import Meanings, Unresolvable, expand, parse_os_release
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BadEntry, BoundImage, Discovery, UseProblem
from lashd.words.reference import Reference, parse_reference, without_user

DIRECTORY = "usr/lib/bootc/bound-images.d"
ENTRY_LIMIT = 1000
_TEXT_LIMIT = 4096
_TOLD = 300  # characters of a message that is not ours
_PRICE = 2  # of a character of os-release (Root.spend)


def discover(root: Path, merges: Path | None = None) -> Discovery:
    """The bound images of the deployment whose root is `root`, and the entries that are none; both sorted by unit.

    With `merges` (Deployment.merges) it is read as it will be once it has the local changes of that deployment's /etc.
    Nothing outside of the two is read, nothing is waited for. Raises BoundImageInvalid when one of them cannot be read.
    """
    try:
        opened = open_root(root, merges)
    except OSError as error:
        raise LashdError(
            ErrorName.BOUND_IMAGE_INVALID,
            f"The root '{error.filename or root}' of the deployment cannot be read, so what it binds is unknown: "
            f"{error.strerror}.",
        ) from error
    return discover_in(opened)


def discover_in(opened: Root) -> Discovery:
    """As `discover`, of a root that was opened, and is closed here."""
    with opened:
        try:
            return _Discoverer(opened).discover()
        except Unmergeable as error:
            problem = f"{error}, so what it binds is unknown. Take them back, or adapt them to it."
        except TooMuch:
            problem = (
                "What says in this root which images it binds (bound-images.d, Quadlet's directories and what they "
                "lead to) is too much to be read in good time, so what it binds is unknown. Take most of it away."
            )
        except Exception as error:
            # Somebody else made what is read here. Whatever they come up with, the other deployments and whoever
            # looks at them go on, and this one is not let through.
            import logging  # nothing else here needs it

            logging.getLogger(__name__).debug("A root could not be read", exc_info=True)
            problem = (
                "What this root binds is unknown, because a file in it is one that lashd does not understand: "
                f"{_printable(str(error))[:_TOLD] or 'it does not say why'} ({type(error).__name__}). Report this as "
                "a mistake of lashd's, and mend that file."
            )
        return Discovery(bad=(BadEntry(posixpath.basename(DIRECTORY), problem),))


class _Discoverer:
    def __init__(self, root: Root) -> None:
        self._root = root
        self._short_names = ShortNames(root)
        self._images: list[BoundImage] = []
        self._bad: list[BadEntry] = []
        self._described: dict[tuple[str, str], BoundImage | Exception] = {}  # by name and path of the unit
        self._damage: dict[str, tuple[Damage, str]] = {}  # by file name; with the first unit that it keeps from running

    def discover(self) -> Discovery:
        entries = self._entries()
        if entries:
            self._quadlets = Quadlets(self._root)
            self._os_release = self._read_os_release()
            self._store_configured = read_names_store(self._root)
            if self._quadlets.problem:
                self._bad.append(BadEntry(posixpath.basename(DIRECTORY), self._quadlets.problem))
        for entry in entries:
            try:
                self._images.append(self._bind(entry))
            except (Unusable, Unreadable, Unresolvable) as error:
                self._report(entry.name, f"it {error}" if not isinstance(error, Unusable) else str(error))
            except LashdError as error:
                self._bad.append(BadEntry(_printable(entry.name), error.message))
        self._report_damage()
        return Discovery(
            tuple(sorted(self._images, key=lambda image: image.unit)),
            tuple(sorted(self._bad, key=lambda bad: bad.unit)),
        )

    def _entries(self) -> list[Entry]:
        """The first entries by name. No directory is no mistake: this deployment binds nothing."""
        try:
            entries = heapq.nsmallest(ENTRY_LIMIT + 1, self._root.list(DIRECTORY), key=lambda entry: entry.name)
        except Unreadable as error:
            if error.number == errno.ENOENT and not self._is_link(DIRECTORY):
                return []
            self._bad.append(BadEntry(posixpath.basename(DIRECTORY), f"'/{DIRECTORY}' {error.why}."))
            return []
        if len(entries) > ENTRY_LIMIT:
            problem = f"'/{DIRECTORY}' has more than {ENTRY_LIMIT} entries; only the first by name were read."
            self._bad.append(BadEntry(posixpath.basename(DIRECTORY), problem))
        return entries[:ENTRY_LIMIT]

    def _is_link(self, path: str) -> bool:
        try:
            self._root.link_target(path)
        except Unreadable:
            return False
        return True

    def _bind(self, entry: Entry) -> BoundImage:
        """The image that `entry` names: each unit is looked at once, however many links lead to it."""
        unit = self._unit_of(entry)
        known = self._described.get((unit.name, unit.path))
        if known is None:
            try:
                known = self._describe(unit)
            except (Unusable, Unreadable, Unresolvable, LashdError) as error:
                known = error
            self._described[unit.name, unit.path] = known
        if isinstance(known, Exception):
            raise known.with_traceback(None)
        return replace(known, unit=entry.name)

    def _describe(self, unit: Unit) -> BoundImage:
        image_unit = image_unit_of(unit, self._quadlets)
        for needed in (unit, image_unit):
            damage = self._quadlets.damage(needed) if needed is not None else None
            if damage is not None:
                self._damage.setdefault(damage.name, (damage, unit.name))
        source = image_unit or unit
        references = self._references(unit, image_unit)
        return BoundImage(
            unit=unit.name,
            text=source.value("Image"),
            reference=references[0],
            pull=pull_options(source, self._expander(source)),
            use_problems=self._use_problems({unit.name: unit, source.name: source}.values()),
            names=tuple(references[1:]),
            service=f"{unit.service}.service",
        )

    def _unit_of(self, entry: Entry) -> Unit:
        """The unit behind an entry: what Quadlet loads under the name of the file that the link points to.

        So drop-ins count, and so does a file in /etc that replaces it: that is what podman will run. A file that
        Quadlet does not load is taken as it is, because bootc binds its image as well.
        """
        kind = extension(entry.name)
        if kind not in SECTIONS:
            raise Unusable("only units of the kinds .container and .image can be bound")
        if not is_unit_name(entry.name):
            raise Unusable("its name has characters that no unit can have (blanks, quotes and the like); rename it")
        path = f"{DIRECTORY}/{entry.name}"
        if entry.link:
            name = posixpath.basename(self._root.link_target(path).rstrip("/"))
        else:
            # bootc refuses all but links. Here a regular file counts: it says just as clearly which image is meant,
            # and to hold an update for that, or to let it pass without its image, would serve nobody. Where bootc
            # itself updates the host it refuses such a file before anything is staged.
            name = entry.name
        # Read first, whatever Quadlet loads: a link into nowhere is a mistake even beside a unit of that name.
        try:
            real_path = self._root.real_path(path)
        except Unreadable as error:
            target = self._root.link_target(path)
            shown = target if len(target) <= _TOLD else f"{target[:_TOLD]}…"
            raise Unusable(f"it points to '{shown}', which {error}") from error
        if name not in self._quadlets or extension(name) != kind:
            name = self._quadlets.name_of(real_path) or ""
        if name and extension(name) == kind:
            return self._quadlets.unit(name)
        return self._quadlets.loose(entry.name, real_path)

    def _references(self, unit: Unit, image_unit: Unit | None) -> list[Reference]:
        """What is to be fetched, then the further names that the unit looks for."""
        source = image_unit or unit
        references = [self._reference(source, source.value("Image"))]
        tag = source.value("ImageTag") if source.section == "Image" else ""
        wanted = [(source, tag)] if tag else []
        if image_unit is not None:
            # The container's command line has the text of the .image, and its specifiers mean the container's own.
            wanted.append((unit, tag or source.value("Image")))
        for user, text in wanted:
            reference = self._reference(user, text)
            if reference not in references:
                references.append(reference)
        return references

    def _reference(self, unit: Unit, text: str) -> Reference:
        shown = without_user(text)[:200]
        if len(text) > _TEXT_LIMIT:
            raise Unusable(f"its image {shown!r}… is longer than {_TEXT_LIMIT} characters")
        if "$" in text:
            raise Unusable(f"its image {shown!r} uses an environment variable, which only the running service knows")
        return parse_reference(self._expander(unit)(text), self._short_names)

    def _use_problems(self, units: Iterable[Unit]) -> tuple[UseProblem, ...]:
        problems: set[UseProblem] = set()
        for unit in units:
            problems |= use_problems(unit, self._expander(unit), store_configured=self._store_configured)
        return tuple(problem for problem in UseProblem if problem in problems)

    def _expander(self, unit: Unit) -> Callable[[str], str]:
        meanings = Meanings(unit.service, self._os_release)
        return lambda text: expand(text, meanings)

    def _read_os_release(self) -> dict[str, str]:
        for path in ("etc/os-release", "usr/lib/os-release"):
            try:
                return parse_os_release(self._root.read_text(path, price=_PRICE))
            except Unreadable:
                continue
        return {}

    def _report_damage(self) -> None:
        """A damaged unit file is a bad entry even when nothing links to it: the bound units beside it would not run."""
        known = {entry.unit for entry in self._bad}
        for damage, unit in self._damage.values():
            if _printable(damage.name) not in known:
                problem = (
                    f"The unit file {_printable(damage.why)}; podman then loads no unit of its directory, "
                    f"so '{unit}' would not run. Mend or remove that file in the host image."
                )
                self._bad.append(BadEntry(_printable(damage.name), problem))

    def _report(self, name: str, why: str) -> None:
        shown = _printable(name)
        self._bad.append(BadEntry(shown, f"The entry '{shown}' of bound-images.d cannot be bound: {_printable(why)}."))


def _printable(name: str) -> str:
    """`name` as text that may go on the bus and on a terminal: no control characters, no stray bytes."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
