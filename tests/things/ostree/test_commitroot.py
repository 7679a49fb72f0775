# SPDX-License-Identifier: Apache-2.0
"""What a commit binds is read from the repository as it is from the checkout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from lashd.steps.discover import discover, discover_in
from lashd.things.ostree.commitroot import CommitRoot
from lashd.things.rootfs import BUDGET, Entry, TooMuch, Unreadable
from lashd.words.progress import ignore
from tests.things.ostree.conftest import Host, needs_root
from tests.things.ostree.images import BASE, file, folder, symlink, write_image
from tests.things.ostree.images import Entry as TarEntry

pytestmark = needs_root
BOUND, QUADLETS = "usr/lib/bootc/bound-images.d", "usr/share/containers/systemd"
LAYER: list[TarEntry] = [
    folder("usr/lib/bootc"),
    folder(BOUND),
    folder("usr/share"),
    folder("usr/share/containers"),
    folder(QUADLETS),
    folder(f"{QUADLETS}/more"),
    folder("etc/containers"),
    folder("etc/containers/systemd"),
    folder("etc/containers/systemd/agent.container.d"),
    file(f"{QUADLETS}/web.image", "[Image]\nImage=registry.example/web:1\n"),
    file(f"{QUADLETS}/agent.container", "[Container]\nImage=registry.example/agent:1\nExec=run\n"),
    file("etc/containers/systemd/agent.container.d/10.conf", "[Container]\nImage=registry.example/agent:2\n"),
    file(f"{QUADLETS}/more/probe.container", "[Container]\nImage=web.image\n"),
    file(f"{QUADLETS}/broken.container", "[Container]\nExec=nothing\n"),
    symlink(f"{BOUND}/web.image", f"/{QUADLETS}/web.image"),
    symlink(f"{BOUND}/agent.container", "../../../share/containers/systemd/agent.container"),
    symlink("usr/share/units", "containers/systemd/more"),
    symlink(f"{BOUND}/probe.container", "/usr/share/units/probe.container"),
    symlink(f"{BOUND}/broken.container", f"/{QUADLETS}/broken.container"),
    symlink(f"{BOUND}/gone.container", "/usr/share/nothing/gone.container"),
    symlink(f"{BOUND}/round.container", "round.container"),
    symlink(f"{BOUND}/through.container", f"/{QUADLETS}/web.image/through.container"),
    folder(f"{BOUND}/folder.container"),
    file(f"{BOUND}/plain.image", "[Image]\nImage=registry.example/plain:1\n"),
]


async def test_as_from_the_checkout(host: Host) -> None:
    write_image(host.layout, "v1", [BASE, LAYER], version="v1")
    fetched = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    open_root = partial(CommitRoot, host.sysroot / "ostree/repo", fetched.checksum)
    early = discover_in(open_root())
    deployment = await host.backend.stage(fetched, host.image("v1"))
    assert early == discover(deployment.root)
    assert [str(image.reference) for image in early.images] == [
        "registry.example/agent:2",
        "registry.example/plain:1",
        "registry.example/web:1",
        "registry.example/web:1",
    ]
    assert len(early.bad) == 5
    with open_root() as root:
        assert sorted(root.list("usr/share"), key=lambda entry: entry.name) == [
            Entry("containers", False, True),
            Entry("units", True, False),
        ]
        assert root.real_path("/etc/hostname") == "usr/etc/hostname"
        assert (root.read("etc/hostname"), root.is_directory("usr/share/units")) == (b"host\n", True)
        assert [entry.name for entry in root.list("usr/share/units")] == ["probe.container"]
        for path, why in (
            (BOUND, "is a directory"),
            ("usr/nothing", "does not exist in this root"),
            (f"{QUADLETS}/web.image/x", "does not exist in this root: part of its path is not a directory"),
            (f"{QUADLETS}/web.image/.", "does not exist in this root: part of its path is not a directory"),
        ):
            with pytest.raises(Unreadable) as caught:
                root.read(path)
            assert caught.value.why == why
    # Nothing is opened that is not whole, or kept in another way.
    repository = host.sysroot / "ostree/repo"
    for commit in ("0" * 64, "../../config"):
        with pytest.raises(OSError, match="no whole commit"):
            CommitRoot(repository, commit)
    trees = tuple((repository / "objects").glob("*/*.dirtree"))
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for content, error in ((b"no tree", OSError), (bytes(BUDGET + 1), TooMuch), (bytes(20 << 20), OSError)):
        for tree in trees:
            tree.write_bytes(content)
        with pytest.raises(error):
            open_root()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    config = repository / "config"
    config.write_text(config.read_text().replace("mode=bare", "mode=bare-user"))
    with pytest.raises(OSError, match="not kept as they are"):
        open_root()
