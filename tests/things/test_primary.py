# SPDX-License-Identifier: Apache-2.0
"""The host's own store: where it is, and when it goes before the bound one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lashd.things.primary import PrimaryStore, graph_root
from lashd.words.reference import parse_reference
from tests.support.images import build
from tests.support.registry import Registry


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (None, "/var/lib/containers/storage"),
        ('[storage]\ngraphroot = "/data/images"\n', "/data/images"),
        ('[storage]\ndriver = "overlay"\n', "/var/lib/containers/storage"),
        ('[storage]\ngraphroot = "relative"\n', "/var/lib/containers/storage"),
        ("[storage\n", "/var/lib/containers/storage"),
        ("storage = 3\n", "/var/lib/containers/storage"),
    ],
)
def test_where_it_is(tmp_path: Path, text: str | None, place: str) -> None:
    if text is not None:
        (tmp_path / "etc/containers").mkdir(parents=True)
        (tmp_path / "etc/containers/storage.conf").write_text(text)
    assert graph_root(tmp_path) == place


def test_etc_goes_before_usr(tmp_path: Path) -> None:
    for name, place in (("etc", "/a"), ("usr/share", "/b")):
        (tmp_path / name / "containers").mkdir(parents=True)
        (tmp_path / name / "containers/storage.conf").write_text(f'[storage]\ngraphroot = "{place}"\n')
    assert graph_root(tmp_path) == "/a"


def test_a_stray_pull_shadows_the_bound_image(tmp_path: Path, registry: Registry) -> None:
    image = build([b"stray"])
    registry.push("edge/agent", image, "latest")
    name = registry.reference("edge/agent", "latest")
    primary, reference = PrimaryStore(tmp_path), parse_reference(name)
    before = primary.signature()
    assert not primary.shadows(reference, "x")
    graph = tmp_path / "var/lib/containers/storage"
    graph.parent.mkdir(parents=True)
    target = f"containers-storage:[overlay@{graph}+{tmp_path}/run]{name}"
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", target]
    subprocess.run(["unshare", "--mount", *copy], check=True, capture_output=True)
    assert primary.signature() != before
    assert primary.shadows(reference, "x" * 64)
    assert not primary.shadows(reference, image.image_id), "the very same image does no harm"
    assert not primary.shadows(parse_reference("quay.io/edge/agent"), "")
    (graph / "overlay-images/images.json").write_text("{")
    assert not primary.shadows(reference, "")


def test_a_storage_conf_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "etc/containers").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/containers/storage.conf")
    assert graph_root(tmp_path) == "/var/lib/containers/storage"
