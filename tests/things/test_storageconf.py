# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from lashd.things.storageconf import GRAPH_ROOT, RUN_ROOT, StorageConf, is_bound_store, parse_storage

STORE = "/usr/lib/bootc/storage"


@pytest.mark.parametrize(
    ("text", "conf"),
    [
        ("", StorageConf()),
        ('[storage]\ngraphroot = "/data"\nrunroot = "/run/data"\n', StorageConf("/data", "/run/data")),
        ('[storage]\nimagestore = "/images"\n', StorageConf(image_store="/images")),
        ('[storage]\ngraphroot = "relative"\nrunroot = 3\n', StorageConf(GRAPH_ROOT, RUN_ROOT)),
        ("storage = 3", StorageConf(valid=False)),
        ("[storage", StorageConf(valid=False)),
        ("a=" + "[" * 5000, StorageConf(valid=False)),
        ("a=" + "[" * 1500, StorageConf(valid=False)),
        ("x=\n" * 3 + "9" * 5000, StorageConf(valid=False)),
        ("x=" + "9" * 5000, StorageConf(valid=False)),
        ('[storage.options]\nadditionalimagestores = ["/x", 3, "y"]', StorageConf(additional=("/x",))),
    ],
)
def test_what_it_says(text: str, conf: StorageConf) -> None:
    assert parse_storage(text) == conf


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f'[storage.options]\nadditionalimagestores = ["/x", "{STORE}"]', True),
        (f'[storage.options]\nadditionalimagestores = ["{STORE}/"]', True),
        ('[storage.options]\nadditionalimagestores = ["/x"]', False),
        (f'[storage.options]\nadditionalimagestores = "{STORE}"', False),
        (f'#[storage.options]\n#additionalimagestores = ["{STORE}"]', False),
        ("[storage.options]\nadditionalimagestores = [3]", False),
        ("storage = 3", False),
        ("[storage]\noptions = 3", False),
        ("[storage", False),
    ],
)
def test_whether_it_names_the_bound_store(text: str, named: bool) -> None:
    assert parse_storage(text).names_bound_store is named


def test_the_bound_store_has_several_names() -> None:
    assert is_bound_store("/sysroot/ostree/bootc/storage/")
    assert not is_bound_store("/var/lib/containers/storage")
