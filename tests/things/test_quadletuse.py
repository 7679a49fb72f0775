# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from lashd.things.quadlet import Unit
from lashd.things.quadletuse import option_values, pull_options, read_names_store, use_problems
from lashd.things.rootfs import Root
from lashd.things.unitfile import parse
from lashd.words.model import PullOptions, UseProblem

NOT_NAMED, ALWAYS, AUTO = UseProblem.STORE_NOT_NAMED, UseProblem.PULL_ALWAYS, UseProblem.AUTO_UPDATE
STORE = "/usr/lib/bootc/storage"


def unit(name: str, text: str) -> Unit:
    section = "Image" if name.endswith(".image") else "Container"
    return Unit(name, name, parse(f"[{section}]\nImage=q.io/a\n{text}\n"))


def expand(text: str) -> str:
    return text.replace("%S", STORE)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", {NOT_NAMED}),
        (f"GlobalArgs=--storage-opt=additionalimagestore={STORE}", set()),
        (f"GlobalArgs=--storage-opt additionalimagestore={STORE}", set()),
        (f"GlobalArgs=--log-level=debug --storage-opt\nGlobalArgs=additionalimagestore={STORE}", set()),
        (f"GlobalArgs='--storage-opt=additionalimagestore={STORE}'", set()),
        (f"PodmanArgs=--storage-opt=additionalimagestore={STORE}/", set()),
        (f"GlobalArgs=--storage-opt=overlay.imagestore=/x,{STORE}", set()),
        ("GlobalArgs=--storage-opt=additionalimagestore=%S", set()),
        ("GlobalArgs=--storage-opt=additionalimagestore=/sysroot/ostree/bootc/storage", set()),
        ("GlobalArgs=--storage-opt=additionalimagestore=/other", {NOT_NAMED}),
        (f"GlobalArgs=--storage-opt=size={STORE}", {NOT_NAMED}),
        (f"GlobalArgs=--storage-opt=additionalimagestore={STORE}\nGlobalArgs=", {NOT_NAMED}),
        (f"GlobalArgs=additionalimagestore={STORE}", {NOT_NAMED}),
        (f"Exec=--storage-opt=additionalimagestore={STORE}", {NOT_NAMED}),
        ("Pull=always", {NOT_NAMED, ALWAYS}),
        ("Pull=Newer", {NOT_NAMED, ALWAYS}),
        ("Pull=missing", {NOT_NAMED}),
        ("Pull=never", {NOT_NAMED}),
        ("Pull=always\nPodmanArgs=--pull=never", {NOT_NAMED}),
        ("PodmanArgs=--pull always", {NOT_NAMED, ALWAYS}),
        ("AutoUpdate=registry", {NOT_NAMED, AUTO}),
        ("AutoUpdate=local", {NOT_NAMED}),
        ("Label=io.containers.autoupdate=registry", {NOT_NAMED, AUTO}),
        ("AutoUpdate=registry\nLabel=a=b io.containers.autoupdate=disabled", {NOT_NAMED}),
        ("PodmanArgs=--label io.containers.autoupdate=image", {NOT_NAMED, AUTO}),
    ],
)
def test_container(text: str, problems: set[UseProblem]) -> None:
    assert use_problems(unit("a.container", text), expand, store_configured=False) == problems
    expected = problems - {NOT_NAMED} if "--storage-opt" not in text.replace("Exec=--storage-opt", "") else problems
    if text.endswith("GlobalArgs="):
        expected = set()
    assert use_problems(unit("a.container", text), expand, store_configured=True) == expected


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", {ALWAYS}),
        ("Policy=missing", set()),
        ("Policy=Never", set()),
        ("Policy=newer", {ALWAYS}),
        ("Policy=", {ALWAYS}),
        ("PodmanArgs=--policy=missing", set()),
        ("Pull=never", {ALWAYS}),
        ("Policy=missing\nGlobalArgs=--storage-driver=vfs", {NOT_NAMED}),
    ],
)
def test_image(text: str, problems: set[UseProblem]) -> None:
    assert use_problems(unit("a.image", text), expand, store_configured=True) == problems


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("a.image", "", PullOptions()),
        (
            "a.image",
            "AuthFile=/etc/a.json\nCertDir=certs\nTLSVerify=false\nArch=arm64\nOS=Linux\nVariant=V8",
            PullOptions("/etc/a.json", "/certs", False, "arm64", "linux", "v8"),
        ),
        ("a.image", "AuthFile=/no\nAuthFile=%S/a.json", PullOptions(auth_file=f"{STORE}/a.json")),
        ("a.image", "TLSVerify=yes", PullOptions(tls_verify=True)),
        ("a.image", "TLSVerify=", PullOptions(tls_verify=False)),
        ("a.image", "TLSVerify=true\nPodmanArgs=--tls-verify=false", PullOptions(tls_verify=False)),
        ("a.image", "PodmanArgs=--tls-verify", PullOptions(tls_verify=True)),
        ("a.image", "Arch=x86-64", PullOptions(arch="amd64")),
        ("a.image", "Arch=armhf", PullOptions(arch="arm", variant="v7")),
        ("a.image", "Arch=armhf\nVariant=v6", PullOptions(arch="arm", variant="v6")),
        ("a.image", "Creds=user:secret\nDecryptionKey=/k", PullOptions()),
        (
            "a.image",
            "PodmanArgs=--platform linux/arm/v7 --authfile=a",
            PullOptions("/a", "", None, "arm", "linux", "v7"),
        ),
        ("a.container", "AuthFile=/a\nArch=arm64", PullOptions()),
        ("a.container", "PodmanArgs=--arch=arm64 --cert-dir /c", PullOptions(cert_dir="/c", arch="arm64")),
    ],
)
def test_pull_options(name: str, text: str, options: PullOptions) -> None:
    assert pull_options(unit(name, text), expand) == options


def test_option_values() -> None:
    assert list(option_values(["--a", "1", "--ab=2", "--a=3", "--a"], "--a")) == ["1", "3"]


def test_which_storage_conf(tmp_path: Path) -> None:
    naming = f'[storage.options]\nadditionalimagestores = ["{STORE}"]'
    with Root(tmp_path) as root:
        assert not read_names_store(root)
        for directory in ("usr/share", "usr/etc", "etc"):
            (tmp_path / directory / "containers").mkdir(parents=True)
        (tmp_path / "usr/share/containers/storage.conf").write_text(naming)
        assert read_names_store(root)
        (tmp_path / "usr/etc/containers/storage.conf").write_text("")
        assert not read_names_store(root)
        (tmp_path / "etc/containers/storage.conf").write_text(naming)
    with Root(tmp_path) as root:
        assert read_names_store(root)
