# SPDX-License-Identifier: Apache-2.0
"""Activation with real stores: names get the booted deployment's meaning, offline, under any policy, or it is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lashd.running import activate as activation
from lashd.running import booted as module
from lashd.running import restarts
from lashd.running.activate import main, read_report
from lashd.steps.names import kept_name
from lashd.steps.protect import protection_of
from lashd.steps.record import Records
from lashd.things.store import Store
from lashd.words import config
from lashd.words import files as durable
from lashd.words import run as runner
from lashd.words.config import Settings
from lashd.words.errors import ErrorName, LashdError
from lashd.words.events import MessageId
from lashd.words.model import Deployment, Record, RecordedImage, Role
from lashd.words.reference import parse_reference
from tests.support.host import REJECT_ALL
from tests.support.images import Image, Index, build, build_index, files, random_bytes
from tests.support.stores import edit_index, make_store, podman_remove, put, remove_layer_directory, stored

WEB, AGENT = "quay.io/edge/web", "quay.io/edge/agent"
LARGE = random_bytes(3_000_000, seed=5)
OLD = build([LARGE, {"version": b"1"}])
NEW = build([LARGE, {"version": b"2"}])
ZSTD = build([random_bytes(3_000_000, seed=6, compression="zstd"), files({"version": b"2"}, compression="zstd")])
PINNED = build([{"agent": b"1"}])
KEY = "a" * 64 + ".0"


@dataclass
class Booted:
    """A booted deployment that binds `web` by a floating tag and `agent` by digest, on a host that is a directory."""

    settings: Settings
    store: Store
    root: Path
    options: tuple[str, ...]

    @property
    def run(self) -> Path:
        return self.settings.paths.run

    def activate(self, *more: str) -> int:
        return main([*more, *self.options])

    def bind(self, name: str, text: str) -> None:
        unit = self.root / "usr/share/containers/systemd" / name
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.write_text(text)
        link = self.root / "usr/lib/bootc/bound-images.d" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/share/containers/systemd/{name}")

    def record(self, web: Image | Index, **more: str) -> None:
        """The record says that `web` is to mean this."""
        image = web.images[0] if isinstance(web, Index) else web
        images = [
            recorded(self.store, f"{WEB}:stable", image),
            recorded(self.store, f"{AGENT}@{PINNED.digest}", PINNED),
        ]
        Records(self.settings.paths.state / "records").write(Record(KEY, None, tuple(images), 1))

    def set(self, text: str) -> None:
        Path(self.options[1], "50-test.toml").write_text(text)

    def skopeo(self, script: str) -> Path:
        """A program that is started in skopeo's place; answers the log that it may write (`$LOG`)."""
        log, program = self.root.parent / "skopeo.log", self.root.parent / "skopeo"
        program.write_text(f"#!/bin/sh\nLOG={log}\n{script}\n")
        program.chmod(0o755)
        self.set(f'[tools]\nskopeo = "{program}"\n')
        return log


def recorded(store: Store, name: str, image: Image) -> RecordedImage:
    found = store.index().image_with_digest(parse_reference(name).name, image.digest)
    chain = (store.index().chain(found) if found else None) or ()
    layers, stamps = tuple(layer.id for layer in chain), tuple(layer.created for layer in chain)
    return RecordedImage(name, image.digest, image.image_id, layers, (), None, stamps)


@pytest.fixture
def host(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Booted:
    directory = tmp_path / "settings"
    directory.mkdir()
    (directory / "10-host.toml").write_text(
        f'[host]\nbackend = "ostree"\nsysroot = "{settings.host.sysroot}"\n[paths]\nstate = "{settings.paths.state}"\n'
        f'run = "{settings.paths.run}"\nostree_run = "{settings.paths.ostree_run}"\nroot = "{settings.paths.root}"\n'
    )
    made = Booted(settings, make_store(tmp_path), tmp_path / "deployment", ("--settings", str(directory)))
    made.store.run_root = settings.store_run
    assert made.store.root == settings.store
    made.bind("web.container", f"[Container]\nImage={WEB}:stable\n")
    made.bind("agent.container", f"[Container]\nImage={AGENT}@{PINNED.digest}\n")
    put(made.store, OLD, f"{WEB}:stable")
    put(made.store, PINNED, f"{AGENT}@{PINNED.digest}")
    shutil.rmtree(made.run)
    deployment = Deployment("default", "a" * 64, 0, made.root, frozenset([Role.BOOTED]))
    other = replace(deployment, serial=1, root=tmp_path / "nowhere", roles=frozenset([Role.STAGED]))

    # Only a host that was really booted has a booted deployment: see tests/host/test_activate.py.
    monkeypatch.setattr(module, "find_deployments", lambda settings: (other, deployment))
    # It is set for the children of the program, which ends then.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return made


FLOATING, BY_DIGEST = f"{WEB}:stable", f"{AGENT}@{PINNED.digest}"


def digest_of(store: Store, name: str) -> str:
    return stored(store, name).digest


def tree(root: Path) -> list[tuple[str, float]]:
    return sorted((str(path), path.lstat().st_mtime) for path in root.rglob("*"))


# ---- an ordinary boot ----


def test_when_all_is_right_nothing_is_started_and_nothing_written(
    host: Booted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    host.record(OLD)

    def started(*argv: object, **more: object) -> None:
        raise AssertionError(f"started {argv}")

    monkeypatch.setattr(runner, "started", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    before = tree(host.root.parent)
    assert host.activate() == 0
    assert tree(host.root.parent) == before
    assert not host.run.exists()
    assert capfd.readouterr() == ("", "")


def test_without_a_record_names_are_left_alone(host: Booted) -> None:
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    before = host.store.signature()
    assert host.activate() == 0
    assert host.store.signature() == before


def test_a_host_that_is_none_of_ours(host: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(settings: Settings) -> None:
        raise LashdError(ErrorName.UNSUPPORTED_HOST)

    monkeypatch.setattr(module, "find_deployments", unsupported)
    assert host.activate() == host.activate("--check") == 0


# ---- a boot into another deployment ----


@pytest.mark.parametrize("wanted", [NEW, ZSTD, build_index([ZSTD, build([{"other": b"1"}], arch="s390x")])])
def test_a_name_moves_to_what_this_deployment_is_bound_to(
    wanted: Image | Index, host: Booted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under a host policy that rejects everything, and with no room to copy layers to."""
    policy = host.root.parent / "policy.json"
    policy.write_text(json.dumps(REJECT_ALL))
    log = host.skopeo(
        f"mount --bind {policy} /etc/containers/policy.json && mount -t tmpfs -o size=64k none $TMPDIR || exit 99\n"
        'echo $TMPDIR >> $LOG; exec skopeo "$@"'
    )
    put(host.store, wanted, f"{WEB}@{wanted.digest}")
    host.record(wanted)
    image = wanted.images[0] if isinstance(wanted, Index) else wanted
    synced: list[tuple[Path, str]] = []
    real = durable.sync_filesystem

    def sync(path: Path) -> None:
        synced.append((path, digest_of(host.store, f"{WEB}:stable")))
        real(path)

    monkeypatch.setattr(durable, "sync_filesystem", sync)
    assert host.activate() == 0
    said = capfd.readouterr()
    assert f"{WEB}:stable now means {image.digest}" in said.out
    assert said.err == ""
    assert synced == [(host.store.root, wanted.digest)], "synced once, after the name had moved"
    now = stored(host.store, f"{WEB}:stable")
    assert (now.id, now.digest) == (image.image_id, wanted.digest)
    assert host.store.big_data(now, f"manifest-{image.digest}") == image.manifest
    assert host.store.complete(now)
    old = stored(host.store, f"{WEB}@{OLD.digest}")
    assert (old.id, old.names) == (OLD.image_id, (str(kept_name(parse_reference(f"{WEB}:stable"), OLD.image_id)),))
    assert host.store.big_data(old, f"manifest-{OLD.digest}") == OLD.manifest
    assert host.store.complete(old)
    assert log.read_text().split() == [str(host.run)] * 2
    assert [path.name for path in host.run.iterdir()] == ["storage"]
    # What the tag says to who asks by it is not looked at: only the index counts, and that is right.
    ask = ["skopeo", "inspect", "--raw", host.store.spec(f"{WEB}:stable")]
    asked = subprocess.run(runner.writable(host.store.sysroot, ask), capture_output=True, check=True)
    assert asked.stdout != image.manifest, "this is why"
    before = tree(host.store.root)
    assert host.activate() == 0
    assert tree(host.store.root) == before
    # And back again: nothing is piled up by going back and forth.
    host.record(OLD)
    assert host.activate() == 0
    assert digest_of(host.store, f"{WEB}:stable") == OLD.digest
    assert stored(host.store, f"{WEB}@{wanted.digest}").id == image.image_id
    sizes = None
    for each in (wanted, OLD, wanted, OLD):
        host.record(each)
        assert host.activate() == 0
        found = sorted(str(path) for path in (host.store.root / "overlay-images").rglob("*"))
        assert sizes in (None, found)
        sizes = found
    assert len(host.store.index().layers) == len(
        {layer.diff_id for layer in (*OLD.layers, *image.layers, *PINNED.layers)}
    )


# ---- what goes wrong ----


def test_a_name_that_does_not_move_is_reported_and_its_unit_started_all_the_same(
    host: Booted, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    host.record(NEW)
    host.skopeo("echo no luck today >&2; exit 1")
    assert host.activate() == 1
    report = read_report(host.settings)
    assert report == json.loads((host.run / "activation.json").read_text())
    assert list(report) == ["web.container"]
    for part in (f"{WEB}:stable", "web.container", OLD.digest, NEW.digest, "no luck today"):
        assert part in report["web.container"]
    assert capfd.readouterr().err == report["web.container"] + "\n"
    assert not (host.settings.paths.root / "run/systemd").exists()
    # Where the journal listens it is told there, with an id, and once.
    entries: list[tuple[str, dict[str, str], int]] = []

    def tell(stream: object, said: str, fields: dict[str, str], *, priority: int, identifier: str) -> bool:
        entries.append((said, fields, priority))
        return True

    monkeypatch.setattr(activation.journal, "tell", tell)
    assert host.activate() == 1
    assert entries == [(report["web.container"], {"MESSAGE_ID": MessageId.RUNNING_LACKS.value}, 3)]
    assert capfd.readouterr() == ("", "")
    # Mended, and told again (or after a soft reboot, which keeps /run).
    host.set("")
    assert host.activate() == 0
    assert read_report(host.settings) == {}
    assert [path.name for path in host.run.iterdir()] == ["storage"]


def test_by_the_strict_setting_a_unit_with_a_wrong_name_is_barred(
    host: Booted, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The service need not be called like the unit.
    host.bind("web.container", f"[Container]\nImage={WEB}:stable\nServiceName=harbour-web\n")
    host.record(NEW)
    host.set("[gate]\nstrict_names = true\n")
    systemd = host.settings.paths.root / "run/systemd"
    (systemd / "journal").mkdir(parents=True)
    started: list[tuple[str, ...]] = []
    real = runner.run

    async def run(argv: list[str], *, timeout: float) -> runner.Completed:
        started.append(tuple(argv))
        return await real(["true"], timeout=timeout)

    monkeypatch.setattr(runner, "run", run)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        with contextlib.chdir(systemd / "journal"):  # a socket's path may not be long
            journal.bind("socket")
        journal.settimeout(5)
        monkeypatch.setattr(activation.bars, "log_for", short_path(activation.bars.log_for, systemd / "journal"))
        assert host.activate() == 1
        fields = dict(line.split("=", 1) for line in journal.recv(65536).decode().splitlines())
    sentence = read_report(host.settings)["web.container"]
    assert "is not in the store" in sentence
    assert fields["OBJECT_SYSTEMD_UNIT"] == "harbour-web.service"
    assert (fields["MESSAGE"], fields["PRIORITY"]) == (f"Not started: {sentence}", "3")
    drop_in = systemd / "system/harbour-web.service.d/50-lashd-names.conf"
    reason = host.run / "barred/harbour-web.service"
    assert drop_in.read_text().splitlines()[-2:] == ["[Unit]", f"AssertPathExists=!{reason}"]
    assert reason.read_text() == sentence + "\n"
    assert started == [("systemctl", "daemon-reload")]
    assert [path.name for path in (systemd / "system").iterdir()] == ["harbour-web.service.d"]
    # Still so: systemd knows already.
    assert host.activate() == 1
    assert len(started) == 1
    capfd.readouterr()
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    assert host.activate() == 0
    assert not reason.exists()
    assert list((systemd / "system").iterdir()) == []
    assert read_report(host.settings) == {}
    assert len(started) == 1


def short_path(log_for: Callable[..., None], directory: Path) -> Callable[..., None]:
    def call(service: str, sentence: str, *, journal: Path) -> None:
        assert journal == directory / "socket"
        with contextlib.chdir(directory):
            log_for(service, sentence, journal=Path("socket"))

    return call


def test_a_writer_that_hangs_is_given_up(host: Booted, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    host.record(NEW)
    host.skopeo("exec sleep 60")
    monkeypatch.setattr(activation, "LIMIT_SECONDS", 0.5)
    assert host.activate() == 1
    assert "longer than" in read_report(host.settings)["web.container"]


def test_what_cannot_be_judged_is_no_success(host: Booted, capfd: pytest.CaptureFixture[str]) -> None:
    path = host.store.root / "overlay-images/images.json"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert host.activate() == 0
    assert read_report(host.settings) == {}, "nobody says what its name is to mean"
    path.write_bytes(content)
    host.record(OLD)
    path.write_bytes(content[:-9])
    assert host.activate() == 1
    assert "damaged" in read_report(host.settings)["web.container"]
    assert list(read_report(host.settings)) == ["web.container"], "a pinned unit has no name that could be wrong"
    path.write_bytes(content)
    record = host.settings.paths.state / f"records/{KEY}.json"
    record.write_text("{")
    capfd.readouterr()
    assert host.activate() == 1
    assert str(record) in capfd.readouterr().err
    (told,) = read_report(host.settings).items()
    assert told[0] == "lashd-activate.service"
    assert str(record) in told[1]


@pytest.mark.parametrize("text", ["[gate]\nstrict_names = 7\n", "[gaet]\nx = 1\n", "[", "\udcff"])
def test_settings_that_cannot_be_read_keep_no_name_from_its_meaning(
    text: str, host: Booted, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "DEFAULT", host.settings)
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    host.record(NEW)
    wrong = Path(host.options[1], "60-wrong.toml")
    wrong.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert host.activate("--check") == 1, "the name is not given yet"
    assert host.activate() == 0
    assert digest_of(host.store, FLOATING) == NEW.digest
    assert str(wrong) in capfd.readouterr().err
    assert host.activate("--check") == 0
    assert read_report(host.settings) == {}


async def test_a_service_that_runs_what_its_name_meant_before_is_named_until_it_is_restarted(host: Booted) -> None:
    put(host.store, NEW, f"{WEB}@{NEW.digest}")
    host.record(NEW)
    units = host.settings.paths.root / "run/systemd/units"
    units.mkdir(parents=True)
    running = units / "invocation:web.service"
    for service in ("web.service", "agent.service"):
        (units / f"invocation:{service}").symlink_to("1" * 32)
    found = module.look(host.settings)
    assert found is not None
    assert await activation.activate(host.settings, found) == {}
    (sentence,) = restarts.pending(host.settings)
    assert sentence.startswith(f"web.service was started before {FLOATING} ")
    assert "'systemctl restart web.service'" in sentence
    # Nothing more has moved: what is known stays known.
    assert await activation.activate(host.settings, found) == {}
    assert restarts.pending(host.settings) == [sentence]
    running.unlink()
    assert restarts.pending(host.settings) == [], "it has ended"
    running.symlink_to("2" * 32)
    assert restarts.pending(host.settings) == [], "it was restarted"


# ---- --check ----


def lose_manifest(host: Booted) -> None:
    image = stored(host.store, f"{AGENT}@{PINNED.digest}")
    for path in (host.store.root / "overlay-images" / image.id).iterdir():
        if path.read_bytes() == PINNED.manifest:
            path.write_bytes(b"")


def lose_agent(host: Booted) -> None:
    edit_index(host.store, "images", lambda all: [each for each in all if each["id"] != PINNED.image_id])


def lose_layer(host: Booted) -> None:
    remove_layer_directory(host.store, f"{WEB}:stable", 1)


def move_name(host: Booted) -> None:
    put(host.store, NEW, f"{WEB}:stable")
    edit_index(host.store, "images", keep_old)


def keep_old(entries: list[dict[str, object]]) -> None:
    for each in entries:
        if each["id"] == OLD.image_id:
            each["names"] = [f"{WEB}:old"]


def bad_entry(host: Booted) -> None:
    host.bind("odd.container", "[Container]\n")


def damage_index(host: Booted) -> None:
    (host.store.root / "overlay-layers/layers.json").write_text("{")


def nothing(host: Booted) -> None:
    pass


def forget(host: Booted) -> None:
    (host.settings.paths.state / f"records/{KEY}.json").unlink()


@pytest.mark.parametrize(
    ("harm", "lines"),
    [
        (nothing, [f"agent.container: {BY_DIGEST} is complete", f"web.container: {FLOATING} is complete"]),
        (forget, ["is complete .*has not been read", f"web.container: {FLOATING} is .*{OLD.digest}.*not been read"]),
        (lose_manifest, ["! agent.container: .*manifest .* is damaged", "web.container: .* is complete"]),
        (lose_agent, [f"! agent.container: {BY_DIGEST} is not in the store", "web.container: .* is complete"]),
        (lose_layer, ["agent.container: .* is complete", "! web.container: .* not all of its layers"]),
        (move_name, ["agent.container: .* is complete", f"! web.container: .* means another image than {OLD.digest}"]),
        (bad_entry, ["agent.container: ", "web.container: ", "! odd.container: .* names no image"]),
        (damage_index, ["! agent.container: .*damaged", "! web.container: .*damaged"]),
    ],
)  # fmt: skip
def test_check_says_whether_every_bound_image_is_there(
    harm: Callable[[Booted], None], lines: list[str], host: Booted, capfd: pytest.CaptureFixture[str]
) -> None:
    host.record(OLD)
    harm(host)
    before = tree(host.root.parent)
    status = host.activate("--check")
    assert tree(host.root.parent) == before
    said = capfd.readouterr()
    bad = [line.removeprefix("! ") for line in lines if line.startswith("!")]
    good = [line for line in lines if not line.startswith("!")]
    assert status == (1 if bad else 0)
    for expected, got in ((good, said.out.splitlines()), (bad, said.err.splitlines())):
        assert len(expected) == len(got)
        for pattern, line in zip(expected, got, strict=True):
            assert re.search(pattern, line)


@pytest.mark.parametrize("held", [OLD, PINNED])
async def test_what_another_program_has_removed_is_back_before_anything_starts(host: Booted, held: Image) -> None:
    """bootc's clean-up knows names only: the system that is booted again lost what its floating name meant then."""
    host.record(OLD)
    records = Records(host.settings.paths.state / "records")
    assert not await protection_of(host.settings, host.store).protect(records.load_all().values())
    if held is OLD:
        # What is wrong with names only is seen to anyway.
        put(host.store, NEW, f"{WEB}:stable")
    podman_remove(host.store, held.image_id)
    assert host.store.index().image_with_digest(WEB if held is OLD else AGENT, held.digest) is None
    # Of its own: activation runs in an event loop that it makes.
    assert await asyncio.to_thread(host.activate) == 0
    assert stored(host.store, f"{WEB}:stable").digest == OLD.digest
    assert stored(host.store, f"{AGENT}@{PINNED.digest}").id == PINNED.image_id


async def test_what_cannot_be_brought_back_in_time_keeps_no_other_name_waiting(
    host: Booted, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.record(OLD)
    records = Records(host.settings.paths.state / "records")
    assert not await protection_of(host.settings, host.store).protect(records.load_all().values())
    put(host.store, OLD, f"{WEB}@{OLD.digest}")
    put(host.store, NEW, f"{WEB}:stable")
    podman_remove(host.store, PINNED.image_id)
    host.skopeo('case "$*" in *dir:*) exec sleep 60 ;; *) exec skopeo "$@" ;; esac')
    monkeypatch.setattr(activation, "LIMIT_SECONDS", 6.0)
    before = time.monotonic()
    assert await asyncio.to_thread(host.activate) == 0
    assert stored(host.store, f"{WEB}:stable").digest == OLD.digest
    assert time.monotonic() - before < 6.5
