# SPDX-License-Identifier: Apache-2.0
"""Metrics: which there are, and how they are written down for those who read them.

OpenMetrics is the standard. node_exporter's textfile collector reads the older text format of Prometheus only, which
has neither `info` nor `stateset` and knows a counter by its whole name; so there are two writers for the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info", "stateset", "summary"]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

# Characters of a label's value: what others have written (versions, names of images) may be long.
_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `name` is without the suffix that its samples get (`_total`, `_info`), and ends with its `unit`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value: `labels` in the order of the metric's; `suffix` only for a summary (`_sum`, `_count`)."""

    labels: tuple[str, ...]
    value: float
    suffix: str = ""


METRICS = (
    Metric("lashd_build", "info", "The version of lashd, and the kind of host.", ("version", "host_kind")),
    Metric(
        "lashd_deployment",
        "info",
        "The deployments of this host by their roles.",
        ("role", "deployment", "version", "image", "digest"),
    ),
    Metric("lashd_state", "stateset", "What lashd is at, as the bus has it."),
    Metric("lashd_gate", "stateset", "Whether the staged deployment may pass: none, held, released, open."),
    Metric("lashd_gate_policy", "stateset", "What the settings say about deployments that are not complete."),
    Metric("lashd_last_shutdown", "stateset", "What the gate came to at the last shutdown that it saw."),
    Metric("lashd_blocked_by", "gauge", "Reasons against the next system, or what lacks otherwise.", ("code",)),
    Metric(
        "lashd_staged_since_timestamp_seconds",
        "gauge",
        "When what is staged and not yet booted was first seen.",
        unit="seconds",
    ),
    Metric("lashd_wasted_reboots", "gauge", "Reboots in a row that did not bring up what is staged."),
    Metric("lashd_next_try_timestamp_seconds", "gauge", "When lashd tries again what has failed.", unit="seconds"),
    Metric("lashd_reboot_wanted", "stateset", "When a person or the settings want the reboot."),
    Metric("lashd_reboot_started", "gauge", "Whether lashd has started the reboot."),
    Metric("lashd_bound_images", "gauge", "Bound images by role of their deployment and state.", ("role", "state")),
    Metric(
        "lashd_bound_image_present",
        "gauge",
        "Whether a bound image is complete and verified.",
        ("role", "reference"),
    ),
    Metric("lashd_bound_image_error", "info", "Why a bound image could not be fetched.", ("reference", "error")),
    Metric("lashd_store_bytes", "gauge", "Unpacked size of all layers in the bound image store.", unit="bytes"),
    Metric("lashd_store_layers", "gauge", "Layers in the bound image store."),
    Metric("lashd_store_images", "gauge", "Images in the bound image store."),
    Metric("lashd_fetched_bytes", "counter", "Compressed bytes of layers that jobs have fetched.", unit="bytes"),
    Metric("lashd_fetch_retries", "counter", "Attempts to fetch that failed and were made again."),
    Metric("lashd_jobs_active", "gauge", "Jobs that wait or run."),
    Metric("lashd_jobs", "counter", "Jobs that have ended.", ("kind", "result")),
    Metric("lashd_job_duration_seconds", "summary", "How long jobs took.", ("kind",), "seconds"),
    Metric(
        "lashd_job_last_success_timestamp_seconds",
        "gauge",
        "When a job of this kind last ended well, with or without a change; kept over reboots.",
        ("kind",),
        "seconds",
    ),
    Metric("lashd_last_error", "stateset", "Why the last job that changes the host has failed; none set: it has not."),
)

# By the name of the metric; one that is not there has no value now.
Values = Mapping[str, Sequence[Sample]]


def one(value: float, *labels: str) -> Sample:
    return Sample(labels, value)


def states(possible: Iterable[str], now: str) -> list[Sample]:
    """The samples of a stateset of which `now` is the case; nothing is when it is not one of the `possible`."""
    return [Sample((state,), int(state == now)) for state in possible]


def openmetrics(values: Values) -> str:
    """The exposition in OpenMetrics 1.0."""
    lines: list[str] = []
    for metric in METRICS:
        if samples := values.get(metric.name):
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += [f"# UNIT {metric.name} {metric.unit}"] if metric.unit else []
            lines.append(f"# HELP {metric.name} {_escaped(metric.help)}")
            lines += _lines(metric, samples)
    return "\n".join([*lines, "# EOF", ""])


def plain(values: Values) -> str:
    """The exposition in the text format 0.0.4 of Prometheus."""
    lines: list[str] = []
    for metric in METRICS:
        if samples := values.get(metric.name):
            name = metric.name + _SUFFIXES.get(metric.kind, "")
            lines.append(f"# HELP {name} {metric.help}")
            lines.append(f"# TYPE {name} {metric.kind if metric.kind in _PLAIN_KINDS else 'gauge'}")
            lines += _lines(metric, samples)
    return "\n".join([*lines, ""])


_SUFFIXES = {"counter": "_total", "info": "_info"}
_PLAIN_KINDS = ("gauge", "counter", "summary")


def _lines(metric: Metric, samples: Iterable[Sample]) -> list[str]:
    # In a stateset the label that names the state is called like the metric.
    names = (metric.name,) if metric.kind == "stateset" else metric.labels
    lines = []
    for sample in samples:
        pairs = zip(names, sample.labels, strict=True)
        labels = ",".join(f'{name}="{_escaped(_clean(value))}"' for name, value in pairs)
        name = f"{metric.name}{sample.suffix or _SUFFIXES.get(metric.kind, '')}"
        lines.append(f"{name}{f'{{{labels}}}' if labels else ''} {sample.value!r}")
    return lines


def _clean(text: str) -> str:
    """As it can be written in UTF-8, and no longer than need be."""
    return text[:_LIMIT].encode(errors="replace").decode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
