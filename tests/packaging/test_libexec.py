# SPDX-License-Identifier: Apache-2.0
"""The two shell scripts that need no Python: the hold, and the question whether the gate let something through."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lashd.things.ostree.lockfile import LOCK, STAGED, STAGING, Lock, key_is_ours, own_key, read_lock, write_lock
from tests.conftest import REPOSITORY
from tests.support.staged import variant

SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
KEY, OTHER = "a1" * 32 + ".12", "b2" * 32 + ".0"


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("ostree run", "lashd"):
        (tmp_path / name).mkdir()
    return tmp_path / "ostree run", tmp_path / "lashd"


@pytest.fixture(scope="module")
def note() -> bytes:
    """As libostree writes it, with what else may be in there."""
    one, other = (f"<{{'name': <'{key}'>, 'osname': <'fedora'>, 'bootcsum': <'{'cd' * 32}'>}}>" for key in (KEY, OTHER))
    kargs = f"<['ostree=/ostree/boot.1/fedora/{'ef' * 32}/0', 'root=UUID=1']>"
    return variant(f"{{'target': {one}, 'merge-deployment': {other}, 'kargs': {kargs}}}")


def run(shell: list[str], script: str, runs: tuple[Path, Path], path: str = "/usr/bin:/bin") -> int:
    argv = [shutil.which(shell[0]) or "", *shell[1:], REPOSITORY / "packaging/libexec" / script, *runs]
    return subprocess.run(argv, env={"PATH": path}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode


def test_nothing_staged(shell: list[str], runs: tuple[Path, Path]) -> None:
    assert run(shell, "hold", runs) == 0
    assert list(runs[0].iterdir()) == []
    assert run(shell, "passed", runs) == 0


def test_what_is_staged_is_held(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    (runs[0] / STAGED).write_bytes(note)
    assert run(shell, "hold", runs) == 0
    assert read_lock(runs[0]) == Lock(KEY)
    assert (runs[0] / LOCK).read_text() == f"lashd\n{KEY}\n"
    assert (runs[0] / LOCK).stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in runs[0].iterdir()) == [STAGED, LOCK], "nothing is left behind"


@pytest.mark.parametrize("content", [b"", b"\0\xff garbage", b"a" * 63 + b".0", b"A" * 64 + b".0"])
def test_whatever_is_staged_is_held(shell: list[str], runs: tuple[Path, Path], content: bytes) -> None:
    (runs[0] / STAGED).write_bytes(content)
    assert run(shell, "hold", runs) == 0
    assert read_lock(runs[0]) == Lock(STAGING)


def test_no_tool_but_those_of_the_shell(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    """Not even ln: then an empty file, which is nobody's in particular."""
    (runs[0] / STAGED).write_bytes(note)
    if shell[0] != "busybox":  # it brings its own
        assert run(shell, "hold", runs, path="/nowhere") == 0
        assert read_lock(runs[0]) == Lock()


@pytest.mark.parametrize("lock", [Lock(KEY), Lock(OTHER, ready=True), Lock(STAGING), None])
def test_a_lock_that_is_there_stays(shell: list[str], runs: tuple[Path, Path], note: bytes, lock: Lock | None) -> None:
    (runs[0] / STAGED).write_bytes(note)
    if lock is None:
        (runs[0] / LOCK).write_text("somebody else's")
    else:
        write_lock(runs[0], lock)
    before = (runs[0] / LOCK).lstat()
    assert run(shell, "hold", runs) == 0
    assert (runs[0] / LOCK).lstat() == before
    assert read_lock(runs[0]) == (lock or Lock())


def test_what_we_locked_stays_ours_when_the_lock_is_removed(
    shell: list[str], runs: tuple[Path, Path], note: bytes
) -> None:
    """Whose ostree's `locked` key is does not depend on the lock file, so a hold need not know of it."""
    (runs[0] / STAGED).write_bytes(note)
    own_key(runs[0])
    for _ in range(2):
        assert run(shell, "hold", runs) == 0
        assert read_lock(runs[0]) == Lock(KEY)
        assert key_is_ours(runs[0])
        (runs[0] / LOCK).unlink()


def test_a_link_to_nowhere_is_no_lock(shell: list[str], runs: tuple[Path, Path], note: bytes, tmp_path: Path) -> None:
    """libostree follows it and finds nothing."""
    (runs[0] / STAGED).write_bytes(note)
    (runs[0] / LOCK).symlink_to(tmp_path / "nowhere")
    assert run(shell, "hold", runs) == 0
    assert not (runs[0] / LOCK).is_symlink()
    assert read_lock(runs[0]) == Lock(KEY)
    assert not (tmp_path / "nowhere").exists()


def test_only_what_was_let_through_passes(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    (runs[0] / STAGED).write_bytes(note)
    assert run(shell, "passed", runs) == 1
    (runs[1] / "passed").write_bytes(note)
    assert run(shell, "passed", runs) == 0
    if shell[0] != "busybox":
        assert run(shell, "passed", runs, path="/nowhere") != 0
    for other in (note + b"\0", note[:-1], note.replace(b"a1a1", b"a1a2", 1), b""):
        (runs[1] / "passed").write_bytes(other)
        assert run(shell, "passed", runs) == 1
        (runs[0] / STAGED).write_bytes(other)
        (runs[1] / "passed").write_bytes(note)
        assert run(shell, "passed", runs) == 1
        (runs[0] / STAGED).write_bytes(note)


def test_nothing_passes_that_is_empty(shell: list[str], runs: tuple[Path, Path]) -> None:
    (runs[0] / STAGED).touch()
    (runs[1] / "passed").touch()
    assert run(shell, "passed", runs) == 1


def test_a_hold_takes_back_what_passed_before(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    """/run outlives a soft reboot."""
    (runs[1] / "passed").write_bytes(note)
    assert run(shell, "hold", runs) == 0
    (runs[0] / STAGED).write_bytes(note)
    assert run(shell, "passed", runs) == 1
