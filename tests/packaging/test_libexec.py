# SPDX-License-Identifier: Apache-2.0
"""The two shell scripts that need no Python: the hold, and the question whether the gate let something through."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lashd.things import composefs
from lashd.things.ostree.lockfile import ASIDE, LOCK, STAGED, STAGING, Lock, key_is_ours, own_key, read_lock, write_lock
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


def run(shell: list[str], script: str, runs: tuple[Path, ...], path: str = "/usr/bin:/bin") -> int:
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


# ---- bootc's composefs backend: the flag in its note ----

ID = "a1" * 64
BEFORE = b'{"depl_id":"%s","finalization_locked":false}' % ID.encode()


@pytest.fixture
def three(runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    (tmp_path / "composefs run").mkdir()
    return *runs, tmp_path / "composefs run"


def same(path: Path) -> tuple[int, int, int]:
    """What a file that nobody has touched keeps; reading it changes its other time."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_mode


FLAGS = {
    "bootc's": BEFORE,
    "with a newline": BEFORE + b"\n\n",
    "sorted otherwise": b'{"finalization_locked":false,"depl_id":"%s"}' % ID.encode(),
    "written by hand": b'\n{\n\t"finalization_locked" :\n false ,\n "depl_id": "%s" }\n' % ID.encode(),
    "with more in it": BEFORE.replace(b"false}", b'false,"new":{"of":["bootc","\xc3\xa9\\"$(id)`id`\\n%s"]}}'),
}


@pytest.mark.parametrize("content", FLAGS.values(), ids=FLAGS)
def test_the_flag_is_set_and_nothing_else(shell: list[str], three: tuple[Path, Path, Path], content: bytes) -> None:
    (three[2] / STAGED).write_bytes(content)
    (three[2] / STAGED).chmod(0o604)
    assert run(shell, "hold", three) == 0
    note = composefs.read_note(three[2])
    assert note is not None
    assert note.content == content.replace(b"false", b"true")
    assert (note.deployment, note.locked, note.ours) == (ID, True, True)
    assert (three[2] / STAGED).stat().st_mode & 0o777 == 0o604
    before = same(three[2] / STAGED)
    assert run(shell, "hold", three) == 0
    assert same(three[2] / STAGED) == before, "once is enough"
    assert [path.name for path in three[2].iterdir()] == [STAGED], "nothing is left behind"
    assert list(three[0].iterdir()) == []
    assert composefs.release(three[2], note)
    assert (three[2] / STAGED).read_bytes() == content


def test_a_flag_that_somebody_else_set_stays_his(shell: list[str], three: tuple[Path, Path, Path]) -> None:
    (three[2] / STAGED).write_bytes(BEFORE.replace(b"false", b"true"))
    before = same(three[2] / STAGED)
    assert run(shell, "hold", three) == 0
    assert same(three[2] / STAGED) == before
    note = composefs.read_note(three[2])
    assert note is not None
    assert note.foreign


ODD = {
    "empty": b"",
    "cut": BEFORE[:-1],
    "no flag": b'{"depl_id":"%s"}' % ID.encode(),
    "null": BEFORE.replace(b"false", b"null"),
    "a word": BEFORE.replace(b"false", b'"false"'),
    "falsehood": BEFORE.replace(b"false", b"falsehood"),
    "twice": BEFORE.replace(b"}", b',"finalization_locked":false}'),
    "in another object": b'{"x":{"finalization_locked":false},"depl_id":"%s"}' % ID.encode(),
    "in a text": b'{"x":"\\"finalization_locked\\":false","depl_id":"%s"}' % ID.encode(),
    "no colon": BEFORE.replace(b'":false', b'" false'),
    "a NUL in it": BEFORE.replace(b"false", b"false\0"),
    "a NUL before it": b"\0" + BEFORE,
    "no object": b"finalization_locked false",
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_what_is_not_understood_stays_as_it_is(
    shell: list[str], three: tuple[Path, Path, Path], note: bytes, content: bytes
) -> None:
    """And the lock of ostree is set all the same; what is left is the check before bootc's own command."""
    (three[0] / STAGED).write_bytes(note)
    (three[2] / STAGED).write_bytes(content)
    before = (three[2] / STAGED).lstat().st_ino
    assert run(shell, "hold", three) == 1
    assert ((three[2] / STAGED).lstat().st_ino, (three[2] / STAGED).read_bytes()) == (before, content)
    assert [path.name for path in three[2].iterdir()] == [STAGED]
    assert read_lock(three[0]) == Lock(KEY)


def test_a_note_that_is_no_file(shell: list[str], three: tuple[Path, Path, Path]) -> None:
    (three[2] / "elsewhere").write_bytes(BEFORE)
    (three[2] / STAGED).symlink_to("elsewhere")
    assert run(shell, "hold", three) == 1
    assert (three[2] / "elsewhere").read_bytes() == BEFORE
    (three[2] / STAGED).unlink()
    os.mkfifo(three[2] / STAGED)
    assert run(shell, "hold", three) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_staged_meanwhile_is_not_lost(
    shell: list[str], three: tuple[Path, Path, Path], tmp_path: Path, times: int
) -> None:
    """bootc stages another one just before the note is replaced."""
    other = BEFORE.replace(b"a1", b"b2")
    (three[2] / STAGED).write_bytes(BEFORE)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/touch").write_text(
        f"""#!/bin/sh
        echo >>'{tmp_path}/count'
        /usr/bin/touch "$@"
        [ "$(/usr/bin/wc -l <'{tmp_path}/count')" -gt {times} ] && exit 0
        printf '%s' '{other.decode()}' >'{tmp_path}/new' && /usr/bin/mv '{tmp_path}/new' '{three[2] / STAGED}'
        """
    )
    (tmp_path / "bin/touch").chmod(0o755)
    status = run(shell, "hold", three, path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    held = composefs.read_note(three[2])
    assert held is not None
    assert held.deployment == "b2" * 64
    assert (status, held.ours) == ((0, True) if times == 1 else (1, False))


def test_the_check_is_the_same_for_both_notes(shell: list[str], three: tuple[Path, Path, Path]) -> None:
    checked = three[2], three[1]
    assert run(shell, "passed", checked) == 0, "nothing is staged"
    (three[2] / STAGED).write_bytes(BEFORE)
    assert run(shell, "passed", checked) == 1
    (three[1] / "passed").write_bytes(BEFORE)
    assert run(shell, "passed", checked) == 0
    assert run(shell, "hold", three) == 0
    assert run(shell, "passed", checked) == 1


def test_what_a_killed_gate_left_aside_comes_back(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    """Else ostree would finalise nothing of what has passed, and what is first in the boot order would come up."""
    staged, aside = runs[0] / STAGED, runs[0] / ASIDE
    for script, status in (("passed", 1), ("passed", 0), ("hold", 0)):
        aside.write_bytes(note)
        if status == 0:
            (runs[1] / "passed").write_bytes(note)
        inode = aside.stat().st_ino
        assert run(shell, script, runs) == status
        assert (staged.read_bytes(), staged.stat().st_ino) == (note, inode)
        assert not aside.exists()
        staged.unlink()
    assert read_lock(runs[0]) == Lock(KEY), "and the hold holds it"
    # What was staged since is what counts.
    aside.write_bytes(note)
    for script in ("passed", "hold"):
        staged.write_bytes(b"newer")
        run(shell, script, runs)
        assert staged.read_bytes() == b"newer"
    assert not aside.exists()


def test_what_cannot_be_put_back_is_no_success(shell: list[str], runs: tuple[Path, Path], note: bytes) -> None:
    (runs[0] / ASIDE).write_bytes(note)
    if shell[0] != "busybox":
        assert run(shell, "passed", runs, path="/nowhere") == 1
