# SPDX-License-Identifier: Apache-2.0
"""The whole state on one screen: what is booted, what comes next, what is missing and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from lashd.cli import values
from lashd.cli.job import Job
from lashd.cli.render import words
from lashd.cli.render.tables import facts, image_name, row_error
from lashd.words.model import ImageState

# Codes of the reasons of a verdict that is none.
_UNFINISHED = {"gate-not-finished", "gate-failed"}
_ORDER = ("staged", "booted", "rollback", "pinned")


def status(document: values.Row, job: Job | None = None, *, plain: bool = False) -> RenderableType:
    """The human view of lashd's description of the state (snake case keys); `plain` keeps to ASCII."""
    deployments, bound = values.rows(document.get("deployments")), values.rows(document.get("bound"))
    parts: list[RenderableType] = [_head(document), Text("")]
    for deployment in sorted(deployments, key=lambda row: _rank(_roles(row))):
        mine = [row for row in bound if values.text(row, "deployment") == values.text(deployment, "key")]
        parts += [_deployment(deployment, mine, document, plain), Text("")]
    if not deployments:
        parts += [Text("No deployment is known.", style="dim"), Text("")]
    if job is not None:
        parts.append(_line("Job", _job(job), "cyan"))
    blocked = values.pairs(document.get("blocked_by"))
    waits = list(_waits(blocked, bound, told={"job-running"} if job is not None else set(), document=document))
    if waits:
        parts.append(
            Text("Waiting for:" if _awaited(document, deployments) else "Needs attention:", style="bold yellow")
        )
        parts += [Text(f"  {'-' if plain else '•'} {words.clean(sentence)}") for sentence in waits]
    parts += _reboot(values.row(document.get("reboot")), deployments)
    if next_try := words.when(values.number(document, "next_try")):
        parts.append(_line("Next try", next_try))
    parts += _shutdown(values.row(document.get("last_shutdown")), blocked, plain)
    last = values.row(document.get("last_error"))
    error = ": ".join(filter(None, (values.text(last, "name"), values.text(last, "message"))))
    if error and not _is_told(error, bound, blocked):
        parts.append(_line("Last error", words.clean(error), "red"))
    if advice := _advice(document, deployments, bound):
        parts.append(_line("What to do", advice))
    while isinstance(parts[-1], Text) and not parts[-1].plain:
        parts.pop()
    return Group(*parts)


def _waits(
    blocked: Sequence[tuple[str, str]], bound: Sequence[values.Row], *, told: set[str], document: values.Row
) -> Iterator[str]:
    """Sentences on what keeps the next system back. What stands with its deployment is only counted."""
    if values.number(document, "next_try"):
        told = told | {"next-try"}
    images: set[str] = set()
    lacking = [row for row in bound if values.text(row, "state") != ImageState.PRESENT]
    rest = []
    for code, sentence in blocked:
        names = {unit for row in lacking if (unit := values.text(row, "unit")) and f"({unit})" in sentence}
        if names and code in (*ImageState, "unrecorded", "running-lacks"):
            # Said of the running system it is no news when the staged one says it, too.
            images |= names
        elif code not in told:
            rest.append(sentence or code)
    if images:
        yield f"{words.count(len(images), 'bound image')}, as told above"
    yield from rest


def _is_told(error: str, bound: Sequence[values.Row], blocked: Sequence[tuple[str, str]]) -> bool:
    """Whether the last error is what an image lacks, or what is waited for: that stands there already."""
    sentences = [row_error(row) for row in bound if values.text(row, "state") != ImageState.PRESENT]
    sentences += [sentence for _, sentence in blocked]
    return any(sentence and sentence in error for sentence in sentences)


def _advice(document: values.Row, deployments: Sequence[values.Row], bound: Sequence[values.Row]) -> str:
    """The commands that help, where images are missing."""
    lacking = {values.text(row, "deployment") for row in bound if values.text(row, "state") != ImageState.PRESENT}
    found = []
    for row in deployments:
        roles = _roles(row)
        if values.text(row, "key") not in lacking:
            continue
        if "staged" in roles:
            name = words.digest(values.text(row, "digest", "checksum"))
            found.append("'lashctl bind' fetches what is missing now")
            if name and values.text(document, "gate") == "held":
                found.append(f"'lashctl release {name}' lets it through without")
            found.append("'lashctl discard' drops it")
        elif "booted" in roles:
            found.append("'lashctl bind booted' fetches what the running system lacks")
    return "; ".join(found)


def _comes(deployments: Sequence[values.Row]) -> bool:
    """Whether there is something to boot into."""
    return any("booted" not in _roles(one) and ("staged" in _roles(one) or one.get("next_boot")) for one in deployments)


def _awaited(document: values.Row, deployments: Sequence[values.Row]) -> bool:
    """Whether anything is to happen that reasons can stand against: a next system, a reboot, another try."""
    asked = values.number(values.row(document.get("reboot")), "asked_at")
    return bool(asked or values.number(document, "next_try")) or _comes(deployments)


def _reboot(row: values.Row, deployments: Sequence[values.Row]) -> list[Text]:
    """The reboot that is wanted; nothing of one that the settings want while there is nothing to boot into."""
    if row.get("started") is True:
        return [_line("Reboot", "it has begun", "green")]
    asked = words.when(values.number(row, "asked_at"))
    waits = {"ready": "waits until everything is ready", "window": "waits for its window"}.get(values.text(row, "when"))
    if waits is None or not (asked or _comes(deployments)):
        return []
    if waits.endswith("window") and (opens := words.when(values.number(row, "next_window"))):
        waits = f"{waits}, which opens at {opens}"
    who = f"{words.clean(values.text(row, 'asked_by')) or 'somebody'} (user {values.number(row, 'asked_uid')})"
    return [_line("Reboot", f"wanted by {who} at {asked}, {waits}" if asked else f"wanted by the settings, {waits}")]


def _shutdown(row: values.Row, blocked: Sequence[tuple[str, str]], plain: bool) -> list[Text]:
    """What the last shutdown did not let through; nothing when all went as it was asked."""
    said = {
        "held": "it held {0} back, so the host came up in what it ran before",
        "restored": "it put the system that ran back in front of {0}",
        "released": "it let {0} through all the same" if values.pairs(row.get("reasons")) else None,
    }.get(values.text(row, "result"))
    if said is None:
        return []
    if _UNFINISHED & {code for code, _ in values.pairs(row.get("reasons"))}:
        said = "the gate did not come to its end"
    elif any(code == "gate-ignored" for code, _ in blocked):
        said = said.partition(",")[0]
    when = words.when(values.number(row, "time"))
    what = said.format(words.deployment(values.text(row, "deployment")) or "a deployment")
    return [
        _line("Last shutdown", f"{what} ({when})" if when else what, "yellow"),
        *(
            Text(f"  {'-' if plain else '•'} {words.clean(sentence or code)}")
            for code, sentence in values.pairs(row.get("reasons"))
        ),
    ]


def _line(label: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{label}: ", "bold"), (value, style))


def _head(document: values.Row) -> RenderableType:
    state, gate = (words.clean(values.text(document, key)) for key in ("state", "gate"))
    kind = words.clean(values.text(values.row(document.get("host")), "kind")) or "unknown"
    parts: list[tuple[str, str]] = [("Host: ", "bold"), (kind, "")]
    parts += [("   State: ", "bold"), (state, "")] if state else []
    parts += [("   Gate: ", "bold"), (gate, _gate_style(gate))] if gate not in ("", "none") else []
    policy = words.clean(values.text(document, "policy"))
    parts += [("   Policy: ", "bold"), (policy, "yellow")] if policy not in ("", "hold") else []
    return Text.assemble(*parts)


def _gate_style(gate: str) -> str:
    return {"held": "yellow", "released": "green", "open": "yellow"}.get(gate, "")


def _roles(row: values.Row) -> list[str]:
    """What the deployment is now, the most telling first."""
    return sorted(values.texts(row, "roles"), key=lambda role: (_rank([role]), role))


def _rank(named: Sequence[str]) -> int:
    return min((_ORDER.index(role) for role in named if role in _ORDER), default=len(_ORDER))


def _deployment(row: values.Row, bound: Sequence[values.Row], document: values.Row, plain: bool) -> RenderableType:
    roles = _roles(row)
    key = values.text(row, "key")
    title = (", ".join(map(words.clean, roles)) or "other").capitalize()
    dot = ("*" if plain else "●") if "booted" in roles else " "
    image = values.text(row, "image", "reference")
    lines: list[tuple[str, Text]] = [
        ("Version", Text(_version(row))),
        ("Digest", Text(words.digest(values.text(row, "digest")))),
        ("Deployment", Text(words.deployment(key), style="dim")),
    ]
    if "staged" in roles:
        lines.append(("Status", _ready(row, bound, document)))
    elif "booted" not in roles and row.get("next_boot") is True:
        lines.append(("Status", Text("the next boot starts it", style="green")))
    lines += _bound(bound)
    table = facts()
    for label, value in lines:
        if value.plain:
            table.add_row(f"{label}:", value)
    head = Text.assemble(
        (f"{dot} ", "green"), (f"{title}: ", "bold"), words.reference(image) or words.deployment(key) or "unknown image"
    )
    return Group(head, table)


def _version(row: values.Row) -> str:
    made = words.when(values.number(row, "timestamp"))
    version = words.clean(values.text(row, "version"))
    return f"{version} ({made})" if version and made else version or made


def _ready(row: values.Row, bound: Sequence[values.Row], document: values.Row) -> Text:
    gate, policy, order = (
        values.text(document, "gate"),
        values.text(document, "policy"),
        values.row(document.get("order")),
    )
    lacks = sum(values.text(image, "state") != ImageState.PRESENT for image in bound)
    then = "the next boot starts it"
    if lacks:
        then += (
            f", without the containers of {words.count(lacks, 'image')} that {'is' if lacks == 1 else 'are'} not there"
        )
    if order.get("hold") is False and gate != "held":
        who = f"user {values.number(order, 'uid')} at {words.when(values.number(order, 'given'))}"
        why = words.clean(values.text(order, "reason")) or "no reason given"
        return Text(f"let through as it is by {who} ({why}): {then}", style="yellow")
    if policy in ("warn", "off") and gate == "open" and (lacks or row.get("ready") is not True):
        return Text(f"gate.policy is {policy}: {then}", style="yellow")
    # A deployment that may go through stays locked until shutdown, so the gate is the one to ask.
    if gate == "released" or (not gate and row.get("ready") is True):
        return Text("ready: the next boot starts it", style="green")
    if gate == "held" or row.get("locked") is True:
        return Text("held: the next boot does not start it", style="yellow")
    if gate == "open":
        return Text("nobody holds it: the next boot starts it as it is", style="yellow")
    return Text("")


def _bound(mine: Sequence[values.Row]) -> list[tuple[str, Text]]:
    """How many of the deployment's bound images are there, and the others by name."""
    if not mine:
        return [("Images", Text("none bound", style="dim"))]
    present = [row for row in mine if values.text(row, "state") == ImageState.PRESENT]
    style = "green" if len(present) == len(mine) else "yellow"
    lines = [("Images", Text(f"{len(present)} of {len(mine)} present", style=style))]
    # What is wrong with several of them in the same way is said once.
    alike: dict[tuple[str, str], list[values.Row]] = {}
    for row in mine:
        state = values.text(row, "state")
        if state != ImageState.PRESENT:
            alike.setdefault((state, _reason(row)), []).append(row)
    for (state, reason), rows in alike.items():
        names = [
            f"{words.reference(image_name(row))} ({words.clean(values.text(row, 'unit'))})".strip() for row in rows
        ]
        label = words.clean(state).capitalize() or "Unknown"
        if len(rows) == 1:
            error = row_error(rows[0])
            lines.append((label, Text(f"{names[0]}{': ' + words.clean(error) if error else ''}")))
        else:
            head = f"{len(rows)} images{': ' + words.clean(reason) if reason else ''}"
            lines.append((label, Text("\n".join([head, *(f"  {name}" for name in names)]))))
    unusable = [words.clean(values.text(row, "unit")) for row in mine if values.texts(row, "use_problems")]
    if unusable:
        what = f"{', '.join(unusable)} would not run from the bound image store ('lashctl list' says why)"
        lines.append(("Problems", Text(what, style="yellow")))
    return lines


def _reason(row: values.Row) -> str:
    """The row's error without the name of its image."""
    error = row_error(row)
    for name in sorted({image_name(row), values.text(row, "reference")} - {""}, key=len, reverse=True):
        error = error.replace(name, "…")
    return error


def _job(job: Job) -> str:
    parts = [
        f"{job.id} {words.clean(job.kind)}",
        words.clean(job.state if job.state != "running" else job.stage or job.state),
        f"{job.fraction:.0%}" if job.state == "running" else "",
        words.of(job.bytes_done, job.bytes_total),
        f"{job.items_done} of {job.items_total} done" if job.items_total else "",
        f"since {words.when(job.created)}" if job.created else "",
    ]
    return ", ".join(filter(None, parts))
