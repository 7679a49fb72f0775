# SPDX-License-Identifier: Apache-2.0
"""What the audience sees: headings, prompt lines, commands as they run, and whether what was expected is true."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from demo.host import Host
from demo.shell import end, shown, start


class NotTrue(Exception):
    """Something that the demo says is not so."""


@dataclass
class Terminal:
    """Writes to standard output; colours and terminals of our own for the commands only when that is a terminal."""

    live: bool = field(default_factory=lambda: sys.stdout.isatty())
    times: list[tuple[str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A heading, and the time of what happens below it."""
        self.say(f"\n{self._paint('1;36', f'━━ {len(self.times) + 1}. {title}')}")
        begun = time.monotonic()
        yield
        self.times.append((title, time.monotonic() - begun))

    def say(self, text: str) -> None:
        print(text, flush=True)

    def true(self, sentence: str, holds: bool, otherwise: str = "") -> None:
        """Show a checked fact. Raises NotTrue when it does not hold; `otherwise` says what was found instead."""
        if not holds:
            raise NotTrue(f"{sentence}: not so. {otherwise}".strip())
        self.say(f"  {self._paint('32', '✓')} {sentence}")

    def run(self, host: Host, *argv: str, timeout: float = 180, check: bool = True) -> str:
        """Show the prompt, run `argv` in the host, show what it writes while it writes; returns that as text.

        Raises NotTrue when it ends with another status than 0 (with `check`) or not within `timeout` seconds.
        """
        self.prompt(host, argv)
        status, output = self._pass_through(host, argv, timeout)
        if status != 0 and check:
            raise NotTrue(f"'{shown(argv)}' ended with status {status}.")
        return output

    def prompt(self, host: Host, argv: Sequence[str]) -> None:
        self.say(f"{self._paint('1;32', f'[root@{host.name} ~]#')} {self._paint('1', shown(argv))}")

    def failure(self, sentence: str, journal: str) -> None:
        """Say loudly what was not as told, and show the end of the host's journal."""
        self.say(f"\n{journal.rstrip()}\n")
        self.say(f"  {self._paint('1;31', '✗ ' + sentence)}")

    def summary(self) -> None:
        self.say("")
        width = max(len(title) for title, _ in self.times)
        for title, seconds in self.times:
            self.say(f"  {title:<{width}}  {seconds:6.1f} s")
        self.say(f"  {'all':<{width}}  {sum(seconds for _, seconds in self.times):6.1f} s")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.live else text

    def _pass_through(self, host: Host, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        environment = [f"TERM={os.environ.get('TERM', 'xterm')}"] if self.live else []
        reading, writing = _terminal_pair() if self.live else os.pipe()
        received = bytearray()
        with os.fdopen(reading, "rb", buffering=0) as source:
            try:
                process = start(host.enter(argv, environment), stdin=subprocess.DEVNULL, stdout=writing, stderr=writing)
            finally:
                os.close(writing)
            try:
                for chunk in _chunks(source.fileno(), deadline := time.monotonic() + timeout):
                    received += chunk
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
                status = process.wait(max(0.1, deadline - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise NotTrue(f"'{shown(argv)}' did not end within {timeout:.0f} s.") from None
            finally:
                end(process)
        return status, received.decode(errors="replace").replace("\r\n", "\n")


def _chunks(descriptor: int, deadline: float) -> Iterator[bytes]:
    """What can be read from `descriptor` until its end. Raises TimeoutError at `deadline` (monotonic)."""
    while True:
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # so a terminal says that nobody is left at its other end
            return
        if not chunk:
            return
        yield chunk


def _terminal_pair() -> tuple[int, int]:
    """A new pseudo-terminal of our own terminal's size: the end to read from and the end to write to."""
    reading, writing = os.openpty()
    columns, rows = shutil.get_terminal_size()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return reading, writing
