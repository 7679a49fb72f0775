# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lashd.steps import discover as module
from lashd.steps.discover import ENTRY_LIMIT, discover
from lashd.words.errors import ErrorName, LashdError
from lashd.words.model import BoundImage, Discovery, UseProblem
from lashd.words.reference import parse_reference

Q = "quay.io/edge/agent:v1"
SHARE = "usr/share/containers/systemd"
STORE = "GlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage\n"
UNIT = f"[Container]\nImage={Q}\n{STORE}"


class Deployment:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.bound = root / "usr/lib/bootc/bound-images.d"
        self.bound.mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def bind(self, name: str, text: str = UNIT, *, at: str = SHARE) -> None:
        self.write(f"{at}/{name}", text)
        (self.bound / name).symlink_to(f"/{at}/{name}".replace("usr/etc", "etc"))

    def discover(self) -> Discovery:
        return discover(self.root)

    def only(self) -> BoundImage:
        found = self.discover()
        assert not found.bad, found.bad
        (image,) = found.images
        return image

    def problem(self) -> str:
        found = self.discover()
        assert not found.images
        (entry,) = found.bad
        assert entry.problem.endswith(".")
        return entry.problem


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def test_one(deployment: Deployment) -> None:
    deployment.bind("agent.container")
    assert deployment.only() == BoundImage("agent.container", Q, parse_reference(Q), service="agent.service")


def test_nothing_bound(tmp_path: Path) -> None:
    assert discover(tmp_path) == Discovery()
    (tmp_path / "usr/lib/bootc/bound-images.d").mkdir(parents=True)
    assert discover(tmp_path) == Discovery()


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(LashdError, match="cannot be read, so what it binds is unknown") as caught:
        discover(tmp_path / "nowhere")
    assert caught.value.name == ErrorName.BOUND_IMAGE_INVALID


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text(""),
        lambda path: path.symlink_to("/nowhere"),
        lambda path: path.symlink_to(path.name),
        lambda path: os.mkfifo(path),
    ],
)
def test_the_directory_is_no_directory(deployment: Deployment, make: Callable[[Path], object]) -> None:
    deployment.bound.rmdir()
    make(deployment.bound)
    (entry,) = deployment.discover().bad
    assert entry.unit == "bound-images.d"


def test_one_bad_entry_does_not_hide_the_others(deployment: Deployment) -> None:
    deployment.bind("z.container")
    deployment.bind("a.image", "[Image]\nImage=quay.io/a:v1\n")
    deployment.bind("m.container", "[Container]\nImage=\n")
    (deployment.bound / "b.container").symlink_to("/nowhere")
    found = deployment.discover()
    assert [image.unit for image in found.images] == ["a.image", "z.container"]
    assert [entry.unit for entry in found.bad] == ["b.container", "m.container"]
    assert found.bad[0].problem == (
        "The entry 'b.container' of bound-images.d cannot be bound: "
        "it points to '/nowhere', which does not exist in this root."
    )


@pytest.mark.parametrize("target", ["/{0}/a.container", "../../../../{0}/a.container", "/../../{0}/a.container"])
@pytest.mark.parametrize("at", [SHARE, "usr/lib/mine", "usr/etc/containers/systemd", "etc/containers/systemd"])
def test_links(deployment: Deployment, target: str, at: str) -> None:
    deployment.write(f"{at}/a.container", UNIT)
    (deployment.bound / "a.container").symlink_to(target.format(at.replace("usr/etc", "etc")))
    assert deployment.only().text == Q


def test_etc_before_usr_etc(deployment: Deployment) -> None:
    deployment.bind("a.container", at="usr/etc/containers/systemd")
    deployment.write("etc/containers/systemd/a.container", UNIT.replace(":v1", ":admin"))
    assert deployment.only().reference.tag == "admin"


def test_link_with_another_name_than_its_unit(deployment: Deployment) -> None:
    deployment.write(f"{SHARE}/unit.container", UNIT.replace(":v1", ":%p"))
    deployment.write(f"{SHARE}/unit.container.d/1.conf", "[Container]\nPull=always\n")
    (deployment.bound / "link.container").symlink_to(f"/{SHARE}/unit.container")
    image = deployment.only()
    assert (image.unit, image.reference.tag, image.use_problems) == (
        "link.container",
        "unit",
        (UseProblem.PULL_ALWAYS,),
    )


def test_link_and_unit_are_links_to_one_file(deployment: Deployment) -> None:
    deployment.write("usr/lib/mine/any", UNIT)
    deployment.write(f"{SHARE}/unit.container.d/1.conf", "[Container]\nImage=quay.io/drop-in\n")
    (deployment.root / SHARE / "unit.container").symlink_to("/usr/lib/mine/any")
    (deployment.bound / "a.container").symlink_to("/usr/lib/mine/any")
    assert deployment.only().reference.path == "drop-in"


def test_what_quadlet_does_not_load_is_taken_as_it_is(deployment: Deployment) -> None:
    deployment.bind("a.container", at="usr/lib/mine")
    deployment.write(f"{SHARE}/container.d/1.conf", "[Container]\nImage=quay.io/drop-in\n")
    assert deployment.only().text == Q


def test_a_file_in_etc_replaces_the_one_that_is_linked(deployment: Deployment) -> None:
    deployment.bind("a.container")
    deployment.write("usr/etc/containers/systemd/a.container", UNIT.replace(":v1", ":etc"))
    assert deployment.only().reference.tag == "etc"


def test_a_masked_unit_is_bound_all_the_same(deployment: Deployment) -> None:
    deployment.bind("a.container")
    (deployment.root / "etc/containers/systemd").mkdir(parents=True)
    (deployment.root / "etc/containers/systemd/a.container").symlink_to("/dev/null")
    assert deployment.only().text == Q


def test_regular_file(deployment: Deployment) -> None:
    (deployment.bound / "a.image").write_text("[Image]\nImage=quay.io/a\n")
    (deployment.bound / "b.container").write_text(UNIT)
    deployment.write(f"{SHARE}/b.container", UNIT.replace(":v1", ":what-runs"))
    assert [str(image.reference) for image in deployment.discover().images] == [
        "quay.io/a:latest",
        "quay.io/edge/agent:what-runs",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *(
            (name, name)
            for name in ["README", "x.build", "x.kube", "x.conf", "x.container.bak", "container", ".hidden"]
        ),
        *(
            (name, name)
            for name in ["a b.container", "a'b.container", 'a".image', "é.image", "$x.image", "--root=.image"]
        ),
        ("a\nb.container", "a\\nb.container"),
        ("a\x1b[31m.container", "a\\x1b[31m.container"),
        (os.fsdecode(b"\xff.container"), "\\xff.container"),
    ],
)
def test_names(deployment: Deployment, name: str, shown: str) -> None:
    deployment.write(f"{SHARE}/real.container", UNIT)
    (deployment.bound / name).symlink_to(f"/{SHARE}/real.container")
    (entry,) = deployment.discover().bad
    assert entry.unit == shown
    assert shown in entry.problem
    entry.problem.encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[Container]\nImage=--root=/\n", "'--root=/' is not a repository name"),
        ("[Container]\nImage=quay.io/a b\n", "'a b' is not a repository name"),
        ("[Container]\nImage=quay.io/a:$TAG\n", "uses an environment variable"),
        ("[Container]\nImage=user:secret@quay.io/a:$TAG\n", "'…@quay.io/a:$TAG' uses an environment variable"),
        ("[Container]\nImage=user:secret@quay.io/" + "a" * 5000, "longer than 4096 characters"),
        ("[Container]\nImage=quay.io/a:%H\n", "uses the specifier %H"),
        ("[Container]\nImage=quay.io/a:%i\n", "'' is not a tag"),
        ("[Container]\nImage=busybox\n", "short name without an alias"),
        ("[Container]\nImage=x.build\n", "is built on the host"),
        ("[Container]\nImage=x.image\n", "not in Quadlet's directories"),
        ("[Container]\nRootfs=/x\n", "no image to bind"),
        ("[Container]\nImage=oci:/x\n", "does not name a registry"),
        (f"[Container]\nImage=quay.io/{'a%A' * 5000}\n", "longer than 4096 characters"),
        ("[Container]\nImage=quay.io/a\n\0", "contains a NUL byte"),
        ("Image=quay.io/a\n", "assignment before its first section"),
        ("[Container]\nImage=" + "\\\n" * 500_000, "names no image"),
        ("[Container]\nImage=" + "a" * 900_000, "longer than 4096 characters"),
        ("x" * 1_048_577, "is larger than 1048576 bytes"),
    ],
)
def test_bad_units(deployment: Deployment, text: str, why: str) -> None:
    deployment.bind("a.container", text)
    problem = deployment.problem()
    assert why in problem
    assert "secret" not in problem
    assert len(problem) < 1500


@pytest.mark.parametrize("at", [SHARE, "usr/lib/mine"])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: os.mkfifo(path), "is a FIFO"),
        (lambda path: os.mknod(path, 0o020666, os.makedev(1, 5)), "is a device"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.symlink_to("a.container"), "leads in a circle"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not valid UTF-8"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 30)), "is larger than 1048576 bytes"),
        (lambda path: path.symlink_to("/../../../../../../../etc/hostname"), "does not exist in this root"),
    ],
)
def test_hostile_targets(deployment: Deployment, at: str, make: Callable[[Path], object], why: str) -> None:
    deployment.bind("b.container", at="usr/lib/other")
    (deployment.root / at).mkdir(parents=True)
    make(deployment.root / at / "a.container")
    (deployment.bound / "a.container").symlink_to(f"/{at}/a.container")
    found = deployment.discover()
    assert [image.unit for image in found.images] == ["b.container"]
    (entry,) = found.bad
    assert entry.unit == "a.container"
    assert why in entry.problem


@pytest.mark.parametrize(
    "target", ["/x\n[31m", "/x\x1b[2J\x1b[1mSafe\x1b[0m", "\x85\u2028", "/" + "x/" * 2000, "-" * 255]
)
def test_a_link_target_cannot_write_on_a_terminal(deployment: Deployment, target: str) -> None:
    deployment.bind("b.container")
    (deployment.bound / "a.container").symlink_to(target)
    found = deployment.discover()
    assert [image.unit for image in found.images] == ["b.container"]
    (entry,) = found.bad
    assert entry.problem.isprintable()
    assert len(entry.problem) < 600


def test_hostile_entries(deployment: Deployment) -> None:
    os.mkfifo(deployment.bound / "a.container")
    (deployment.bound / "b.container").mkdir()
    (deployment.bound / "c.container").symlink_to("c.container")
    found = deployment.discover()
    ends = (
        "is a FIFO.",
        "is a directory.",
        "it points to 'c.container', which is a symbolic link that leads in a circle.",
    )
    assert not found.images
    for entry, end in zip(found.bad, ends, strict=True):
        assert entry.problem.endswith(end)


def test_ten_thousand_entries(deployment: Deployment) -> None:
    deployment.write(f"{SHARE}/a.container", UNIT)
    for number in range(10_000):
        (deployment.bound / f"{number:05}.container").symlink_to(f"/{SHARE}/a.container")
    begun = time.process_time()
    found = deployment.discover()
    assert time.process_time() - begun < 5
    assert len(found.images) == ENTRY_LIMIT
    assert found.images[-1].unit == "00999.container"
    (entry,) = found.bad
    assert entry.unit == "bound-images.d"
    assert f"more than {ENTRY_LIMIT} entries" in entry.problem


def test_a_damaged_neighbour_is_named(deployment: Deployment) -> None:
    """podman loads no unit of a directory with a damaged file: what is bound there would not run after the update."""
    deployment.bind("a.container")
    deployment.bind("b.container", "[Container]\nImage=x.image\n")
    deployment.write(f"{SHARE}/s/x.image", "[Image]\nImage=quay.io/x\n")
    deployment.write(f"{SHARE}/s/c.network", "no\n")
    deployment.write(f"{SHARE}/bad.volume", "no\n")
    found = deployment.discover()
    assert [image.unit for image in found.images] == ["a.container", "b.container"]
    assert [entry.unit for entry in found.bad] == ["bad.volume", "c.network"]
    assert "so 'a.container' would not run" in found.bad[0].problem
    assert "so 'b.container' would not run" in found.bad[1].problem


def test_through_an_image_unit(deployment: Deployment) -> None:
    deployment.write("usr/lib/os-release", "ID=edge\n")
    deployment.write(
        f"{SHARE}/x.image",
        f"[Image]\nImage=quay.io/x:%N-%o\nImageTag=localhost/agent\nAuthFile=/etc/a.json\nArch=%a\nTLSVerify=no\n{STORE}",
    )
    deployment.bind("a.container", f"[Container]\nImage=x.image\nAutoUpdate=registry\n{STORE}")
    image = deployment.only()
    assert image.text == "quay.io/x:%N-%o"
    assert str(image.reference) == "quay.io/x:x-image-edge"
    assert [str(name) for name in image.names] == ["localhost/agent:latest"]
    assert (image.pull.auth_file, image.pull.tls_verify) == ("/etc/a.json", False)
    assert image.pull.arch not in ("", "x86-64")
    assert image.use_problems == (UseProblem.PULL_ALWAYS, UseProblem.AUTO_UPDATE)


def test_the_container_sees_its_own_specifiers(deployment: Deployment) -> None:
    """What is pulled and what is run differ: both names are wanted."""
    deployment.write(f"{SHARE}/x.image", f"[Image]\nImage=quay.io/%N\nPolicy=missing\n{STORE}")
    deployment.bind("a.container", f"[Container]\nImage=x.image\n{STORE}")
    image = deployment.only()
    assert (str(image.reference), [str(name) for name in image.names]) == (
        "quay.io/x-image:latest",
        ["quay.io/a:latest"],
    )
    assert image.usable


def test_store_in_storage_conf(deployment: Deployment) -> None:
    deployment.bind("a.container", f"[Container]\nImage={Q}\n")
    assert deployment.only().use_problems == (UseProblem.STORE_NOT_NAMED,)
    deployment.write(
        "usr/share/containers/storage.conf",
        '[storage.options]\nadditionalimagestores = ["/usr/lib/bootc/storage"]\n',
    )
    assert deployment.only().usable


def test_short_name(deployment: Deployment) -> None:
    deployment.bind("a.container", f"[Container]\nImage=agent:v2\n{STORE}")
    deployment.write("usr/etc/containers/registries.conf.d/0.conf", '[aliases]\nagent = "quay.io/edge/agent"\n')
    assert str(deployment.only().reference) == "quay.io/edge/agent:v2"


def test_a_hundred_images_in_no_time(deployment: Deployment) -> None:
    for number in range(100):
        deployment.bind(
            f"app-{number}.container",
            f"[Unit]\nDescription=x\n{UNIT}Volume=/a:/b\nExec=sh -c \\\n true\n[Install]\nWantedBy=default.target\n",
        )
    taken = []
    for _ in range(5):
        begun = time.process_time()
        assert len(deployment.discover().images) == 100
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.03


def dashes(tree: Deployment) -> None:
    name = "-".join(["a"] * 120) + ".container"
    tree.write(f"{SHARE}/{name}", UNIT)
    for number in range(900):
        (tree.bound / f"u{number}.container").symlink_to(f"/{SHARE}/{name}")
    for number in range(9800):
        (tree.root / SHARE / f"d{number}").mkdir()


def drop_ins(tree: Deployment) -> None:
    tree.write(f"{SHARE}/a.container", UNIT)
    for number in range(1000):
        (tree.bound / f"u{number}.container").symlink_to(f"/{SHARE}/a.container")
    (tree.root / SHARE / "container.d").mkdir()
    for number in range(9900):
        (tree.root / SHARE / f"container.d/{number}.conf").touch()


def units_and_drop_ins(tree: Deployment) -> None:
    for number in range(1000):
        tree.bind(f"a-{number}.container")
    (tree.root / SHARE / "container.d").mkdir()
    for number in range(5000):
        (tree.root / SHARE / f"container.d/{number}.conf").touch()


def wandering_links(tree: Deployment) -> None:
    tree.bind("a.container")
    (tree.root / "x").mkdir()
    for number in range(38):
        (tree.root / f"l{number}").symlink_to("/x/" + "../x/" * 800 + f"../l{number + 1}")
    (tree.root / "l38").mkdir()
    for number in range(5000):
        (tree.root / SHARE / f"d{number}").symlink_to("/l0")


def arguments(tree: Deployment) -> None:
    for number in range(300):
        tree.bind(f"a-{number}.container", f"{UNIT}PodmanArgs={'a ' * 8000}\n")


def sections(tree: Deployment) -> None:
    tree.bind("a.container", UNIT + "".join(f"[{number:x}]\n" for number in range(100_000)))
    for number in range(5000):
        tree.write(f"{SHARE}/container.d/{number}.conf", "[Container]\nA=\n")


def names(tree: Deployment) -> None:
    tree.bind("a.container", UNIT.replace("agent:v1", "%A" * 2000))
    tree.write("usr/lib/os-release", f"IMAGE_VERSION={'a' * 500_000}\n")


def aliases(tree: Deployment) -> None:
    tree.bind("a.container", UNIT.replace("quay.io/edge/agent", "short"))
    for number in range(30):
        table = "".join(f'a{number}-{alias}="q.io/a"\n' for alias in range(12_000))
        tree.write(f"usr/share/containers/registries.conf.d/{number}.conf", f"[aliases]\n{table}")


@pytest.mark.parametrize(
    "make", [dashes, drop_ins, units_and_drop_ins, wandering_links, arguments, sections, names, aliases]
)
def test_no_root_takes_long(deployment: Deployment, make: Callable[[Deployment], None]) -> None:
    """Each of them took minutes, or gigabytes. A root is read at shutdown as well, where there is little time."""
    make(deployment)
    begun = time.process_time()
    found = deployment.discover()
    assert time.process_time() - begun < 2.5  # well below one second on a machine that is not busy
    assert found.bad or len(found.images) in (1, 900, 1000)


def test_a_thousand_ordinary_units_are_not_too_much(deployment: Deployment) -> None:
    for number in range(500):
        text = f"{UNIT}PodmanArgs=--log-level=info\n" + "# Fifty characters of explanation in each of the lines\n" * 20
        deployment.bind(f"app-{number}.container", text)
        deployment.bind(f"app-{number}.image", "[Image]\nImage=quay.io/a/b:v1\n")
        deployment.write(f"{SHARE}/app-{number}.container.d/1.conf", "[Container]\nPull=never\n")
    for number in range(10):
        deployment.write(f"{SHARE}/container.d/{number}.conf", "[Container]\nLabel=a=b\n")
    found = deployment.discover()
    assert (len(found.images), found.bad) == (1000, ())


@pytest.mark.parametrize("text", ["x=" + "9" * 5000, "x=" + "[" * 1500])
def test_a_damaged_storage_conf_names_no_store(deployment: Deployment, text: str) -> None:
    deployment.bind("a.container", IMAGE)
    deployment.write("usr/etc/containers/storage.conf", text)
    assert deployment.only().use_problems == (UseProblem.STORE_NOT_NAMED,)


def test_what_nobody_foresaw_is_a_bad_entry(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(root: object) -> bool:
        raise KeyError("unfore\x1bseen")

    deployment.bind("a.container")
    monkeypatch.setattr(module, "read_names_store", broken)
    with caplog.at_level("DEBUG"):
        (entry,) = deployment.discover().bad
    assert entry.unit == "bound-images.d"
    assert "unfore\\x1bseen" in entry.problem.replace("\\\\", "\\")
    assert "KeyError" in entry.problem
    assert "\x1b" not in entry.problem
    assert "Traceback" in caplog.text


class Local:
    """A running system whose image bound `agent` as the staged one does; its /etc is the administrator's."""

    def __init__(self, staged: Deployment, root: Path) -> None:
        self.staged = staged
        self.root = root
        for name in ("etc", "usr/etc"):
            (root / name).mkdir(parents=True)

    def write(self, path: str, text: str, *, before: str | None = None) -> None:
        for place, content in (("etc", text), ("usr/etc", before)):
            if content is not None:
                file = self.root / place / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)

    def tags(self) -> list[str]:
        found = discover(self.staged.root, self.root)
        assert not found.bad, found.bad
        return [f"{image.unit.partition('.')[0]} {image.reference.tag}" for image in found.images]


@pytest.fixture
def local(tmp_path: Path) -> Local:
    staged = Deployment(tmp_path / "staged")
    staged.bind("agent.container")
    staged.bind("db.container", UNIT.replace("v1", "v2"), at="usr/etc/containers/systemd")
    local = Local(staged, tmp_path / "running")
    # As ostree leaves it while it stages: a copy that has no local changes yet.
    shutil.copytree(staged.root / "usr/etc", staged.root / "etc")
    local.write("containers/systemd/db.container", UNIT, before=UNIT)
    return local


IMAGE = "[Container]\nImage=quay.io/edge/agent:local\n"


def test_without_local_changes(local: Local) -> None:
    assert local.tags() == ["agent v1", "db v2"]
    assert discover(local.staged.root) == discover(local.staged.root, local.root)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("systemd/agent.container.d/10.conf", IMAGE, ["agent local", "db v2"]),
        ("systemd/container.d/10.conf", IMAGE, ["agent local", "db local"]),
        ("systemd/agent.container", IMAGE + STORE, ["agent local", "db v2"]),
        ("systemd/db.container", IMAGE + STORE, ["agent v1", "db local"]),
        ("systemd/other/agent.container", IMAGE + STORE, ["agent local", "db v2"]),
        ("systemd/other/unbound.container", IMAGE + STORE, ["agent v1", "db v2"]),
    ],
)
def test_local_changes_decide(local: Local, path: str, text: str, expected: list[str]) -> None:
    local.write(f"containers/{path}", text)
    assert local.tags() == expected


def test_a_local_link_leads_into_the_new_system(local: Local) -> None:
    local.staged.write("usr/lib/overrides/10.conf", IMAGE)
    (local.root / "usr/lib/overrides").mkdir(parents=True)
    (local.root / "usr/lib/overrides/10.conf").write_text(IMAGE.replace("local", "old"))
    (local.root / "etc/containers/systemd/agent.container.d").symlink_to("/usr/lib/overrides")
    assert local.tags() == ["agent local", "db v2"]


def test_a_local_alias_and_os_release(local: Local) -> None:
    local.staged.bind("short.container", f"[Container]\nImage=tool:%A\n{STORE}")
    local.staged.write("usr/lib/os-release", "IMAGE_VERSION=1\n")
    local.write("containers/registries.conf.d/a.conf", '[aliases]\ntool = "quay.io/local/tool"\n')
    local.write("os-release", "IMAGE_VERSION=local\n")
    found = discover(local.staged.root, local.root).images[-1]
    assert str(found.reference) == "quay.io/local/tool:local"


def test_removed_locally(local: Local) -> None:
    (local.root / "etc/containers/systemd/db.container").unlink()
    (entry,) = discover(local.staged.root, local.root).bad
    assert entry.unit == "db.container"
    assert "does not exist in this root" in entry.problem


def test_masked_locally(local: Local) -> None:
    (local.root / "etc/containers/systemd/agent.container").symlink_to("/dev/null")
    # podman runs none of that name; what the link in the image names is bound all the same.
    assert local.tags() == ["agent v1", "db v2"]


def test_what_cannot_be_merged_is_known_as_such(local: Local) -> None:
    local.write("containers/systemd/agent.container.d/10.conf", IMAGE, before=IMAGE + "#")
    local.staged.write("etc/containers/systemd/agent.container.d", "no directory")
    found = discover(local.staged.root, local.root)
    assert not found.images
    (entry,) = found.bad
    assert entry.unit == "bound-images.d"
    assert "'/etc/containers/systemd/agent.container.d'" in entry.problem
    shutil.rmtree(local.root / "usr/etc")
    with pytest.raises(LashdError, match="running/usr/etc"):
        discover(local.staged.root, local.root)


def test_a_hundred_units_with_local_changes_are_quick(local: Local) -> None:
    for number in range(100):
        local.staged.bind(f"u{number:03}.container")
        unit = f"containers/systemd/u{number:03}.container.d/10.conf"
        local.write(unit, IMAGE, before=IMAGE if number % 2 else None)
    assert len(local.tags()) == 102
    begun = time.process_time()
    local.tags()
    assert time.process_time() - begun < 0.5
