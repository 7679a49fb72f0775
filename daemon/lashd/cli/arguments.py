# SPDX-License-Identifier: Apache-2.0
"""The command line: what may be said, and the help that explains it."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass

from lashd import __version__


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    about: str
    examples: str


_JOB_NOTE = """\
The work is done by lashd: lashctl only follows it. Ctrl-C stops the following, never the work;
'lashctl jobs --cancel ID' cancels it."""

_COMMANDS = {
    "status": _Command(
        "show what is booted, what comes next and what is missing",
        """\
Show the deployments of this host (the booted one, the staged one that the next boot starts, the one
to roll back to), how many of their bound images are present, what lashd is doing, what it is
waiting for and its last error. Needs no root and never waits for a running upgrade.""",
        """\
  lashctl status
  lashctl status --json | jq .""",
    ),
    "list": _Command(
        "list the bound images of a deployment",
        """\
List the container images that a deployment binds: the unit that names each, the image, its state in
the bound image store, digest and size, and why a unit would not really run from that store. Shows
the booted deployment unless told otherwise.""",
        """\
  lashctl list
  lashctl list --deployment staged
  lashctl list --deployment all --json | jq '.[] | select(.state != "present")'""",
    ),
    "plan": _Command(
        "show what an upgrade or a bind would fetch; changes nothing",
        """\
Ask the registries what an upgrade (the default) or a bind would fetch and keep, in bytes, and
whether it fits on the disk. Nothing is changed, but asking with the host's credentials needs
root. Ends with 77 when there is nothing to fetch.""",
        """\
  lashctl plan
  lashctl plan bind""",
    ),
    "upgrade": _Command(
        "fetch and stage the newest host image with all of its bound images",
        f"""\
Fetch and stage the newest host image, fetch every image that it binds, verify them, and only then
let the next boot start it. If anything fails, the host boots what it boots now. Ends with 77 when
the host is up to date. {_JOB_NOTE}""",
        """\
  lashctl upgrade
  lashctl upgrade --expected-digest sha256:1f0c...
  lashctl upgrade --no-wait --json""",
    ),
    "bind": _Command(
        "fetch what is missing of a deployment's bound images",
        f"""\
Make every bound image of one deployment present and verified in the store: the staged deployment
unless another is named (booted, staged, rollback or a key). This also repairs images that are
damaged. Ends with 77 when nothing is missing. {_JOB_NOTE}""",
        """\
  lashctl bind
  lashctl bind booted""",
    ),
    "rollback": _Command(
        "make the rollback deployment the next boot",
        f"""\
Check that the rollback deployment still has its bound images, with the digests that it ran with,
repair them if needed, and make it the next boot. A staged deployment would be lost by that: lashd
refuses unless told --drop-staged. {_JOB_NOTE}""",
        """\
  lashctl rollback
  lashctl rollback --drop-staged""",
    ),
    "jobs": _Command(
        "list, follow and cancel jobs",
        """\
List running and finished jobs, show one of them, follow it, or cancel it. Following ends with the
exit status of the command that started the job.""",
        """\
  lashctl jobs
  lashctl jobs 7
  lashctl jobs --follow 7
  lashctl jobs --cancel 7""",
    ),
    "monitor": _Command(
        "watch jobs and changes of the state as they happen",
        """\
Print one line for everything that happens: jobs that start, go on and end, and changes of the
state, of the gate and of the deployments. With --json each line is one JSON document. Ends with
Ctrl-C.""",
        """\
  lashctl monitor
  lashctl monitor --json | jq .""",
    ),
}

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
    made = {name: _command(commands, name, command) for name, command in _COMMANDS.items()}

    made["list"].add_argument(
        "--deployment", metavar="WHICH", help="booted (default), staged, rollback, all, or a deployment's key"
    )
    made["plan"].add_argument(
        "what", nargs="?", choices=("upgrade", "bind"), default="upgrade", help="what to plan (default: upgrade)"
    )
    made["plan"].add_argument(
        "--deployment", metavar="WHICH", help="plan for this one: staged (default, else booted), rollback, or a key"
    )
    made["upgrade"].add_argument(
        "--expected-digest", metavar="DIGEST", help="refuse any other host image than this (sha256:...)"
    )
    made["bind"].add_argument(
        "deployment", nargs="?", metavar="DEPLOYMENT", help="booted, staged (default), rollback, or a key"
    )
    made["rollback"].add_argument(
        "--drop-staged", action="store_true", help="go on although that drops the staged deployment"
    )
    for name in ("upgrade", "bind", "rollback"):
        made[name].add_argument("--no-wait", action="store_true", help="print the job and return at once")
        made[name].add_argument("--reason", metavar="TEXT", help="why; kept with the job")
    jobs = made["jobs"]
    jobs.add_argument("id", nargs="?", type=_job_id, metavar="ID", help="the job to show")
    action = jobs.add_mutually_exclusive_group()
    action.add_argument("--follow", type=_job_id, metavar="ID", help="follow this job until it ends")
    action.add_argument("--cancel", type=_job_id, metavar="ID", help="cancel this job")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: _Command
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


def _job_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**64):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job's number; 'lashctl jobs' lists them")
    return int(text)
