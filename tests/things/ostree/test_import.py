# SPDX-License-Identifier: Apache-2.0
"""Layers into a real repository, the result checked out again and looked at as a filesystem."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lashd.things.ostree import names
from lashd.things.ostree.backend import OstreeBackend
from lashd.things.ostree.client import Worker
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import HostImage
from lashd.words.progress import ItemProgress, StageStarted, ignore
from tests.support.faulty import Cut, Faulty, Stall
from tests.support.registry import Registry
from tests.things.ostree.conftest import Host, needs_root
from tests.things.ostree.images import (
    BASE,
    Entry,
    Layer,
    file,
    folder,
    hardlink,
    opaque,
    sha256,
    special,
    symlink,
    tar,
    whiteout,
    write_image,
)

pytestmark = needs_root

CAPABILITY = "\x01\x00\x00\x02\x00\x04" + "\x00" * 14  # cap_net_bind_service=ep, as the kernel stores it


def snapshot(root: Path) -> dict[str, str]:
    """Every path below `root`: kind, mode, owner, content or target, xattrs."""
    found = {}
    for directory, dirs, files in os.walk(root):
        for name in [*dirs, *files]:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = describe(path)
    return found


def describe(path: Path) -> str:
    info = path.lstat()
    owner = f" {info.st_uid}:{info.st_gid}" if info.st_uid or info.st_gid else ""
    mode = f"{stat.S_IMODE(info.st_mode):o}"
    xattrs = "".join(
        f" {name}={os.getxattr(path, name, follow_symlinks=False).hex()}"
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    )
    if stat.S_ISLNK(info.st_mode):
        return f"l{owner} -> {path.readlink()}{xattrs}"
    if stat.S_ISDIR(info.st_mode):
        return f"d {mode}{owner}{xattrs}"
    if stat.S_ISREG(info.st_mode):
        data = path.read_bytes()
        return f"f {mode}{owner} {data.decode() if len(data) < 50 else sha256(data)}{xattrs}"
    return f"special {stat.S_IFMT(info.st_mode):o}"


def gnu(entries: list[Entry]) -> bytes:
    """Names as raw bytes, without pax headers."""
    import io

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.size, member.type = len(entry.data), entry.type_
            archive.addfile(member, io.BytesIO(entry.data))
    return out.getvalue()


# Layers over BASE, and what must be at some paths (None: nothing); the list of dropped entries last.
Case = tuple[list[Layer], dict[str, str | None], list[str]]
CASES: dict[str, Case] = {
    "whiteout of a file": (
        [[file("usr/a", "1"), file("usr/b", "2")], [whiteout("usr/a")]],
        {"usr/a": None, "usr/.wh.a": None, "usr/b": "f 644 2"},
        [],
    ),
    "whiteout of a directory, made anew in the same layer": (
        [[file("usr/d/old", "1")], [whiteout("usr/d"), folder("usr/d", 0o700), file("usr/d/new", "2")]],
        {"usr/d/old": None, "usr/d/new": "f 644 2", "usr/d": "d 700"},
        [],
    ),
    "whiteout beside the new file, in either order: it hides only what is below": (
        [
            [file("usr/a", "1"), file("usr/b", "1")],
            [file("usr/a", "2"), whiteout("usr/a")],
            [whiteout("usr/b"), file("usr/b", "2")],
        ],
        {"usr/a": "f 644 2", "usr/b": "f 644 2"},
        [],
    ),
    "opaque directory, its new content in the same layer, before and after the mark": (
        [[file("usr/d/x", "1"), file("usr/d/e/y", "1")], [file("usr/d/a", "2"), opaque("usr/d"), file("usr/d/b", "2")]],
        {"usr/d/x": None, "usr/d/e": None, "usr/d/a": "f 644 2", "usr/d/b": "f 644 2", "usr/d/.wh..wh..opq": None},
        [],
    ),
    "whiteout in /etc": (
        [[file("etc/a", "1"), file("etc/b/c", "1")], [whiteout("etc/a"), opaque("etc/b"), file("etc/b/d", "2")]],
        {"usr/etc/a": None, "usr/etc/b/c": None, "usr/etc/b/d": "f 644 2", "usr/etc/hostname": "f 644 host\n"},
        [],
    ),
    "whiteout of all of /etc": ([[whiteout("etc")]], {"usr/etc": None, "usr/lib": "d 755"}, []),
    "whiteout of /usr spares what came from /etc and /var": (
        [[file("var/lib/x", "v")], [whiteout("usr"), *BASE[:6]]],
        {
            "usr/lib/os-release": None,
            "usr/etc/hostname": "f 644 host\n",
            "usr/share/factory/var/lib/x": "f 644 v",
            "usr/lib/modules/6.1/vmlinuz": "f 644 kernel",
        },
        [],
    ),
    "opaque /usr spares what came from /etc": (
        [[opaque("usr"), *BASE[:6]]],
        {"usr/lib/os-release": None, "usr/etc/hostname": "f 644 host\n"},
        [],
    ),
    "mode and owner of a directory that exists": (
        [[folder("usr/d"), file("usr/d/x", "1")], [folder("usr/d", 0o700, uid=33, gid=34)]],
        {"usr/d": "d 700 33:34", "usr/d/x": "f 644 1"},
        [],
    ),
    "a parent that is only implied changes nothing below": (
        [[folder("usr/d", 0o2750, uid=1)], [file("usr/d/x", "1"), file("usr/n/x", "1")]],
        {"usr/d": "d 2750 1:0", "usr/d/x": "f 644 1", "usr/n": "d 755"},
        [],
    ),
    "file over directory": ([[file("usr/d/x", "1")], [file("usr/d", "2")]], {"usr/d": "f 644 2"}, []),
    "directory over file": (
        [[file("usr/d", "1")], [folder("usr/d"), file("usr/d/x", "2")]],
        {"usr/d": "d 755", "usr/d/x": "f 644 2"},
        [],
    ),
    "link over directory, directory over link": (
        [[file("usr/a/x", "1"), symlink("usr/b", "a")], [symlink("usr/a", "lib"), folder("usr/b"), file("usr/b/y")]],
        {"usr/a": "l -> lib", "usr/b": "d 755", "usr/b/y": "f 644 "},
        [],
    ),
    "hard link in the layer": (
        [[file("usr/a", "1", 0o4755, uid=5), hardlink("usr/b", "usr/a"), hardlink("usr/c", "./usr/b")]],
        {"usr/b": "f 4755 5:0 1", "usr/c": "f 4755 5:0 1"},
        [],
    ),
    "hard link from and to /etc": (
        [[file("etc/a", "1"), hardlink("usr/b", "etc/a"), file("usr/c", "2"), hardlink("etc/d", "/usr/c")]],
        {"usr/b": "f 644 1", "usr/etc/d": "f 644 2"},
        [],
    ),
    "hard link into a lower layer": (
        [[file("usr/a", "1", 0o600)], [hardlink("usr/b", "usr/a"), hardlink("etc/c", "usr/b")]],
        {"usr/a": "f 600 1", "usr/b": "f 600 1", "usr/etc/c": "f 600 1"},
        [],
    ),
    "hard link into a lower layer's /etc, deleted in the same layer and higher up": (
        [[file("etc/a", "1")], [whiteout("etc/a"), hardlink("usr/b", "etc/a")], [whiteout("usr/b"), file("usr/c")]],
        {"usr/etc/a": None, "usr/b": None, "usr/c": "f 644 "},
        [],
    ),
    "hard link to a file deleted higher up": (
        [[file("usr/a", "1")], [hardlink("usr/b", "usr/a")], [whiteout("usr/a")]],
        {"usr/a": None, "usr/b": "f 644 1"},
        [],
    ),
    "hard link to a symbolic link": (
        [[symlink("usr/a", "lib"), hardlink("usr/b", "usr/a")]],
        {"usr/b": "l -> lib"},
        [],
    ),
    "hard link to ostree's own objects in the image": (
        [
            [
                file("sysroot/ostree/repo/objects/aa/b.file", "1"),
                hardlink("usr/a", "sysroot/ostree/repo/objects/aa/b.file"),
            ]
        ],
        {"usr/a": "f 644 1", "sysroot": "d 755", "sysroot/ostree": None},
        [],
    ),
    "attributes": (
        [
            [
                file(
                    "usr/a", xattrs={"user.z": "1", "user.b": "2", "security.selinux": "system_u:x", "user.empty": ""}
                ),
                file("usr/cap", xattrs={"security.capability": CAPABILITY}),
                folder("usr/d", xattrs={"user.d": "\x00\x01"}),
            ]
        ],
        {
            "usr/a": "f 644  user.b=32 user.z=31",
            "usr/cap": f"f 644  security.capability={CAPABILITY.encode().hex()}",
            "usr/d": "d 755 user.d=0001",
        },
        [],
    ),
    "a mark of overlayfs is no whiteout, and is not kept": (
        [[file("usr/d/x", "1")], [folder("usr/d", xattrs={"trusted.overlay.opaque": "y"})]],
        {"usr/d": "d 755", "usr/d/x": "f 644 1"},
        [],
    ),
    "modes": (
        [[file("usr/s", "1", 0o6755, uid=7, gid=8), folder("usr/t", 0o1777), file("usr/n", "1", 0)]],
        {"usr/s": "f 6755 7:8 1", "usr/t": "d 1777", "usr/n": "f 0 1"},
        [],
    ),
    "devices and FIFOs": (
        [
            [file("usr/c", "1")],
            [
                special("usr/c"),
                special("usr/f", tarfile.FIFOTYPE),
                special("etc/b", tarfile.BLKTYPE),
                hardlink("usr/h", "usr/c"),
            ],
        ],
        {"usr/c": None, "usr/f": None, "usr/h": None},
        ["/usr/c (character device)", "/usr/etc/b (block device)", "/usr/f (FIFO)", "/usr/h (character device)"],
    ),
    "names that are not UTF-8": (
        [
            [file("usr/\udcff", "1"), file("usr/d\udcfe/x", "1"), hardlink("usr/ok", "usr/\udcff")],
            [symlink("usr/l", "x\udcff"), file("usr/é", "1")],
            gnu([file("usr/raw\udce9", b"1"), file("usr/raw", b"1")]),
        ],
        {"usr/ok": "f 644 1", "usr/é": "f 644 1", "usr/l": None, "usr/raw": "f 644 1"},
        [
            "/usr/\\xff (name that is not UTF-8)",
            "/usr/d\\xfe (name that is not UTF-8)",
            "/usr/l (link to a name that is not UTF-8)",
            "/usr/raw\\xe9 (name that is not UTF-8)",
        ],
    ),
    "mount points are emptied": (
        [
            [
                file("run/x", "1"),
                file("tmp/y", "1"),
                folder("tmp", 0o1777),
                special("dev/null"),
                file("boot/vmlinuz", "k"),
            ]
        ],
        {
            "run": "d 755",
            "run/x": None,
            "tmp": "d 1777",
            "tmp/y": None,
            "dev/null": None,
            "boot": "d 755",
            "proc": "d 755",
        },
        [],
    ),
    "/var is for the factory": (
        [[folder("var", 0o755), file("var/lib/x", "1")], [whiteout("var/lib/x"), file("var/lib/y", "2")]],
        {
            "var": "d 755",
            "var/lib": None,
            "usr/share/factory/var/lib/x": None,
            "usr/share/factory/var/lib/y": "f 644 2",
        },
        [],
    ),
    "top level": (
        [[symlink("home", "var/home"), symlink("bin", "usr/bin"), file("opt/x", "1")]],
        {"home": "l -> var/home", "bin": "l -> usr/bin", "opt/x": "f 644 1", "ostree": "l -> sysroot/ostree"},
        [],
    ),
    "a parent that is a link of the same layer": (
        [
            [
                folder("usr/lib"),
                symlink("lib", "usr/lib"),
                file("lib/x", "1"),
                symlink("usr/up", "../../.."),
                file("usr/up/opt/y", "2"),
            ]
        ],
        {"usr/lib/x": "f 644 1", "lib": "l -> usr/lib", "opt/y": "f 644 2", "usr/lib/os-release": "f 644 ID=test\n"},
        [],
    ),
    "the same name twice": (
        [[file("usr/a", "1"), file("usr/a", "2"), folder("usr/b"), file("usr/b/x"), file("usr/b", "3")]],
        {"usr/a": "f 644 2", "usr/b": "f 644 3"},
        [],
    ),
    "bookkeeping of aufs": ([[file("usr/.wh..wh.plnk/x", "1"), file(".wh..wh.aufs")]], {"usr/.wh..wh.plnk": None}, []),
    "odd spellings": (
        [[file("./usr//a", "1"), file("/usr/b", "1"), folder("./"), file("usr/c/./d", "1")]],
        {"usr/a": "f 644 1", "usr/b": "f 644 1", "usr/c/d": "f 644 1"},
        [],
    ),
    "long names": (
        [[file("usr/" + "/".join(["d" * 100] * 10) + "/" + "ü" * 120, "1"), symlink("usr/l", "x" * 1000)]],
        {"usr/" + "/".join(["d" * 100] * 10) + "/" + "ü" * 120: "f 644 1", "usr/l": "l -> " + "x" * 1000},
        [],
    ),
    "an empty layer, as a tar and as no bytes": ([[], b""], {"usr/etc/hostname": "f 644 host\n"}, []),
    "a tar without its end": ([tar([file("usr/a", "1")])[: 1024 + 0]], {"usr/a": "f 644 1"}, []),
}


@pytest.mark.parametrize("name", CASES)
async def test_layers(shared_host: Host, tmp_path: Path, name: str) -> None:
    layers, wanted, dropped = CASES[name]
    tag = sha256(name.encode())[7:20]
    digest = write_image(shared_host.layout, tag, [BASE, *layers], packing=("gzip", "zstd", "plain"))
    fetched = await shared_host.backend.fetch(shared_host.image(tag), expected_digest=digest, report=ignore)
    root = tmp_path / "root"
    shared_host.ostree("checkout", fetched.checksum, str(root))
    found = snapshot(root)
    assert {path: found.get(path) for path in wanted} == wanted
    assert sorted(fetched.dropped) == dropped
    assert not [path for path in found if "/.wh." in f"/{path}"]
    subprocess.run(["rm", "-rf", root], check=True)


async def test_what_was_written_is_sound(shared_host: Host) -> None:
    """Runs after the table: libostree's own checksums hold for every object (order of attributes, modes)."""
    shared_host.ostree("fsck")


PODMAN = """
skopeo --tmpdir "$1" copy -q "oci:$2" "containers-storage:[overlay@$1/graph+$1/run]localhost/x:1" &&
mounted=$(podman --root "$1/graph" --runroot "$1/run" --storage-driver overlay image mount localhost/x:1) &&
cp -a "$mounted/." "$3/"
"""


async def test_the_same_as_podman_mounts(host: Host, tmp_path: Path) -> None:
    """containers-storage is another program's idea of what these layers mean."""
    # podman refuses links into lower layers; for implied parents it forgets the lower mode; it sets no such names.
    unlike = (
        "lower layer",
        "deleted higher up",
        "implied",
        "UTF-8",
        "aufs",
        "no bytes",
        "tar without",
        "ostree's own",
        "beside",
        "made anew",
        "name twice",
        "overlayfs",
    )
    layers: list[Layer] = [BASE]
    for name, (above, _, _) in CASES.items():
        if not any(word in name for word in unlike) and "/usr" not in name and "all of /etc" not in name:
            layers += [with_parents(entries) for entries in above]
    write_image(host.layout, "v1", layers)
    fetched = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    host.ostree("checkout", fetched.checksum, str(tmp_path / "ours"))
    (tmp_path / "theirs").mkdir()
    with tempfile.TemporaryDirectory(prefix="lashd-") as store:  # podman wants a short path
        argv = [store, f"{host.layout}:v1", str(tmp_path / "theirs")]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PODMAN, "sh", *argv]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = {as_ostree(path): facts for path, facts in snapshot(tmp_path / "theirs").items() if not hidden(path)}
    theirs = {path: facts for path, facts in theirs.items() if not facts.startswith("special")}
    ours = snapshot(tmp_path / "ours")
    added = {"ostree", "sysroot", "boot", "dev", "proc", "run", "sys", "tmp", "var", "usr/share", "usr/share/factory"}
    assert {p: f for p, f in ours.items() if p not in added} == {p: f for p, f in theirs.items() if p not in added}
    assert len(ours) > 50


def with_parents(entries: Layer) -> Layer:
    """Without what podman takes for other modes than the ones below."""
    assert not isinstance(entries, bytes)
    parents = [folder(name) for name in ("usr", "etc", "usr/d", "usr/lib")]
    return [parent for parent in parents if parent.name not in {entry.name for entry in entries}] + list(entries)


def as_ostree(path: str) -> str:
    if path.split("/")[0] == "etc":
        return f"usr/{path}"
    return f"usr/share/factory/{path}" if path.split("/")[0] == "var" else path


def hidden(path: str) -> bool:
    top, _, rest = path.partition("/")
    return bool(rest) and top in ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp")


HOSTILE: dict[str, tuple[Layer, str]] = {
    "upwards": ([file("usr/../../etc/passwd", "x")], "leads upwards"),
    "link target upwards": ([hardlink("usr/a", "../../etc/shadow")], "leads upwards"),
    "whiteout of ..": ([file("usr/.wh...")], "whiteout of nothing"),
    "whiteout without a name": ([file("usr/.wh.")], "whiteout of nothing"),
    "file as a directory": ([file("usr/a", "1"), file("usr/a/b", "1")], "something else at once"),
    "endless link": ([symlink("usr/a", "a"), file("usr/a/b", "1")], "too many links"),
    "link to a directory": ([folder("usr/d"), hardlink("usr/a", "usr/d")], "is no file"),
    "link to nothing": ([hardlink("usr/a", "usr/nothing")], "no layer below has"),
    "too deep": ([file("d/" * 300 + "x", "1")], "nested deeper"),
    "not a tar": (b"no tar at all, but long enough to be one" * 100, "not a sound tar"),
    "cut off in a file": (tar([file("usr/a", b"x" * 5000)])[:2048], "ends within a file"),
    "damaged later": (tar([file("usr/a", "1")])[:1024] + b"\x01" * 512, "not a sound tar"),
    "negative owner": ([file("usr/a", "1", uid=2**33)], "no user or group"),
    "huge header": (tar([Entry("usr/" + "x" * 5_000_000)]), "header in it is larger"),
    "NUL in a name": (tar([Entry("usr/a\x00é")]), "cannot be one"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_layers_are_refused(shared_host: Host, name: str) -> None:
    layer, why = HOSTILE[name]
    tag = "bad" + sha256(name.encode())[7:20]
    write_image(shared_host.layout, tag, [BASE, layer])
    with pytest.raises(LashdError, match=why) as caught:
        await shared_host.backend.fetch(shared_host.image(tag), expected_digest=None, report=ignore)
    assert caught.value.name == ErrorName.HOST_COMMAND_FAILED
    assert not caught.value.retryable
    assert f"image/{names.escape('oci:' + str(shared_host.layout) + ':' + tag)}" not in shared_host.ostree("refs")


async def test_a_bomb_is_bounded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(host.layout, "v1", [BASE, [file("usr/zeros", bytes(30_000_000))]])
    monkeypatch.setattr(type(host.backend), "space", lambda self: 10_000_000)
    with pytest.raises(LashdError, match="unpacks to more") as caught:
        await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert caught.value.name == ErrorName.NO_SPACE


async def test_no_kernel(host: Host) -> None:
    write_image(host.layout, "v1", [[file("usr/bin/app", "1")]])
    with pytest.raises(LashdError, match="no kernel"):
        await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert "container/image" not in host.ostree("refs")


async def test_only_what_is_new_is_fetched(host: Host) -> None:
    layers: list[Layer] = [BASE, *([file(f"usr/f{n}", f"{n}" * 1000)] for n in range(4))]
    write_image(host.layout, "v1", layers)
    first = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert len(host.fetched) == 5
    layers[2] = [file("usr/f1", "new")]
    digest = write_image(host.layout, "v1", layers, version="2")
    host.fetched.clear()
    events = []
    second = await host.backend.fetch(host.image("v1"), expected_digest=digest, report=events.append)
    assert len(host.fetched) == 1
    assert second.checksum != first.checksum
    assert isinstance(events[0], StageStarted)
    assert events[0].items_total == 1
    done = [event for event in events if isinstance(event, ItemProgress) and event.state == "done"]
    assert [event.bytes_done for event in done] == [events[0].bytes_total]
    # And nothing at all when nothing is new.
    host.fetched.clear()
    assert await host.backend.fetch(host.image("v1"), expected_digest=digest, report=ignore) == second
    assert host.fetched == []


async def test_the_commit_says_what_bootc_would_read(host: Host) -> None:
    digest = write_image(host.layout, "v1", [BASE], version="41.3")
    fetched = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)

    def metadata(key: str) -> str:
        return host.ostree("show", f"--print-metadata-key={key}", fetched.checksum).strip()

    assert metadata("ostree.manifest-digest") == f"'{digest}'"
    assert metadata("version") == "'41.3'"
    manifest = (host.layout / "blobs/sha256" / digest[7:]).read_text()
    assert metadata("ostree.manifest") == f"'{manifest}'"
    assert '"diff_ids"' in metadata("ostree.container.image-config")
    assert "2026-01-02 03:04:05" in host.ostree("show", fetched.checksum)
    ref = f"ostree/container/image/{names.escape(f'oci:{host.layout}:v1')}"
    assert host.ostree("rev-parse", ref).strip() == fetched.checksum


@pytest.mark.parametrize(
    ("damage", "why", "retryable"),
    [
        (lambda data: data.replace(b"xxx", b"yyy", 1), "arrived as", False),
        (lambda data: data + b"\0", "more than", False),
        (lambda data: data[:700], "arrived as", True),
        (lambda data: data[:2000], "arrived as", True),
        (lambda data: b"", "arrived as", True),
    ],
)
async def test_a_layer_is_what_the_manifest_names_or_it_is_not_kept(
    shared_host: Host, tmp_path: Path, damage: Callable[[bytes], bytes], why: str, retryable: bool
) -> None:
    good = tar([file("usr/a", b"x" * 3000)])
    (tmp_path / "blob").write_bytes(damage(good))
    arguments = {"digest": sha256(good), "size": len(good), "media_type": "", "limit": 1_000_000}
    with (tmp_path / "blob").open("rb") as blob, pytest.raises(LashdError, match=why) as caught:
        await Worker(shared_host.settings, booted=False).call("import-layer", arguments, stdin=blob.fileno())
    assert caught.value.name == ErrorName.DIGEST_MISMATCH
    assert caught.value.retryable == retryable
    assert names.escape(sha256(good)) not in shared_host.ostree("refs")


async def test_a_line_that_breaks_is_tried_again(
    host: Host, registry: Registry, faulty: Faulty, host_root: Path
) -> None:
    """Over a real registry: what has arrived is not fetched again, and the tag is not asked again."""
    digest = write_image(host.layout, "v1", [BASE, [file("usr/a", os.urandom(300_000))]])
    destination = f"docker://{registry.address}/os/host:1"
    argv = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{host.layout}:v1", destination]
    subprocess.run(argv, check=True)
    layer = max((host.layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    faulty.on(f"/blobs/sha256:{layer.name}", Cut(after=1000), times=2)
    settings = replace(host.settings, paths=replace(host.settings.paths, root=host_root))
    image = HostImage(f"{faulty.address}/os/host:1")
    backend = OstreeBackend(settings)
    assert await backend.check(image) == digest
    events: list[ItemProgress] = []
    fetched = await backend.fetch(
        image, expected_digest=digest, report=lambda e: events.append(e) if isinstance(e, ItemProgress) else None
    )
    assert fetched.digest == digest
    assert [event.attempt for event in events if event.state == "retrying"] == [2, 3]
    assert all(event.next_attempt > 1e9 and event.error for event in events if event.state == "retrying")
    assert sum(event.state == "done" for event in events) == 2
    ref = f"ostree/container/image/{names.escape(f'docker://{faulty.address}/os/host:1')}"
    assert host.ostree("rev-parse", ref).strip() == fetched.checksum


async def test_a_line_that_stalls_ends(host: Host, registry: Registry, faulty: Faulty, host_root: Path) -> None:
    write_image(host.layout, "v1", [BASE, [file("usr/a", os.urandom(300_000))]])
    destination = f"docker://{registry.address}/os/host:1"
    argv = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{host.layout}:v1", destination]
    subprocess.run(argv, check=True)
    layer = max((host.layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    faulty.on(f"/blobs/sha256:{layer.name}", Stall(after=1000))
    settings = replace(
        host.settings,
        paths=replace(host.settings.paths, root=host_root),
        pull=replace(host.settings.pull, stall_seconds=1.0, attempts=1),
    )
    with pytest.raises(LashdError, match="nothing came") as caught:
        await OstreeBackend(settings).fetch(
            HostImage(f"{faulty.address}/os/host:1"), expected_digest=None, report=ignore
        )
    assert caught.value.name == ErrorName.TIMEOUT
    assert caught.value.retryable


async def test_another_digest_than_expected(host: Host) -> None:
    write_image(host.layout, "v1", [BASE])
    with pytest.raises(LashdError) as caught:
        await host.backend.fetch(host.image("v1"), expected_digest="sha256:" + "0" * 64, report=ignore)
    assert caught.value.name == ErrorName.DIGEST_MISMATCH
    assert host.fetched == []


async def test_ten_thousand_links(host: Host) -> None:
    links = [hardlink(f"usr/links/{n:05}", "usr/a") for n in range(10_000)]
    write_image(host.layout, "v1", [BASE, [file("usr/a", "1")], links])
    fetched = await host.backend.fetch(host.image("v1"), expected_digest=None, report=ignore)
    assert host.ostree("ls", "-C", fetched.checksum, "/usr/links").count("/usr/links/") == 10_000
