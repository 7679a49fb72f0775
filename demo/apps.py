# SPDX-License-Identifier: Apache-2.0
"""The application images that the host images bind, and the Quadlet files that run them.

Each is busybox with a few lines of shell, FROM scratch: `web` answers on the guest's loopback, `agent` and `probe`
write to the journal. `web` and `probe` share their lowest layer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import Content, Image, LayerBlob, Link, Program, build, files

WEB_PORT = 8080
_SIZES = {"web": 12_000_000, "agent": 20_000_000, "probe": 6_000_000}

# In this kind of host there are no cgroup controllers, and limits cannot be raised.
_QUADLET = """\
[Unit]
Description={description}

[Container]
ContainerName={name}
Image={image}
Pull=never
Network=host
ReadOnly=true
GlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage
PodmanArgs=--cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024
StopTimeout=2

[Install]
WantedBy=multi-user.target
"""
# A process 1 that does not ask for SIGTERM does not get it: without the trap each stop would take its whole time limit.
_WEB = """\
#!/bin/busybox sh
trap 'exit 0' TERM
busybox httpd -f -p 127.0.0.1:{port} -h /www &
echo "web {version} is up"
wait
"""
_LOGGER = """\
#!/bin/busybox sh
trap 'exit 0' TERM
echo "{name} {version} is up"
while :; do busybox sleep 3600 & wait; done
"""


@dataclass(frozen=True)
class App:
    """One application image of one version."""

    name: str
    version: str
    image: Image

    @property
    def repository(self) -> str:
        return f"apps/{self.name}"

    def quadlet(self, reference: str) -> str:
        """The .container file that runs it from the bound image store as `reference`."""
        return _QUADLET.format(description=f"The {self.name} application", name=self.name, image=reference)


def web(tree: Path, version: str) -> App:
    page = f"Ahoy from web {version}\n"
    script = _WEB.format(port=WEB_PORT, version=version)
    own = files({"app": Program(script.encode()), "www/index.html": page, **_payload("web", version)})
    return App("web", version, build([busybox(tree), own], cmd=["/app"]))


def probe(tree: Path, version: str) -> App:
    script = _LOGGER.format(name="probe", version=version).encode()
    own = files({"app": Program(script), **_payload("probe", version)})
    return App("probe", version, build([busybox(tree), own], cmd=["/app"]))


def agent(tree: Path, version: str) -> App:
    """In one layer: it shares none with the others."""
    script = _LOGGER.format(name="agent", version=version).encode()
    own = {"app": Program(script), **_payload("agent", version)}
    return App("agent", version, build([_busybox(tree, own)], cmd=["/app"]))


def _payload(name: str, version: str) -> dict[str, Content]:
    """What an application carries beside its program: some megabytes that do not compress and differ by version."""
    return {"opt/data": random.Random(f"{name} {version}").randbytes(_SIZES[name])}


def busybox(tree: Path) -> LayerBlob:
    return _busybox(tree, {})


def _busybox(tree: Path, more: Mapping[str, Content]) -> LayerBlob:
    program = Program((tree / "usr/bin/busybox").read_bytes())
    common: dict[str, Content] = {"bin/busybox": program, "bin/sh": Link("busybox"), "tmp": None, "run": None}
    return files(common | dict(more))
