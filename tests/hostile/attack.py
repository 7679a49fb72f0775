# SPDX-License-Identifier: Apache-2.0
"""One hostile caller, as a process of its own: makes bad calls and looks at what comes back.

python -m tests.hostile.attack ADDRESS JOB COUNT SEED FORBIDDEN … makes its calls up, says so in a line, waits for one,
and prints one JSON object (Tally).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass, field

from lashd.words.errors import ERRORS
from tests.hostile.kinds import KINDS, Bad, Here
from tests.support import wire

# Calls of one connection that wait for an answer at once.
WINDOW = 8
# Whatever is not answered by then is not answered (seconds).
PATIENCE = 10.0
# In an answer these would be a traceback or a path of the program's.
TELLTALE = (b"Traceback", b'File "', b".py", b"site-packages")
_OURS = frozenset(f"io.github.lashd1.Error.{name}" for name in ERRORS)
_BUS = "org.freedesktop.DBus.Error."


@dataclass
class Tally:
    """What came of the bad calls. `names`: error names; `wrong`: what must not be in an answer, with the answer."""

    sent: int = 0
    errors: int = 0
    taken: int = 0  # answered with no error; none of these calls is a good one
    unanswered: Counter[str] = field(default_factory=Counter)
    ended: int = 0  # connections that were given up, or ended by the bus
    names: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name in ("sent", "errors", "taken", "ended"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unanswered += other.unanswered
        self.names += other.names
        self.wrong += other.wrong


class Attack:
    def __init__(self, address: str, here: Here, seed: int, forbidden: list[bytes]) -> None:
        self._address = address
        self._here = here
        self._pick = random.Random(seed)
        self._calls: list[tuple[str, int, Bad]] = []
        self._forbidden = [*TELLTALE, *forbidden]
        self._spare = os.open("/dev/null", os.O_RDONLY)
        self.tally = Tally()
        self._client: wire.Client | None = None
        self._open: dict[int, str] = {}

    def make_up(self, count: int) -> None:
        """Have `count` bad calls ready, of every kind as many: to make them up takes longer than to answer them."""
        kinds = [KINDS[number % len(KINDS)] for number in range(count)]
        self._pick.shuffle(kinds)
        for serial, make in enumerate(kinds, 100):
            self._calls.append((make.__name__, serial, make(self._pick, serial, self._here)))

    def run(self) -> None:
        """Make the calls."""
        for kind, serial, bad in self._calls:
            client = self._client or self._connect()
            self.tally.sent += 1
            try:
                if bad.ends:
                    self._listen(0)
                client.send(bad.data, [self._spare] * bad.descriptors)
                if bad.reply:
                    self._open[serial] = kind
                if len(self._open) >= WINDOW:
                    self._listen(WINDOW // 2)
            except TimeoutError:
                self._leave(count=True)
            except ConnectionError:
                self._leave(count=True)
            if bad.ends and self._client:
                self._leave(count=False)
        with contextlib.suppress(TimeoutError, ConnectionError):
            self._listen(0)
        self._leave(count=True)

    def _connect(self) -> wire.Client:
        self._client = wire.Client(self._address, timeout=PATIENCE)
        return self._client

    def _listen(self, until: int) -> None:
        """Take answers until only so many calls wait for theirs."""
        if self._client is None or len(self._open) <= until:
            return
        for answer in self._client.answers():
            kind = self._open.pop(answer.reply_serial, None)
            if kind is not None:
                self._look_at(kind, answer)
            if len(self._open) <= until:
                return

    def _look_at(self, kind: str, answer: wire.Answer) -> None:
        # What the bus itself refuses it explains as it likes: dbus-daemon with the command lines of both.
        for telltale in self._forbidden if answer.sender != "org.freedesktop.DBus" else ():
            if telltale in answer.body:
                self.tally.wrong.append(f"{kind}: {telltale!r} in {answer.body[:2000]!r}")
        if answer.kind != wire.ERROR:
            self.tally.taken += 1
            self.tally.wrong.append(f"{kind}: was taken: {answer.body[:200]!r}")
            return
        self.tally.errors += 1
        self.tally.names[answer.error] += 1
        if answer.error not in _OURS and not answer.error.startswith(_BUS):
            self.tally.wrong.append(f"{kind}: unknown error {answer.error}")
        if answer.error.endswith(".Internal"):
            self.tally.wrong.append(f"{kind}: a mistake of the service's")
        if not answer.sentence:
            self.tally.wrong.append(f"{kind}: {answer.error} without a sentence")

    def _leave(self, *, count: bool) -> None:
        if count:
            self.tally.unanswered.update(self._open.values())
        self._open.clear()
        if self._client:
            self._client.close()
            self._client = None
            self.tally.ended += 1


def main() -> None:
    address, job, count, seed, *forbidden = sys.argv[1:]
    attack = Attack(address, Here(job, os.getuid() == 0), int(seed), [text.encode() for text in forbidden])
    attack.make_up(int(count))
    print("ready", flush=True)
    sys.stdin.readline()
    attack.run()
    print(json.dumps(vars(attack.tally)))


def tally_from(text: str) -> Tally:
    """The Tally that `main` printed."""
    found = json.loads(text)
    return Tally(**found | {name: Counter(found[name]) for name in ("unanswered", "names")})


if __name__ == "__main__":
    main()
