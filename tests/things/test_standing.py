# SPDX-License-Identifier: Apache-2.0
"""What of the store is in use: by containers, other stores and mounts, all of them real; nothing is overlooked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lashd.things.mounts import mounted_layers, parse_mounts
from lashd.things.standing import read_standing
from lashd.things.store import Store
from lashd.words.errors import ErrorName, LashdError
from tests.conftest import REPOSITORY
from tests.support.containers import LIMITS, Podman, sleeper
from tests.support.images import build
from tests.support.stores import make_store, put, stored

WEB, OTHER = "quay.io/edge/web", "quay.io/edge/other"
SHORT = "ABCDEFGHIJKLMNOPQRSTUVWXY0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def chain(store: Store, name: str) -> list[str]:
    return store.index().known_chain(stored(store, name).top_layer)


def used(store: Store, root: Path) -> set[str]:
    """Images of the store that are used as such, or by their topmost layer."""
    standing = read_standing(store, root)
    return {
        image.id for image in store.index().images if image.id in standing.images or image.top_layer in standing.layers
    }


# ---- containers ----


@pytest.mark.parametrize("argv", [("run", "--detach"), ("run", "--detach", "--rm"), ("create",), ("create", "--rm")])
def test_a_container_stands_on_its_image_until_it_is_gone(store: Store, argv: tuple[str, ...]) -> None:
    one, two = sleeper(f"{argv}"), sleeper(f"{argv} 2")
    put(store, one, f"{WEB}:1")
    put(store, two, f"{WEB}:2")
    with Podman(store) as podman:
        assert used(store, podman.root) == set()
        podman(*argv, "--name=web", *LIMITS, f"{WEB}:1")
        assert used(store, podman.root) == {one.image_id}
        standing = read_standing(store, podman.root)
        assert standing.images == {one.image_id: "the container web"}
        # By the running container's mount alone, too, and by the layer that podman made for it.
        assert chain(store, f"{WEB}:1")[0] in standing.layers
        podman("rm", "--force", "--time=0", "web")
        assert used(store, podman.root) == set()


def test_a_running_container_of_an_unknown_store_is_seen_by_its_mount(store: Store, tmp_path: Path) -> None:
    put(store, sleeper("unknown store"), f"{WEB}:1")
    with Podman(store) as podman:
        podman("run", "--detach", "--rm", "--name=web", *LIMITS, f"{WEB}:1")
        layers = read_standing(store, tmp_path / "elsewhere").layers
        assert set(chain(store, f"{WEB}:1")) <= set(layers)
        assert "a mount of process" in layers[chain(store, f"{WEB}:1")[1]]


def test_an_image_of_the_primary_store_may_stand_on_a_layer_of_the_bound_one(store: Store, tmp_path: Path) -> None:
    base = build([{"base": b"for both"}])
    put(store, base, f"{WEB}:1")
    with Podman(store) as podman:
        (tmp_path / "Containerfile").write_text(f"FROM {WEB}:1\nCOPY Containerfile /x\n")
        podman("build", "--pull-never", "--quiet", "--tag=localhost/built", str(tmp_path))
        podman("rmi", "--all", "--force", check=False)
        podman("build", "--pull-never", "--quiet", "--tag=localhost/built", str(tmp_path))
        standing = read_standing(store, podman.root)
        assert standing.images == {}
        assert (
            "localhost/built" in standing.layers[chain(store, f"{WEB}:1")[0]]
            or "the layer" in (standing.layers[chain(store, f"{WEB}:1")[0]])
        )


def test_what_a_store_has_itself_it_does_not_take_from_the_bound_one(store: Store, tmp_path: Path) -> None:
    write_store(tmp_path / "var/lib/containers/storage", images=["a"], layers=[("b", "c"), ("c", "")])
    write(tmp_path, "overlay-containers/containers.json", [{"id": "1" * 64, "image": "a" * 64, "layer": "b" * 64}])
    standing = read_standing(store, tmp_path)
    assert standing.images == standing.layers == {}


def write(root: Path, name: str, entries: object, graph: str = "var/lib/containers/storage") -> Path:
    path = root / graph / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def write_store(graph: Path, *, images: list[str], layers: list[tuple[str, str]]) -> None:
    write(graph, "overlay-images/images.json", [{"id": each * 64} for each in images], "")
    found = [{"id": one * 64, "parent": parent * 64} for one, parent in layers]
    write(graph, "overlay-layers/layers.json", found, "")


@pytest.mark.parametrize(
    ("conf", "place"),
    [
        ("", "var/lib/containers/storage"),
        ("", "run/containers/storage"),
        ('[storage]\ngraphroot = "/data"\n', "data"),
        ('[storage]\ngraphroot = "/data"\n', "var/lib/containers/storage"),
        ('[storage]\nrunroot = "/run/data"\n', "run/data"),
        ('[storage]\nimagestore = "/data"\n', "data"),
        ('[storage.options]\nadditionalimagestores = ["/data", "/usr/lib/bootc/storage"]\n', "data"),
    ],
)
@pytest.mark.parametrize("directory", ["etc/containers", "usr/share/containers", "etc/containers/storage.conf.d"])
def test_where_containers_are_looked_for(store: Store, tmp_path: Path, conf: str, place: str, directory: str) -> None:
    name = "x.conf" if directory.endswith(".d") else "storage.conf"
    (tmp_path / directory).mkdir(parents=True)
    (tmp_path / directory / name).write_text(conf)
    for file, image in (("containers.json", "a"), ("volatile-containers.json", "b")):
        write(tmp_path, f"overlay-containers/{file}", [{"id": "1" * 64, "image": image * 64}], place)
    assert set(read_standing(store, tmp_path).images) == {"a" * 64, "b" * 64}


def test_the_bound_store_itself_is_no_user_of_its_images(store: Store, tmp_path: Path) -> None:
    put(store, build([b"own"]), f"{WEB}:1")
    (tmp_path / "etc/containers").mkdir(parents=True)
    place = "/" + str(store.root.relative_to(tmp_path))
    conf = f'[storage.options]\nadditionalimagestores = ["{place}", "/usr/lib/bootc/storage"]\n'
    (tmp_path / "etc/containers/storage.conf").write_text(conf)
    assert used(store, tmp_path) == set()
    # Nor does what it has count as another store's own.
    conf = f'[storage]\ngraphroot = "/data"\nimagestore = "{place}"\n'
    (tmp_path / "etc/containers/storage.conf").write_text(conf)
    containers = [{"id": "1" * 64, "image": stored(store, f"{WEB}:1").id}]
    path = write(tmp_path, "overlay-containers/containers.json", containers, "data")
    assert used(store, tmp_path) == {containers[0]["image"]}
    path.unlink()
    # But its own containers are users, and their layers are used.
    write(
        store.root, "overlay-containers/containers.json", [{"id": "1" * 64, "image": "a" * 64, "layer": "b" * 64}], ""
    )
    standing = read_standing(store, tmp_path)
    assert (set(standing.images), set(standing.layers)) == ({"a" * 64}, {"b" * 64})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("overlay-containers/containers.json", "{"),
        ("overlay-containers/volatile-containers.json", "[3]"),
        ("overlay-images/images.json", '[{"names": []}]'),
        ("overlay-layers/layers.json", "\0"),
        ("overlay-layers/volatile-layers.json", "{}"),
        ("../../../../etc/containers/storage.conf", "[storage"),
        ("../../../../etc/containers/storage.conf", "\udcff"),
        ("../../../../etc/containers/storage.conf.d/x.conf", "storage = 3"),
    ],
)
def test_what_cannot_be_read_is_not_overlooked(store: Store, tmp_path: Path, name: str, content: str) -> None:
    path = Path(os.path.normpath(tmp_path / "var/lib/containers/storage" / name))
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LashdError, match=path.name) as caught:
        read_standing(store, tmp_path)
    assert caught.value.name is ErrorName.STORE_DAMAGED
    assert "nothing was removed" in caught.value.message
    path.unlink()
    path.mkdir()
    if "conf.d" not in name:
        with pytest.raises(LashdError, match=path.name):
            read_standing(store, tmp_path)


def test_empty_index_files_name_nothing(store: Store, tmp_path: Path) -> None:
    write(tmp_path, "overlay-containers/containers.json", "")
    assert read_standing(store, tmp_path).images == {}


# ---- mounts ----


@contextmanager
def held(script: str, *arguments: object) -> Iterator[None]:
    """`script` in a mount namespace of its own, which lives until the block is left."""
    argv = ["unshare", "--mount", "--propagation=private", "sh", "-ec", f"{script}\necho ready; exec cat", "sh"]
    with subprocess.Popen(
        [*argv, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("script", "whole"),
    [
        # $1: overlay directory, $2: top layer, $3: its short name, $4: the layer below, $5: its short name, $6: empty
        ('mount -t overlay x -o "lowerdir=$1/l/$3:$1/l/$5" "$6"', True),
        ('mount -t overlay x -o "lowerdir=$1/$2/diff:$1/$4/diff" "$6"', True),
        ('cd "$1" && mount -t overlay x -o "lowerdir=l/$3:l/$5" "$6"', True),
        ('cd "$1" && mount -t overlay x -o "lowerdir=$2/diff:$4/diff" "$6"', True),
        ('mkdir "$6/a:b" && mount -t overlay x -o "lowerdir=$6/a\\:b:$1/$2/diff" "$6"', False),
        ('mount --bind "$1/$2/diff" "$6"', False),
        # In a namespace in the namespace, where the store itself is not to be seen any more.
        ('mount -t overlay x -o "lowerdir=$1/$2/diff:$1/$4/diff" "$6" && mount -t tmpfs x "$1"', True),
    ],
)
def test_mounts_in_other_namespaces(store: Store, tmp_path: Path, script: str, whole: bool) -> None:
    put(store, build([{"unique": f"{script} below".encode()}, {"unique": script.encode()}]), f"{WEB}:1")
    top, below = chain(store, f"{WEB}:1")
    overlay, place = store.root / "overlay", tmp_path / "m"
    place.mkdir()
    shorts = [(overlay / each / "link").read_text() for each in (top, below)]
    assert mounted_layers(overlay) == {}
    with held(script, overlay, top, shorts[0], below, shorts[1], place):
        assert set(mounted_layers(overlay)) == ({top, below} if whole else {top})
    assert mounted_layers(overlay) == {}


def test_the_same_layer_of_another_store_is_not_this_one(store: Store, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other")
    image = build([{"twin": b"below"}, {"twin": b"above"}])
    for each in (store, other):
        put(each, image, f"{WEB}:1")
    top, below = chain(store, f"{WEB}:1")
    place = tmp_path / "m"
    place.mkdir()
    with held('mount -t overlay x -o "lowerdir=$1/$2/diff:$1/$3/diff" "$4"', other.root / "overlay", top, below, place):
        assert mounted_layers(store.root / "overlay") == {}
        assert set(mounted_layers(other.root / "overlay")) == {top, below}


HIDDEN = """
import sys
from pathlib import Path
from lashd.things.mounts import mounted_layers
from lashd.words.errors import LashdError
try:
    sys.exit(f"found: {mounted_layers(Path(sys.argv[1]))}")
except LashdError as error:
    print(error.name, error.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_processes_that_are_hidden(tmp_path: Path) -> None:
    """As with ProtectProc=ptraceable in a unit without CAP_SYS_PTRACE: then nobody knows what is mounted."""
    script = 'mount -t proc -o hidepid=4 proc /proc && exec setpriv --bounding-set -sys_ptrace -- "$@"'
    argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*argv, sys.executable, "-c", HIDDEN, write_overlay(tmp_path, layers=LAYERS)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "daemon")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("StoreDamaged /proc cannot be read (it does not show all processes)")


def write_proc(directory: Path, tables: dict[str, str]) -> Path:
    """A /proc of one thread for each name, which is also the name of its mount namespace."""
    for number, (namespace, table) in enumerate(tables.items()):
        task = directory / str(number + 1) / "task" / str(number + 1)
        (task / "ns").mkdir(parents=True)
        (task / "ns/mnt").symlink_to(namespace)
        (task / "mountinfo").write_text(table)
    return directory


def write_overlay(directory: Path, *, layers: dict[str, str]) -> Path:
    """The directory `overlay` of a store with these layers: short name → id."""
    (directory / "overlay/l").mkdir(parents=True)
    for short, layer in layers.items():
        (directory / "overlay" / layer / "diff").mkdir(parents=True)
        (directory / "overlay/l" / short).symlink_to(f"../{layer}/diff")
    return directory / "overlay"


def line(options: str, *, kind: str = "overlay", source: str = "overlay", root: str = "/") -> str:
    return f"36 35 0:30 {root} /somewhere rw,relatime shared:1 master:2 - {kind} {source} rw,{options}\n"


ONE, TWO = "1" * 64, "2" * 64
LAYERS = {SHORT: ONE, SHORT.replace("A", "Z"): TWO}
Z = SHORT.replace("A", "Z")


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("", set()),
        (line(f"lowerdir=/usr/lib/bootc/storage/overlay/l/{SHORT}"), {ONE}),
        (line(f"lowerdir+=/s/overlay/l/{SHORT},lowerdir+=/s/overlay/l/{Z},upperdir=/u"), {ONE, TWO}),
        (line(f"lowerdir=/a::/s/overlay/l/{SHORT}"), {ONE}),
        (line(f"datadir+=/s/overlay/l/{SHORT}"), {ONE}),
        (line(f"lowerdir=/a\\134:b/l/{SHORT}/usr"), {ONE}),
        (line(f"lowerdir=/with\\040blank/overlay/{ONE}/diff"), {ONE}),
        (line(f"lowerdir=/x,upperdir=/elsewhere/overlay/{ONE}/diff,workdir=/elsewhere/overlay/{TWO}/work"), {ONE}),
        (line(f"lowerdir=/var/lib/docker/overlay2/l/{SHORT.replace('A', 'Q')}"), set()),
        (line("lowerdir=102/fs:101/fs,upperdir=103/fs,workdir=103/work"), set()),
        (line("lowerdir+=/proc/self/fd/5,datadir+=/proc/self/fd/6", source="composefs"), set()),
        (line("lowerdir=4:5", source="composefs:abc"), set()),
        (line(f"x=/s/overlay/l/{SHORT}", kind="tmpfs"), set()),
        (line("", kind="ext4", root=f"/ostree/bootc/storage/overlay/{ONE}/diff"), {ONE}),
        (line("", kind="ext4", root=f"/ostree/bootc/storage/overlay/{ONE}/merged"), set()),
    ],
)
def test_how_the_kernel_writes_mounts(tmp_path: Path, table: str, found: set[str]) -> None:
    overlay, proc = write_overlay(tmp_path, layers=LAYERS), write_proc(tmp_path / "proc", {"mnt:[1]": table})
    (tmp_path / "proc/self").symlink_to("1")
    assert set(mounted_layers(overlay, proc)) == found


@pytest.mark.parametrize("lower", ["4:5", "/proc/self/fd/4", "/dev/fd/4", "diff:../x", "."])
def test_a_mount_that_cannot_be_told_stops_everything(tmp_path: Path, lower: str) -> None:
    """Large mounts are made with descriptors for names: then what the container's own store says of it counts."""
    overlay = write_overlay(tmp_path, layers=LAYERS)
    upper = tmp_path / "other/overlay" / ("3" * 64) / "diff"
    upper.mkdir(parents=True)
    proc = write_proc(tmp_path / "proc", {"mnt:[1]": line(f"lowerdir={lower},upperdir={upper},workdir=/w")})
    with pytest.raises(LashdError, match="/somewhere") as caught:
        mounted_layers(overlay, proc)
    assert caught.value.name is ErrorName.STORE_DAMAGED
    (upper.parent / "lower").write_text(f"l/{SHORT}:l/{'X' * 26}")
    assert set(mounted_layers(overlay, proc)) == {ONE}


def test_every_namespace_is_read_once_and_ends_are_no_errors(tmp_path: Path) -> None:
    overlay = write_overlay(tmp_path, layers=LAYERS)
    tables = {"mnt:[1]": "", "mnt:[2]": line(f"lowerdir=/s/overlay/l/{SHORT}")}
    proc = write_proc(tmp_path / "proc", tables)
    # A process that has ended, one that ends just now, and a second thread with a namespace of its own.
    (proc / "77").mkdir()
    (proc / "78/task/78").mkdir(parents=True)
    (proc / "79/task/79/ns").mkdir(parents=True)
    (proc / "79/task/79/ns/mnt").symlink_to("mnt:[9]")
    write_proc(tmp_path / "more", {"mnt:[3]": line(f"lowerdir=/s/overlay/l/{Z}")})
    (tmp_path / "more/1/task/1").rename(proc / "1/task/80")
    # Nobody reads it again: it would not be understood.
    write_proc(tmp_path / "again", {"mnt:[1]": "nonsense\n"})
    (tmp_path / "again/1").rename(proc / "99")
    assert set(mounted_layers(overlay, proc)) == {ONE, TWO}
    (proc / "1/task/1/mountinfo").write_text("nonsense\n")
    with pytest.raises(LashdError, match="mountinfo"):
        mounted_layers(overlay, proc)


def test_without_a_store_nothing_is_mounted(tmp_path: Path) -> None:
    assert mounted_layers(tmp_path / "none", tmp_path / "proc") == {}


def test_this_machines_own_mounts_are_understood() -> None:
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            text = table.read_bytes()
        except OSError:
            continue
        assert all(mount.point for mount in parse_mounts(text))
