# SPDX-License-Identifier: Apache-2.0
"""The XML in dbus/ is documented, and the code serves exactly what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lashd.bus.contract import BOUND_IMAGE, DEPLOYMENT, INTERFACES, JOB, MANAGER, contract, find_directory, parse
from lashd.bus.objects import Door, deployment_row, image_row, job_row, manager_row
from lashd.bus.options import METHODS
from lashd.running.jobs import Initiator
from tests.bus.conftest import REPOSITORY
from tests.bus.fake import FakeService, deployment, image

MEMBER = re.compile(r'<(method|signal|property) name="(\w+)"(.*?)</\1>', re.DOTALL)


@pytest.mark.parametrize("name", INTERFACES)
def test_every_member_is_documented(name: str) -> None:
    text = (REPOSITORY / f"dbus/{name}.xml").read_text()
    assert re.search(rf"<!--\s+{re.escape(name)}:\s+@short_description: .+\s+@since: 0\.1\.0", text)
    found = 0
    for member in MEMBER.finditer(text):
        before = text[: member.start()].rstrip()
        comment = before[before.rindex("<!--") :]
        assert comment.endswith("-->"), member[2]
        assert re.match(rf"<!--\n +{member[2]}:\n", comment), member[2]
        assert "@since: 0.1.0" in comment
        arguments = re.findall(r'<arg name="(\w+)"', member[3])
        assert re.findall(r"@(\w+):", comment) == [*arguments, "since"], member[2]
        assert ("EmitsChangedSignal" in member[3]) == (member[1] == "property")
        found += 1
    interface = contract()[name]
    assert found == len(interface.methods) + len(interface.properties) + len(interface.signals)


async def test_every_method_and_property_is_served_and_no_other() -> None:
    service = FakeService()
    door = Door(None, service, None)  # type: ignore[arg-type]
    job, _joined = service.upgrade({}, Initiator(0))
    tables = {MANAGER: door.manager_methods(), JOB: door.job_methods(job), DEPLOYMENT: {}, BOUND_IMAGE: {}}
    rows = {
        MANAGER: manager_row(service.properties()),
        JOB: job_row(job),
        DEPLOYMENT: deployment_row(deployment()),
        BOUND_IMAGE: image_row(image()),
    }
    for name, interface in contract().items():
        assert tables[name].keys() == interface.methods.keys()
        assert interface.properties.keys() <= rows[name].keys()
    # Whatever else a row holds is a detail of the service, but the Manager's and a job's are exactly the contract's.
    assert rows[MANAGER].keys() == contract()[MANAGER].properties.keys()
    assert rows[JOB].keys() == contract()[JOB].properties.keys()
    with_options = {
        method for item in contract().values() for method, of in item.methods.items() if of.takes.endswith("a{sv}")
    }
    assert with_options == METHODS.keys()
    await service.stop()


def test_every_option_is_documented() -> None:
    for item in contract().values():
        for method in item.methods:
            own = METHODS.get(method, {}).keys() - {"initiator", "reason", "idempotency-key"}
            comment = item.xml[: item.xml.index(f'<method name="{method}"')].rpartition("<!--")[2]
            for key in own:
                assert f'"{key}"' in comment, (method, key)


def test_annotations() -> None:
    assert {name for name, item in contract()[JOB].properties.items() if item.changes == "const"} == {
        *("Id", "Uuid", "Kind", "Initiator", "Created", "Options")
    }
    assert contract()[MANAGER].properties["Version"].changes == "const"
    assert contract()[MANAGER].properties["State"].changes == "true"
    assert (
        parse('<node><interface name="a.b"><property name="C" type="s" access="read"/></interface></node>')["a.b"]
        .properties["C"]
        .changes
        == "true"
    )


def test_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_directory() == REPOSITORY / "dbus"
    installed = tmp_path / "interfaces"
    monkeypatch.setattr("lashd.bus.contract.INSTALLED", installed)
    package = tmp_path / "lib/python3/lashd/bus"
    with pytest.raises(FileNotFoundError):
        find_directory(package)
    installed.mkdir()
    (installed / f"{MANAGER}.xml").touch()
    assert find_directory(package) == installed


def test_no_code_beside_the_contract() -> None:
    assert not list((REPOSITORY / "dbus").glob("**/*.py"))
