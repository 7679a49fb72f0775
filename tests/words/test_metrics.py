# SPDX-License-Identifier: Apache-2.0
"""Both formats as the parsers of prometheus_client read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from lashd.words.metrics import METRICS, Metric, Sample, openmetrics, plain, states

PAGE = (Path(__file__).resolve().parents[2] / "docs/observability.md").read_text(encoding="utf-8")
NASTY = 'a"b\\c\nd{e="f"} 1\n# EOF\n\u2028é\udcff'
READ = NASTY.replace("\udcff", "?")


def parse_openmetrics(text: str):
    return openmetrics_parser.text_string_to_metric_families(text)


def value_for(metric: Metric) -> list[Sample]:
    if metric.kind == "stateset":
        return states(("yes", "no"), "no")
    labels = (NASTY,) * len(metric.labels)
    if metric.kind == "summary":
        return [Sample(labels, 3, "_count"), Sample(labels, 0.25, "_sum")]
    return [Sample(labels, 1)]


ALL = {metric.name: value_for(metric) for metric in METRICS}


def test_openmetrics_is_read_as_it_was_meant() -> None:
    found = {family.name: family for family in parse_openmetrics(openmetrics(ALL))}
    assert list(found) == [metric.name for metric in METRICS]
    for metric in METRICS:
        family = found[metric.name]
        assert (family.type, family.documentation, family.unit) == (metric.kind, metric.help, metric.unit)
        assert len(family.samples) == len(ALL[metric.name])
        for sample in family.samples:
            labels = {"lashd": NASTY} if metric.kind == "stateset" else dict.fromkeys(metric.labels, READ)
            if metric.kind == "stateset":
                assert set(sample.labels) == {metric.name}
            else:
                assert sample.labels == labels


def test_the_older_format_is_read_as_it_was_meant() -> None:
    found = {family.name: family for family in parse_plain(plain(ALL))}
    for metric in METRICS:
        name = metric.name + ("_info" if metric.kind == "info" else "")
        kind = metric.kind if metric.kind in ("counter", "summary") else "gauge"
        assert (found[name].type, found[name].documentation) == (kind, metric.help)
        assert [sample.value for sample in found[name].samples] == [sample.value for sample in ALL[metric.name]]
        if metric.kind != "stateset":
            assert {label for sample in found[name].samples for label in sample.labels.values()} <= {READ}
    assert len(found) == len(METRICS)
    # A collector that does not know OpenMetrics knows a counter by its whole name.
    assert "# TYPE lashd_jobs_total counter\n" in plain(ALL)


@pytest.mark.parametrize("write", [openmetrics, plain])
def test_what_has_no_value_is_not_there(write) -> None:
    text = write({"lashd_wasted_reboots": [Sample((), 2)], "lashd_jobs": []})
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["lashd_wasted_reboots 2"]
    assert "lashd_jobs" not in text


def test_labels_are_bounded() -> None:
    text = openmetrics({"lashd_blocked_by": [Sample(("x" * 100_000,), 1)]})
    assert len(text) < 600


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"lashd_[a-z_]+", metric.name)
        assert not metric.unit or metric.name.endswith(f"_{metric.unit}")
        assert metric.unit in ("", "bytes", "seconds")
        assert not metric.name.endswith(("_total", "_info", "_count", "_sum"))
        assert metric.help.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_the_page_has_every_metric() -> None:
    table = re.findall(r"^\| `(lashd_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", PAGE, re.MULTILINE)
    suffixes = {"counter": "_total", "info": "_info"}
    wanted = [
        (
            each.name + suffixes.get(each.kind, ""),
            each.kind,
            ", ".join(f"`{label}`" for label in each.labels),
            each.help,
        )
        for each in METRICS
    ]
    assert [(name, kind, labels.strip(), text) for name, kind, labels, text in table] == wanted


def test_the_alerts_of_the_page_name_metrics_that_there_are() -> None:
    whole = {name for metric in METRICS for name in (metric.name, metric.name + "_total", metric.name + "_info")}
    used = re.findall(r"lashd_\w+", "".join(re.findall(r"expr: (.+)", PAGE)))
    assert len(used) > 6
    assert set(used) <= whole
