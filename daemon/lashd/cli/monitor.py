# SPDX-License-Identifier: Apache-2.0
"""`lashctl monitor`: everything that happens, one line each, until Ctrl-C."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lashd.bus.contract import JOB, MANAGER
from lashd.bus.paths import NONE
from lashd.cli import job as jobs
from lashd.cli import jsonout, values
from lashd.cli.client import Client, News
from lashd.cli.failures import Failure
from lashd.cli.job import Job
from lashd.cli.render import progress, words


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: as JSON, and as the lines for a person (none for what only programs care about)."""

    name: str
    data: Mapping[str, Any]
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class Watcher:
    """Turns news into events; remembers the jobs, because a change tells only what changed."""

    jobs: dict[str, Job] = field(default_factory=dict)

    def events(self, news: News) -> Iterator[Event]:
        if news.owner is not None:
            self.jobs.clear()
            running = bool(news.owner)
            yield Event("lashd", {"running": running}, ("lashd has started" if running else "lashd has stopped",))
        elif news.interface == MANAGER and news.member in ("JobNew", "JobDone"):
            yield from self._job_signal(news)
        elif changed := news.changed(MANAGER):
            lines = tuple(line for key, value in changed.items() if (line := _state_line(key, value)))
            yield Event("state", {"changed": changed}, lines)
        elif changed := news.changed(JOB):
            before = self.jobs.get(news.path)
            after = jobs.merge(before or jobs.read(news.path, {}), changed)
            self.jobs[news.path] = after
            lines = tuple(f"{after.title}: {line.strip()}" for line in progress.news(before, after))
            yield Event("job-changed", {"job": after.id, "path": after.path, "changed": changed}, lines)

    def _job_signal(self, news: News) -> Iterator[Event]:
        body = [*news.body, *[""] * 6]
        path = str(body[1])
        known = self.jobs.get(path) or jobs.read(path, {})
        job = jobs.merge(known, {"id": body[0], "kind": body[2]})
        facts: dict[str, Any] = {"job": job.id, "path": path, "kind": job.kind}
        if news.member == "JobNew":
            self.jobs[path] = job
            yield Event("job-new", facts, (f"{job.title}: started",))
            return
        self.jobs.pop(path, None)
        result, error_name, message = (str(part) for part in body[3:6])
        facts |= {"result": result, "error_name": error_name, "error_message": message}
        yield Event("job-done", facts, (f"{job.title}: {': '.join(filter(None, (result, error_name, message)))}",))


def _state_line(key: str, value: object) -> str:
    """A change of the Manager's state, for a person; what every change brings along (Generation) is left out."""
    if key in ("state", "gate", "host_kind") and isinstance(value, str):
        return f"{key.replace('_', ' ')}: {value}"
    if key in ("booted", "staged", "rollback") and isinstance(value, str):
        return f"{key}: {'none' if value == NONE else words.deployment(_key(value))}"
    if key == "blocked_by":
        return "; ".join(f"waiting for: {sentence or code}" for code, sentence in values.pairs(value))
    if key == "last_error" and (found := values.pairs([value])) and any(found[0]):
        return f"last error: {': '.join(filter(None, found[0]))}"
    return ""


def _key(path: str) -> str:
    """The deployment's key out of its object path (`_2e` is a dot)."""
    last = path.rpartition("/")[2]
    return re.sub(r"_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), last)


async def monitor(client: Client, arguments: Any) -> int:
    """Ends only by Ctrl-C, or when the bus itself is gone."""
    watcher = Watcher()
    async with client.watch() as feed:
        state = await client.manager()
        _tell(Event("state", {"changed": state}, (f"state: {values.text(state, 'state')}",)), json=arguments.json)
        path = values.text(state, "active_job")
        if path not in ("", NONE):
            try:
                watcher.jobs[path] = await client.job(path)
            except Failure:
                pass  # it has just ended
            else:
                job = watcher.jobs[path]
                _tell(
                    Event(
                        "job",
                        {"job": job.id, "path": path, "kind": job.kind},
                        (f"{job.title}: {job.stage or job.state}",),
                    ),
                    json=arguments.json,
                )
        while True:
            news = await feed.next()
            for event in watcher.events(news) if news else ():
                _tell(event, json=arguments.json)


def _tell(event: Event, *, json: bool) -> None:
    now = time.time()
    if json:
        jsonout.line({"time": round(now, 3), "event": event.name, **jsonout.keys(event.data)})
    else:
        for line in event.lines:
            print(f"{time.strftime('%H:%M:%S', time.localtime(now))} {words.clean(line)}", flush=True)
