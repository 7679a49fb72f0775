# SPDX-License-Identifier: Apache-2.0
"""`make demo`: one walk through an upgrade and back, on a real ostree host that is built for it.

python -m demo          the walk; KEEP=1 in the environment leaves the host running
python -m demo shell    a shell in the host that was left running
python -m demo stop     ends that host and removes it
"""

from __future__ import annotations

import os
import shutil
import signal
import sys

from demo import rootfs
from demo.host import Host
from demo.shell import Failed
from demo.story import Story
from demo.terminal import NotTrue, Terminal

NAME = "harbour"


def main(argv: list[str]) -> int:
    host = Host(NAME, rootfs.CACHE / "hosts" / NAME)
    match argv:
        case []:
            return walk(host, keep=os.environ.get("KEEP", "") not in ("", "0", "no"))
        case ["shell"]:
            if not host.is_on():
                sys.exit("No host was left running; 'make demo KEEP=1' does that.")
            # `script` gives the shell a terminal of the guest's own.
            shell = host.enter(["script", "--quiet", "--command", "bash -l", "/dev/null"], _terminal_environment())
            os.execvp(shell[0], shell)
        case ["stop"]:
            host.stop()
            shutil.rmtree(host.directory, ignore_errors=True)
            print("The host is gone.")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def walk(host: Host, *, keep: bool) -> int:
    """The demo from its first step to its summary; returns the exit status."""
    if os.geteuid() != 0:
        sys.exit("The demo mounts a disk and boots a system on it: run it as root.")
    if host.is_on():
        sys.exit("The host of an earlier demo is still running. 'make demo-stop' ends it.")
    terminal = Terminal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(host.directory, ignore_errors=True)
    status, kept = 1, False
    try:
        with host:
            status = _tell(host, terminal)
            if keep and host.is_on():
                host.keep()
                kept = True
    except KeyboardInterrupt:
        terminal.say("\nStopped; the host is gone.")
        return 130
    finally:
        if not kept:
            shutil.rmtree(host.directory, ignore_errors=True)
    if kept:
        terminal.say("\nThe host is still running; its registry is off, as it was at the end.")
        terminal.say("  a shell in it:  make demo-shell\n  end it:         make demo-stop")
    return status


def _tell(host: Host, terminal: Terminal) -> int:
    try:
        Story(host, terminal).tell()
    except (NotTrue, Failed) as error:
        terminal.failure(str(error), host.journal())
        return 1
    terminal.summary()
    return 0


def _terminal_environment() -> list[str]:
    return [f"TERM={os.environ.get('TERM', 'xterm')}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
