# SPDX-License-Identifier: Apache-2.0
"""A real bus with a policy like the system bus's, our own policy included, and the door served on it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lashd.bus  # noqa: F401  (the package itself stays, its modules are exchanged)
from tests.bus.fake import FakeService
from tests.support import brokers
from tests.support.caller import Caller, caller
from tests.support.polkitd import Polkitd, polkitd
from tests.support.users import as_user

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534

# What a distribution's system.conf says, as far as it matters here.
POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={directory}/socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
  <include ignore_missing="yes">/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf</include>
</busconfig>
"""


NO_BROKER = pytest.mark.skipif(brokers.program() is None, reason="no dbus-broker here; packaging/setup brings it")
# What these are about does not depend on the bus.
ON_ONE_BUS = ("test_damaged", "test_other_clients")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What meets the bus is tried on both that distributions use."""
    if "polkit" in metafunc.fixturenames:
        return  # on a bus of its own
    if "address" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] not in ON_ONE_BUS:
        both = ["dbus-daemon", pytest.param("dbus-broker", marks=NO_BROKER)]
        metafunc.parametrize("address", both, indirect=True, scope="session")


@contextlib.contextmanager
def private_bus(
    services: str = "", broker: str = "dbus-daemon", limits: str = ""
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A bus of its own: (address, process). `services`: the directory of what a dbus-daemon can start.

    `limits`: elements for the configuration of a dbus-daemon.
    """
    # Below /tmp, because another user must reach it and a socket's path has only 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="lashd-bus-", dir="/tmp"))
    directory.chmod(0o755)
    config = directory / "bus.conf"
    startable = f"<servicedir>{services}</servicedir>\n</busconfig>" if services else "</busconfig>"
    policy = POLICY.replace("</busconfig>", limits + startable)
    ours = REPOSITORY / "dbus/io.github.lashd1.conf"
    if broker == "dbus-broker":
        try:
            with brokers.dbus_broker(directory / "socket", [POLICY, ours.read_text()]) as process:
                yield f"unix:path={directory}/socket", process
        finally:
            shutil.rmtree(directory)
        return
    config.write_text(policy.format(directory=directory, policy=ours))
    # It says its address when it listens; the socket's file is there a moment before, and refuses.
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    try:
        said = daemon.stdout.readline().decode()
        assert said, "dbus-daemon does not take its configuration"
        yield said.strip(), daemon
    finally:
        daemon.terminate()
        daemon.wait()
        daemon.stdout.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a bus: dbus-daemon's, or of the one that the test is parametrised with."""
    with private_bus(broker=getattr(request, "param", "dbus-daemon")) as (address, _daemon):
        yield address


@contextlib.contextmanager
def bus_with_polkit() -> Iterator[Polkitd]:
    """polkitd on a bus of its own: a module whose fixture `address` is that bus has its door there."""
    with (
        private_bus() as (address, _daemon),
        tempfile.TemporaryDirectory(prefix="lashd-polkit-", dir="/tmp") as work,
        polkitd(address, Path(work)) as running,
    ):
        yield running


@contextlib.asynccontextmanager
async def session(polkit: Polkitd, uid: int) -> AsyncIterator[Caller]:
    """A process of user `uid`, in that user's login session if there is one."""
    async with caller(polkit.address, uid) as process:
        polkit.log_in(process.pid, uid)
        yield process


@pytest.fixture(params=["dbus_next", "dbus_fast"])
def bus_modules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of lashd.bus, imported anew on top of one of the two libraries."""
    monkeypatch.setenv("LASHD_DBUS", request.param)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("lashd.bus.")}
    package = sys.modules["lashd.bus"]
    attributes = dict(vars(package))
    names = (
        "library",
        "service",
        "objects",
        "rows",
        "contract",
        "tree",
        "dispatch",
        "authorise",
        "options",
        "paths",
        "polkit",
    )
    yield SimpleNamespace(**{name: importlib.import_module(f"lashd.bus.{name}") for name in names})
    for name in [name for name in sys.modules if name.startswith("lashd.bus.")]:
        del sys.modules[name]
    sys.modules.update(before)
    vars(package).update(attributes)


@pytest.fixture
async def door(address: str, bus_modules: SimpleNamespace) -> AsyncIterator[SimpleNamespace]:
    """The double served on the bus, and a client: service, client, dispatcher, call(member, …), modules."""
    library = bus_modules.library
    connection = await library.connect(address, largest=library.SERVICE_LIMIT)
    service = FakeService()
    dispatcher = await bus_modules.service.open_doors(connection, service)
    client = await library.connect(address)

    async def call(
        member: str,
        signature: str = "",
        *body: Any,
        path: str = "/io/github/lashd1",
        interface: str = "Manager",
        **more: Any,
    ) -> Any:
        """Call the service; an interface without a dot is one of ours. Returns the only value, or all of them."""
        full = interface if "." in interface or not interface else f"io.github.lashd1.{interface}"
        answer = await client.call("io.github.lashd1", path, full, member, signature, list(body), **more)
        return answer[0] if len(answer) == 1 else answer

    yield SimpleNamespace(
        service=service,
        client=client,
        connection=connection,
        dispatcher=dispatcher,
        call=call,
        address=address,
        Variant=library.Variant,
        BusError=library.BusError,
        Match=library.Match,
        modules=bus_modules,
    )
    await service.stop()
    await dispatcher.stop()
    await client.disconnect()
    await connection.disconnect()


async def run(*argv: str, uid: int = 0, address: str = "") -> SimpleNamespace:
    """Run a client program as user `uid`; stdout, stderr, status."""
    process = await asyncio.create_subprocess_exec(
        *(as_user(uid) if uid else ()),
        *argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"DBUS_SYSTEM_BUS_ADDRESS": address, "PATH": "/usr/bin:/bin"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return SimpleNamespace(stdout=out.decode(), stderr=err.decode(), status=process.returncode)
