# SPDX-License-Identifier: Apache-2.0
"""The commands of lashctl, as its help explains them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    summary: str
    about: str
    examples: str


_JOB_NOTE = """\
The work is done by lashd: lashctl only follows it. Ctrl-C stops the following, never the work;
'lashctl jobs --cancel ID' cancels it."""

COMMANDS = {
    "status": Command(
        "show what is booted, what comes next and what is missing",
        """\
Show the deployments of this host (the booted one, the staged one that the next boot starts, the one
to roll back to), how many of their bound images are present, what lashd is doing, what it is
waiting for and its last error. Needs no root and never waits for a running upgrade.""",
        """\
  lashctl status
  lashctl status --json | jq .""",
    ),
    "list": Command(
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
    "check": Command(
        "ask whether there is a newer host image, or newer bound images",
        """\
Ask the registries whether the image that this host follows is newer by now, and whether floating
images that it binds have moved on, which an upgrade brings only with a newer host image. Nothing
is changed, but asking with the host's credentials is not for everybody. Ends with 77 when nothing is newer.""",
        """\
  lashctl check
  lashctl check --json | jq .job.details.newer""",
    ),
    "plan": Command(
        "show what an upgrade or a bind would fetch; changes nothing",
        """\
Ask the registries what an upgrade (the default) or a bind would fetch and keep, in bytes, and
whether it fits on the disk. Nothing is changed, but asking with the host's credentials needs
root. Ends with 77 when there is nothing to fetch.""",
        """\
  lashctl plan
  lashctl plan bind""",
    ),
    "upgrade": Command(
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
    "switch": Command(
        "fetch and stage another host image, which later upgrades follow",
        f"""\
Fetch and stage another host image, fetch every image that it binds, verify them, and only then let
the next boot start it. Later upgrades follow it, from when it is staged; when it is discarded or
rolled back, they follow the image of the system that runs. {_JOB_NOTE}""",
        """\
  lashctl switch quay.io/edge/os:next
  lashctl switch quay.io/edge/os:next --reboot window""",
    ),
    "bind": Command(
        "fetch what is missing of a deployment's bound images",
        f"""\
Make every bound image of one deployment present and verified in the store: the staged deployment
unless another is named (booted, staged, rollback or a key). This also repairs images that are
damaged. Ends with 77 when nothing is missing. {_JOB_NOTE}""",
        """\
  lashctl bind
  lashctl bind booted""",
    ),
    "rollback": Command(
        "make the rollback deployment the next boot",
        f"""\
Check that the rollback deployment still has its bound images, with the digests that it ran with,
repair them if needed, and make it the next boot. A staged deployment would be lost by that: lashd
refuses unless told --drop-staged. {_JOB_NOTE}""",
        """\
  lashctl rollback
  lashctl rollback --drop-staged""",
    ),
    "verify": Command(
        "compare the store with what a deployment is bound to",
        """\
Look whether every image that a deployment is bound to is in the store, complete and unchanged: the
booted deployment unless another is named. With --deep every layer is read again, which takes a
while, and what is damaged counts as not verified from then on; 'lashctl bind' repairs it.""",
        """\
  lashctl verify
  lashctl verify staged --deep""",
    ),
    "collect": Command(
        "remove from the store what nothing needs any more",
        f"""\
Remove from the bound image store what neither a deployment of this host binds nor a container
stands on. Ends with 77 when there is nothing to remove. {_JOB_NOTE}""",
        """\
  lashctl collect --dry-run
  lashctl collect""",
    ),
    "discard": Command(
        "drop the staged deployment",
        f"""\
Drop the staged deployment: the host boots what it boots now. The deployment to roll back to stays.
{_JOB_NOTE}""",
        """\
  lashctl discard""",
    ),
    "hold": Command(
        "keep the staged deployment back",
        """\
Keep the staged deployment back over any reboot, even when all of its images are present, until
'lashctl release DIGEST', or until another one is staged.""",
        """\
  lashctl hold --reason 'not before the weekend'""",
    ),
    "release": Command(
        "take a hold back, or let the staged deployment through as it is",
        """\
Take a hold back, or let exactly one staged deployment through at the next shutdown although images
are missing. Its digest has to be named, as 'lashctl status' shows it. What is complete is only not
held any more; what becomes incomplete later is held again. Containers whose images are missing will
not start. It is recorded who said so and why.""",
        """\
  lashctl release sha256:1f0c... --reason 'that registry is gone for good'""",
    ),
    "reboot": Command(
        "reboot into what comes next, if the gate allows it",
        f"""\
Reboot, if everything that the next system binds is there and nothing else forbids it; otherwise say
what does. With --when the reboot waits for that, and 'lashctl status' shows it until --cancel takes it
back. What the settings want is not changed by that. {_JOB_NOTE}""",
        """\
  lashctl reboot
  lashctl reboot --when window
  lashctl reboot --cancel""",
    ),
    "jobs": Command(
        "list, follow and cancel jobs",
        """\
List running and finished jobs, show one of them, follow it, or cancel it. Following ends with the
exit status of the command that started the job. A job that ended long ago, or before a reboot, can
be shown and followed as well; 'lashctl history' lists those.""",
        """\
  lashctl jobs
  lashctl jobs 7
  lashctl jobs --follow 7
  lashctl jobs --cancel 7""",
    ),
    "history": Command(
        "show jobs that were, and what ran when",
        """\
Show the jobs that were, also before the last restart or reboot, the newest first; with IDs all about
these. With --sets show which host image ran with which bound images, from when to when, a row for
each boot. When it was is said by the clock of then, which may have been wrong; the order is right.""",
        """\
  lashctl history
  lashctl history 7
  lashctl history --sets --limit 5
  lashctl history --json | jq '.[] | select(.result == "failed")'""",
    ),
    "monitor": Command(
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
