# SPDX-License-Identifier: Apache-2.0
"""`make mutants`: lashd with one safeguard less, and the test that must turn red for it.

python -m tests.faults.mutants [--jobs N] [TEXT]     (TEXT: only those with it in their name)

Each is made in a copy of the checkout. Its judge is a test of the suite, or a fault on a booted host.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo import rootfs
from demo.shell import end, start
from tests.faults.table import Row, save

REPOSITORY = Path(__file__).resolve().parents[2]
_PREFIX = "mutant-"
_TEST_SECONDS, _FAULT_SECONDS = 180, 600
_DAEMON = "daemon/lashd"


@dataclass(frozen=True)
class Edit:
    """In the file `path` of the checkout `before`, which is there once, becomes `after`."""

    path: str
    before: str
    after: str = ""


@dataclass(frozen=True)
class Fault:
    """A row of `make faults`, with `--runs` of so many, and a pattern for what is seen when it turns red."""

    kind: str
    name: str
    sees: str
    runs: int = 1


@dataclass(frozen=True)
class Mutant:
    """`judge`: a node id of pytest, or a fault."""

    name: str
    edits: tuple[Edit, ...]
    judge: str | Fault

    @property
    def shown(self) -> str:
        return self.judge if isinstance(self.judge, str) else f"make faults: {self.judge.name}"


def mutant(name: str, path: str, before: str, after: str, judge: str | Fault) -> Mutant:
    return Mutant(name, (Edit(path, before, after),), judge)


_UNCHECKED = Edit("units/ostree-finalize-staged.service.d/50-lashd.conf", "ExecStop=/bin/sh /usr/lib/lashd/passed\n")
_UNHELD = Edit("units/lashd-gate.service", "ExecStop=-/bin/sh /usr/lib/lashd/hold\n")
_CAME_UP = "came up as v2"

MUTANTS = (
    # What is reported is on disk. Here is no ostree at work beside the bind, which would sync the filesystem, too.
    mutant(
        "no syncfs",
        f"{_DAEMON}/words/files.py",
        "if _libc.syncfs(descriptor) != 0:",
        "if False:",
        Fault(
            "successes",
            "power cut right after a reported success: bind job that repairs the running system",
            "damaged",
            20,
        ),
    ),
    mutant(
        "verified without a sync",
        f"{_DAEMON}/steps/verify.py",
        "    await store.sync()\n",
        "",
        "tests/steps/test_verify.py::test_the_store_is_synced_before_anything_is_said",
    ),
    mutant(
        "the gate lets through what is not synced",
        f"{_DAEMON}/running/judge.py",
        "if evidence.unsynced:",
        "if False:",
        "tests/running/test_gate.py::test_without_any_state",
    ),
    mutant(
        "no record fsync",
        f"{_DAEMON}/words/files.py",
        "os.fsync(file.fileno())",
        "pass",
        "tests/steps/test_record.py::test_a_record_is_durable_before_write_returns",
    ),
    mutant(
        "no fsync of the record's directory",
        f"{_DAEMON}/words/files.py",
        "    sync_directory(path.parent)\n",
        "",
        "tests/steps/test_record.py::test_a_record_is_durable_before_write_returns",
    ),
    # What counts as there is there.
    mutant(
        "no digest compare",
        f"{_DAEMON}/steps/verify.py",
        "index.image_with_digest(image.reference.name, recorded.digest) if recorded else meant",
        "meant",
        "tests/steps/test_verify.py::test_the_state_of_a_bound_image",
    ),
    mutant(
        "no digest compare of manifest and configuration",
        f"{_DAEMON}/steps/examine.py",
        "if not _described(planned.digest, image, store):",
        "if False:",
        "tests/steps/test_verify.py::test_damage_is_found_taken_out_and_fetched_again",
    ),
    mutant(
        "layer directory not looked at",
        f"{_DAEMON}/steps/verify.py",
        "if chain is None or not store.layers_on_disk(chain):",
        "if chain is None:",
        "tests/steps/test_verify.py::test_an_image_without_a_layer_is_incomplete",
    ),
    mutant(
        "layer not read although nobody vouches for it",
        f"{_DAEMON}/steps/examine.py",
        "if deep or layer.id not in trusted\n",
        "if deep\n",
        "tests/steps/test_verify.py::test_only_what_nobody_vouches_for_is_read",
    ),
    mutant(
        "a record vouches for a layer that was fetched again",
        f"{_DAEMON}/steps/record.py",
        "(layer_id in layers and stamp == layers[layer_id].created)",
        "layer_id in layers",
        "tests/steps/test_record.py::test_a_layer_that_was_fetched_again_is_not_vouched_for",
    ),
    # The hold, and the gate.
    Mutant(
        "no hold-first, and no fail-closed check",
        (_UNHELD, _UNCHECKED),
        Fault("gate", "gate: killed at once, and nobody held it before", _CAME_UP),
    ),
    Mutant(
        "gate without fail-closed check",
        (_UNCHECKED,),
        Fault("gate", "gate: replaced by /bin/false, and no hold", _CAME_UP),
    ),
    mutant(
        "soft reboot not taken down",
        f"{_DAEMON}/running/nextboot.py",
        "take_down(settings.paths.ostree_run, nextroot)",
        "pass",
        Fault("gate", "gate: soft reboot into what is held", _CAME_UP),
    ),
    mutant(
        "no re-hold after a late unlock",
        f"{_DAEMON}/running/keeper.py",
        "            case Do.HOLD if staged is not None:\n",
        "            case Do.HOLD if staged is None or staged.key in self.__dict__.setdefault('_once', []):\n"
        "                pass\n"
        "            case Do.HOLD if not self.__dict__['_once'].append(staged.key):\n",
        "tests/running/test_keeper.py::test_noticed_held_remembered_and_bound",
    ),
    mutant(
        "no hold of what is staged",
        "packaging/libexec/hold",
        'ln "$new" "$lock" 2>/dev/null',
        ":",
        "tests/packaging/test_libexec.py::test_what_is_staged_is_held",
    ),
    mutant(
        "a hold does not take back what passed before",
        "packaging/libexec/hold",
        'rm -f "${2:-/run/lashd}/passed"',
        ":",
        "tests/packaging/test_libexec.py::test_a_hold_takes_back_what_passed_before",
    ),
    mutant(
        "the gate lets through what was staged meanwhile",
        f"{_DAEMON}/running/gate.py",
        "if note != self._note() or",
        "if",
        "tests/running/test_gate.py::test_it_changes_again_and_again",
    ),
    mutant(
        "boot order not looked at behind what is staged",
        f"{_DAEMON}/running/gate.py",
        "\n        following, more = check_boot_order(everything, self._judge, self._put_first)\n"
        "        verdict = replace",
        "\n        following, more = None, []\n        verdict = replace",
        "tests/running/test_gate.py::test_what_stands_behind_it_in_the_boot_order_is_looked_at",
    ),
    mutant(
        "the gate leaves no word before it has decided",
        f"{_DAEMON}/running/gate.py",
        "            self._look(everything)\n            self._write(self._unfinished(NOT_FINISHED))\n",
        "            self._look(everything)\n",
        "tests/running/test_gate.py::test_a_gate_that_is_killed_leaves_word",
    ),
    mutant(
        "what passes waits until the boot order was put right",
        f"{_DAEMON}/running/gate.py",
        "            self._write(verdict)\n            if self._let_through(note):\n",
        "            self._write(verdict)\n"
        "            check_boot_order(everything, self._judge, self._put_first)\n"
        "            if self._let_through(note):\n",
        "tests/running/test_gate.py::test_what_stands_behind_it_in_the_boot_order_is_looked_at",
    ),
    # Somebody else's lock.
    mutant(
        "a locked key of somebody else's counts as ours",
        f"{_DAEMON}/things/ostree/lockfile.py",
        "return os.path.samestat((ostree_run / STAGED).lstat(), (ostree_run / OWN_KEY).lstat())",
        "return (ostree_run / OWN_KEY).exists()",
        "tests/things/ostree/test_lockfile.py::test_whose_key_it_is",
    ),
    mutant(
        "foreign lock removed by the gate",
        f"{_DAEMON}/running/gate.py",
        " or (lock is not None and not lock.ours)",
        "",
        "tests/running/test_gate.py::test_a_lock_that_comes_at_the_last_moment_stays",
    ),
    mutant(
        "foreign lock replaced by ours",
        f"{_DAEMON}/things/ostree/lockfile.py",
        "if present is not None and not present.ours and not take_over:",
        "if False:",
        "tests/things/ostree/test_lockfile.py::test_what_others_wrote_stays",
    ),
    mutant(
        "a lock of ours that was touched counts as ours",
        f"{_DAEMON}/things/ostree/lockfile.py",
        " or status.st_mtime_ns != _TIME * 1_000_000_000",
        "",
        "tests/things/ostree/test_lockfile.py::test_one_of_ours_that_was_touched_is_somebody_elses",
    ),
    # What is owed, and what is kept.
    mutant(
        "owed to any system",
        f"{_DAEMON}/steps/shutdowns.py",
        'return owed.base in ("", booted.checksum)',
        "return True",
        "tests/steps/test_shutdowns.py::test_what_is_still_owed",
    ),
    mutant(
        "images of containers are collected",
        f"{_DAEMON}/steps/leave.py",
        "image.id in self._standing.images:",
        "False:",
        "tests/steps/test_leave.py::test_an_image_that_stays_for_another_reason_keeps_its_names",
    ),
    # Beside a program that removes images of the store by rules of its own.
    mutant(
        "no anchors",
        f"{_DAEMON}/steps/protect.py",
        "stored.top_layer is not None and not await self.store.anchor(stored)",
        "False",
        "tests/running/test_guard.py::test_what_is_recorded_is_guarded_and_comes_back",
    ),
    mutant(
        "collect takes anchors",
        f"{_DAEMON}/steps/leave.py",
        "keeps = layer.parent in self._kept.layers",
        "keeps = False",
        "tests/steps/test_protect.py::test_anchors_go_with_the_deployment",
    ),
    mutant(
        "activation does not bring back what was removed",
        f"{_DAEMON}/running/activate.py",
        "or protection_of(settings, store).lost(booted.record)",
        "",
        "tests/running/test_activate.py::test_what_another_program_has_removed_is_back_before_anything_starts",
    ),
    # Only who may, can.
    mutant(
        "polkit is not asked",
        f"{_DAEMON}/bus/authorise.py",
        "if caller.uid != 0 and not self._stopped:",
        "if False:",
        "tests/bus/test_rights.py::test_every_method_for_everybody",
    ),
    mutant(
        "polkit is asked after the slot was taken",
        f"{_DAEMON}/bus/objects.py",
        "initiator = await self._authority.authorise(call, *actions, verb=method.lower(), options=options)\n"
        "            job, joined = start(options, initiator)\n",
        "job, joined = start(options, Initiator(0))\n"
        "            await self._authority.authorise(call, *actions, verb=method.lower(), options=options)\n",
        "tests/bus/test_polkit.py::test_a_password_and_for_what_it_counts",
    ),
    mutant(
        "polkit prompts without the caller's leave",
        f"{_DAEMON}/bus/authorise.py",
        "if challenged and not call.interactive:",
        "if False:",
        "tests/bus/test_polkit.py::test_allowed_refused_challenged",
    ),
    mutant(
        "polkit prompts for what is forbidden anyway",
        f"{_DAEMON}/bus/authorise.py",
        "                        answer = await self._polkit.check(call.sender, action, shown, interactive=False)\n",
        "                        answer = await self._polkit.check(call.sender, action, shown, interactive=True)\n",
        "tests/bus/test_polkit.py::test_what_an_option_implies_is_asked_for_as_well",
    ),
    mutant(
        "polkit is asked for the first action only",
        f"{_DAEMON}/bus/authorise.py",
        "for action in actions:",
        "for action in actions[:1]:",
        "tests/bus/test_polkit.py::test_what_an_option_implies_is_asked_for_as_well",
    ),
    mutant(
        "polkit has no limit for a prompt",
        f"{_DAEMON}/bus/authorise.py",
        "asyncio.timeout(PROMPT_SECONDS)",
        "asyncio.timeout(None)",
        "tests/bus/test_polkit.py::test_a_prompt_that_nobody_answers",
    ),
    mutant(
        "polkit is not told that a prompt is over",
        f"{_DAEMON}/bus/polkit.py",
        '            self._connection.post(NAME, PATH, INTERFACE, "CancelCheckAuthorization", "s", [question])\n',
        "",
        "tests/bus/test_polkit.py::test_a_prompt_that_nobody_answers",
    ),
    mutant(
        "polkit prompts on while lashd ends",
        f"{_DAEMON}/bus/service.py",
        "    dispatcher.stopping()\n",
        "",
        "tests/bus/test_polkit_gone.py::test_lashd_is_told_to_end_during_a_prompt",
    ),
    mutant(
        "polkit that is missing allows everything",
        f"{_DAEMON}/bus/authorise.py",
        '_refuse(caller, actions, f"polkit, which decides this, cannot be asked on this host. {_AS_ROOT}")',
        "return",
        "tests/bus/test_polkit_gone.py::test_polkit_goes_during_a_prompt_and_comes_back",
    ),
    mutant(
        "polkit shows what a caller says as it is",
        f"{_DAEMON}/bus/prompt.py",
        '_ODD.sub("?", " ".join(text.split()))',
        "text",
        "tests/bus/test_polkit.py::test_what_a_caller_says_cannot_be_mistaken_for_anything_else",
    ),
    mutant(
        "polkit is not asked about another's job",
        f"{_DAEMON}/bus/objects.py",
        "if call.uid != job.initiator.uid:",
        "if False:",
        "tests/bus/test_polkit.py::test_cancelling",
    ),
    mutant(
        "polkit's free actions have no limit",
        f"{_DAEMON}/running/asking.py",
        "if len(times) >= MOST:",
        "if False:",
        "tests/running/test_asking.py::test_only_so_many_for_one_user",
    ),
    mutant(
        "an old plan for another state of the host",
        f"{_DAEMON}/running/asking.py",
        "            and known.state == self._state()\n",
        "",
        "tests/running/test_asking.py::test_a_state_that_changed_meanwhile",
    ),
    mutant(
        "the bus lets everything through to lashd",
        "dbus/io.github.lashd1.conf",
        '    <deny send_destination="io.github.lashd1"/>\n',
        "",
        "tests/bus/test_policy.py::test_what_does_not_get_through",
    ),
    # What is fetched while the host image is being staged.
    mutant(
        "a head start moves names of the running system",
        f"{_DAEMON}/running/ahead.py",
        "names=lambda image: name_in_store(image, self._store.index(), held),",
        "names=lambda image: image.reference,",
        "tests/running/test_ahead.py",
    ),
    mutant(
        "a head start that nobody ends",
        f"{_DAEMON}/running/ahead.py",
        "            self._task.cancel()\n",
        "",
        "tests/running/test_ahead.py",
    ),
    mutant(
        "a damaged history is kept",
        f"{_DAEMON}/things/history.py",
        "                if isinstance(error, sqlite3.Error) and _code(error) not in _DAMAGE:\n",
        "                if True:\n",
        "tests/things/test_history.py::test_a_damaged_file_is_set_aside",
    ),
    mutant(
        "two daemons write one history",
        f"{_DAEMON}/things/history.py",
        "            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        "tests/things/test_history.py::test_two_daemons_do_not_write_one_history",
    ),
    mutant(
        "the event loop waits for the history",
        f"{_DAEMON}/running/history.py",
        "                await self._call(lambda: file.write(jobs.values(), running))",
        "                file.write(jobs.values(), running)",
        "tests/running/test_history.py::test_what_cannot_be_written_is_kept_and_shown_and_written_later",
    ),
    mutant(
        "numbers of jobs are not marked in advance",
        f"{_DAEMON}/running/numbers.py",
        "await self._mark(self._next + BLOCK)",
        "await self._mark(self._next)",
        "tests/running/test_history.py::test_numbers_go_on_after_a_stop_and_are_left_out_after_a_kill",
    ),
    mutant(
        "an interrupted job is forgotten",
        f"{_DAEMON}/running/service.py",
        "            self.jobs.recall(recalled(entry, self.jobs))\n",
        "            pass\n",
        "tests/cli/test_history.py::test_a_daemon_is_killed_in_mid_job",
    ),
    # Whoever is on the bus, and whatever is in an image.
    mutant(
        "one caller may have any number of calls",
        f"{_DAEMON}/bus/dispatch.py",
        "self._by_sender[message.sender] >= PER_SENDER or ",
        "",
        "tests/bus/test_hostile.py::test_one_connection_has_only_so_many_calls_in_progress",
    ),
    mutant(
        "who leaves keeps the calls",
        f"{_DAEMON}/bus/dispatch.py",
        "                task.cancel()\n",
        "                pass\n",
        "tests/bus/test_hostile.py::test_one_connection_has_only_so_many_calls_in_progress",
    ),
    mutant(
        "what is too large is dropped without a word",
        f"{_DAEMON}/bus/repairs.py",
        "self.dropped(*asked, large)",
        "pass",
        "tests/bus/test_hostile.py::test_who_sends_what_cannot_be_read_is_told",
    ),
    mutant(
        "looking at the host costs who asks nothing",
        f"{_DAEMON}/bus/tree.py",
        "            self._credit -= time.monotonic() - began\n",
        "",
        "tests/bus/test_hostile.py::test_looking_because_somebody_asks_takes_a_share_of_the_time",
    ),
    mutant(
        "a link's target is shown as it is",
        f"{_DAEMON}/steps/discover.py",
        "cannot be bound: {_printable(why)}.",
        "cannot be bound: {why}.",
        "tests/steps/test_discover.py::test_a_link_target_cannot_write_on_a_terminal",
    ),
)


def applied(edit: Edit, checkout: Path) -> str:
    """The content of the file with the edit made. Raises ValueError when it does not fit any more."""
    text = (checkout / edit.path).read_text()
    if (count := text.count(edit.before)) != 1:
        raise ValueError(f"{edit.path} has {edit.before!r} {count} times, not once")
    return text.replace(edit.before, edit.after)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at once")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/faults.json", help="where the rows go")
    parser.add_argument("only", nargs="?", default="", metavar="TEXT", help="only those with TEXT in their name")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sweep()
    began = time.monotonic()
    chosen = [one for one in MUTANTS if options.only in one.name]
    # What takes long goes first.
    chosen.sort(key=lambda one: isinstance(one.judge, str))
    try:
        red = _red_anyway(sorted({one.judge for one in chosen if isinstance(one.judge, str)}))
        with ThreadPoolExecutor(options.jobs) as pool:
            try:
                futures = [pool.submit(_row, one, number, red) for number, one in enumerate(chosen)]
                rows = [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                _end_all()
    finally:
        sweep(os.getpid())
    save(rows, options.output)
    green = [row for row in rows if row.violations]
    print(f"{len(rows) - len(green)} of {len(rows)} mutants turn their test red, {time.monotonic() - began:.0f} s")
    return 1 if green or not rows else 0


def _row(one: Mutant, number: int, red: set[str]) -> Row:
    began = time.monotonic()
    try:
        if one.judge in red:
            seen = "GREEN: its test is red without it, too, so nothing is known"
        else:
            with _checkout(number) as checkout:
                for edit in one.edits:
                    (checkout / edit.path).write_text(applied(edit, checkout))
                seen = _tested(one.judge, checkout) if isinstance(one.judge, str) else _made(one.judge, checkout)
    except ValueError as error:
        seen = f"GREEN: it does not apply any more: {error}"
    bad = not seen.startswith("red")
    print(f"{one.name} → {one.shown} → {seen if bad else seen.splitlines()[0]}", flush=True)
    return Row(f"mutant: {one.name}", 1, int(bad), seconds=time.monotonic() - began, detail=[f"{one.shown}: {seen}"])


def _tested(node: str, checkout: Path) -> str:
    status, output = _run(_pytest(node, "-x"), checkout, _TEST_SECONDS)
    if status is None:
        return "red (it hangs)"
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    return f"red: {failed[0]}" if status == 1 and failed else f"GREEN (status {status}): {output[-1500:]}"


def _made(fault: Fault, checkout: Path) -> str:
    rows = checkout / "build/rows.json"
    argv = [
        sys.executable,
        "-m",
        "tests.faults",
        "--jobs=1",
        f"--runs={fault.runs}",
        f"--output={rows}",
        f"--only={fault.name}",
    ]
    status, output = _run([*argv, fault.kind], checkout, _FAULT_SECONDS)
    detail = "\n".join(json.loads(rows.read_text())[fault.name]["detail"]) if rows.exists() else ""
    if status == 1 and re.search(fault.sees, detail):
        return f"red: {detail}"
    return f"GREEN (status {status}): {detail}\n{output[-1500:]}"


def _red_anyway(nodes: list[str]) -> set[str]:
    """Those of the tests that fail without any mutant."""
    if not nodes:
        return set()
    with _checkout(0) as checkout:
        status, output = _run(_pytest(*nodes), checkout, 5 * _TEST_SECONDS)
    if status == 0:
        return set()
    red = {node for node in nodes if re.search(rf"^(FAILED|ERROR) {re.escape(node)}", output, re.MULTILINE)}
    print(output[-3000:])
    return red or set(nodes)


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


_children: list[subprocess.Popen[bytes]] = []


def _run(argv: list[str], checkout: Path, seconds: float) -> tuple[int | None, str]:
    """Exit status, None when it did not end in time, and what it said."""
    environment = os.environ | {"PYTHONPATH": f"{checkout}/daemon:{checkout}", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = ["setpriv", "--pdeathsig=TERM", "--", *argv]
    pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with start(argv, cwd=checkout, env=environment, **pipe) as process:
        _children.append(process)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return None, ""
        finally:
            _children.remove(process)
    return process.returncode, output.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order: what boots hosts has to remove them."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            end(process)


def _end_all() -> None:
    for process in list(_children):
        _end(process)


@contextmanager
def _checkout(number: int) -> Iterator[Path]:
    """A copy of the checkout as it is now, which shares its cache."""
    copy = rootfs.CACHE.parent / f"{_PREFIX}{os.getpid()}-{number}"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    try:
        for name in filter(None, names):
            if (source := REPOSITORY / name).exists():  # else it was removed, and nobody has told git yet
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy / name, follow_symlinks=False)
        (copy / ".cache").symlink_to(REPOSITORY / ".cache")
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def sweep(of: int = 0) -> None:
    """Remove the copies of runs that were killed, or those of the process `of`."""
    for copy in rootfs.CACHE.parent.glob(f"{_PREFIX}*-*"):
        pid = copy.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and (int(pid) == of or not Path("/proc", pid).exists()):
            shutil.rmtree(copy, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
