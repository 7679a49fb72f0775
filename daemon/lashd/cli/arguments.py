# SPDX-License-Identifier: Apache-2.0
"""The command line: what may be said, and the help that explains it."""

from __future__ import annotations

import argparse
import textwrap

from lashd import __version__
from lashd.bus.options import MOST_ROWS
from lashd.cli.commands import COMMANDS, Command

_EPILOG = """\
exit status:
  0    done
  2    the command line or the request is not valid
  4    not allowed
  5    another job is running
  10   a bound image is missing; 11 to 18: why it could not be fetched
  21   the staged deployment is held
  24   a rollback would drop the staged deployment
  26   cancelled
  69   lashd cannot be reached
  77   nothing to do
  130  Ctrl-C; a job that was followed goes on
  The complete table is in docs/lashctl.md.

environment:
  NO_COLOR        when set, no colours
  LASHCTL_DEBUG   when set to 1, mistakes of lashctl are shown in full"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples stay as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lashctl",
        description="Binds application containers to the host image: they change together, or not at all.\n"
        "lashctl speaks to lashd, which does the work.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"lashctl {__version__}")
    _json(top, default=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    made = {name: _command(commands, name, command) for name, command in COMMANDS.items()}

    made["list"].add_argument(
        "--deployment", metavar="WHICH", help="booted (default), staged, rollback, all, or a deployment's key"
    )
    made["plan"].add_argument(
        "what", nargs="?", choices=("upgrade", "bind"), default="upgrade", help="what to plan (default: upgrade)"
    )
    made["plan"].add_argument(
        "--deployment", metavar="WHICH", help="plan for this one: staged (default, else booted), rollback, or a key"
    )
    made["switch"].add_argument("image", metavar="IMAGE", help="with its registry: quay.io/edge/os:stable")
    for name in ("upgrade", "switch"):
        made[name].add_argument(
            "--expected-digest", metavar="DIGEST", help="refuse any other host image than this (sha256:...)"
        )
        made[name].add_argument(
            "--reboot",
            choices=("when-ready", "window"),
            help="reboot once it is released: at once, or in the next window",
        )
    made["bind"].add_argument(
        "deployment", nargs="?", metavar="DEPLOYMENT", help="booted, staged (default), rollback, or a key"
    )
    made["rollback"].add_argument(
        "--drop-staged", action="store_true", help="go on although that drops the staged deployment"
    )
    made["verify"].add_argument(
        "deployment", nargs="?", metavar="DEPLOYMENT", help="booted (default), staged, rollback, or a key"
    )
    made["verify"].add_argument("--deep", action="store_true", help="read every layer again")
    made["collect"].add_argument("--dry-run", action="store_true", help="only say what would go")
    for name in ("discard", "hold"):
        made[name].add_argument(
            "--expected-digest", metavar="DIGEST", help="refuse when another deployment is staged (sha256:...)"
        )
    made["release"].add_argument(
        "digest", metavar="DIGEST", help="of the staged deployment, or its checksum when it has none"
    )
    wish = made["reboot"].add_mutually_exclusive_group()
    wish.add_argument(
        "--when", choices=("now", "ready", "window"), help="now (default), once everything is there, or in a window"
    )
    wish.add_argument("--cancel", action="store_true", help="take back a reboot that was asked for and still waits")
    for name in ("hold", "release", "verify"):
        made[name].add_argument("--reason", metavar="TEXT", help="why; kept for the record")
    for name in ("upgrade", "switch", "bind", "rollback", "collect", "discard", "reboot"):
        made[name].add_argument("--no-wait", action="store_true", help="print the job and return at once")
        made[name].add_argument("--reason", metavar="TEXT", help="why; kept with the job")
    jobs = made["jobs"]
    action = jobs.add_mutually_exclusive_group()
    action.add_argument("--follow", type=_job_id, metavar="ID", help="follow this job until it ends")
    action.add_argument("--cancel", type=_job_id, metavar="ID", help="cancel this job")
    action.add_argument("id", nargs="?", type=_job_id, metavar="ID", help="the job to show")
    history = made["history"]
    history.add_argument("--limit", type=_limit, metavar="COUNT", help="at most so many, the newest (default: 50)")
    about = history.add_mutually_exclusive_group()  # a set has no number to ask for
    about.add_argument("--sets", action="store_true", help="which host image ran with which bound images")
    about.add_argument("ids", nargs="*", default=[], type=_job_id, metavar="ID", help="only these jobs, in full")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command
) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=command.summary,
        description=textwrap.fill(command.about, 96, break_on_hyphens=False),
        epilog=f"examples:\n{command.examples}",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    # SUPPRESS: what was said before the command is not undone by what was not said after it.
    _json(made, default=argparse.SUPPRESS)
    return made


def _json(target: argparse.ArgumentParser, default: object) -> None:
    target.add_argument("--json", action="store_true", default=default, help="print JSON for other programs")


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_ROWS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_ROWS}")
    return int(text)


def _job_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**64):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job's number; 'lashctl jobs' lists them")
    return int(text)
