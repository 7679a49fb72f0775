# SPDX-License-Identifier: Apache-2.0
"""lashctl: dispatch, exit statuses, and no traceback, ever."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lashd.cli import arguments, screen
from lashd.cli.failures import EXIT_INTERRUPTED, EXIT_OUTPUT, Failure
from lashd.words.errors import ERRORS, ErrorName

# What a shell reports for a program that a closed pipe ended.
EXIT_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run lashctl and return its exit status (the table is in words/errors.py and in docs/lashctl.md)."""
    screen.prepare()
    debug = os.environ.get("LASHCTL_DEBUG") == "1"
    if not debug:
        # What a library has to say about a broken message is of no use to the person at the terminal.
        logging.disable(logging.CRITICAL)
        sys.unraisablehook = lambda _: None
    parser = arguments.parser()
    try:
        parsed = parser.parse_args(argv)
        if parsed.command is None:
            parser.print_help(sys.stderr)
            return ERRORS[ErrorName.INVALID_ARGUMENT].exit_status
        status = _guarded(parsed, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        return EXIT_PIPE
    except OSError as error:
        _abandon_output()
        with suppress(OSError):
            print(f"lashctl: The output cannot be written: {error.strerror or error}.", file=sys.stderr)
        return EXIT_OUTPUT
    return status


def _guarded(parsed: Any, debug: bool) -> int:
    """Run the command. Only failures of the output leave here as exceptions."""
    try:
        return asyncio.run(_run(parsed))
    except Failure as failure:
        if debug:
            traceback.print_exc()
        if parsed.json and not failure.told:
            from lashd.cli import jsonout

            jsonout.document(failure.as_json())
        sys.stdout.flush()
        screen.complain(failure)
        return failure.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError:
        # Those of the bus have become a Failure where they happened.
        if debug:
            traceback.print_exc()
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        screen.complain(
            Failure(
                ErrorName.INTERNAL,
                f"lashctl made a mistake ({type(error).__name__}). What lashd does goes on; please report this.",
                ERRORS[ErrorName.INTERNAL].exit_status,
                hint="LASHCTL_DEBUG=1 shows where it happened.",
            )
        )
        return ERRORS[ErrorName.INTERNAL].exit_status


async def _run(parsed: Any) -> int:
    # Late, because --help and --version need no bus.
    from lashd.cli import history, look, monitor, order, walk
    from lashd.cli.client import connect

    commands = {
        "status": look.status,
        "list": look.bound,
        "jobs": look.jobs,
        "history": history.history,
        "check": walk.check,
        "plan": walk.plan,
        "upgrade": walk.upgrade,
        "switch": walk.switch,
        "bind": walk.bind,
        "rollback": walk.rollback,
        "verify": walk.verify,
        "collect": walk.collect,
        "discard": walk.discard,
        "reboot": walk.reboot,
        "hold": order.hold,
        "release": order.release,
        "monitor": monitor.monitor,
    }
    async with connect(interactive=sys.stdin is not None and sys.stdin.isatty()) as client:
        return await commands[parsed.command](client, parsed)


def _abandon_output() -> None:
    """Keep the interpreter from failing once more when it flushes at its end."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
