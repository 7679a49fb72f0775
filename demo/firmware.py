# SPDX-License-Identifier: Apache-2.0
"""The guest's firmware: boots the newest entry of a disk, again and again, until the guest powers off or is killed.

    python -m demo.firmware NAME DIRECTORY TREE [LIFELINE]

Runs in the guest's network namespace and in a mount namespace of its own, so that no mount outlives it. DIRECTORY
holds `disk.img` and gets `boots.jsonl` (a line for each time it comes up or goes down). LIFELINE is the number of a
pipe's reading end: when its other end closes without a word, whoever started us is gone, and the guest goes too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from demo import cgroups

# What the guest's init asked the kernel for: in a pid namespace a reboot kills it by SIGHUP, a power-off by SIGINT.
REBOOT = signal.SIGHUP


def main(argv: list[str]) -> int:
    name, directory, tree = argv[0], Path(argv[1]), Path(argv[2])
    if str(Path("/proc/self/ns/net").readlink()) == os.environ["MACHINE_NET"]:
        sys.exit("refusing: this is the machine's own network namespace")
    firmware = Firmware(name, directory, tree)
    signal.signal(signal.SIGTERM, lambda number, frame: firmware.pull_the_plug())
    if len(argv) > 3:
        threading.Thread(target=watch, args=(int(argv[3]), firmware), daemon=True).start()
    try:
        while not firmware.unplugged and firmware.boot() == REBOOT:
            pass
    finally:
        cgroups.end(f"lashd-{name}")
    return 0


def watch(lifeline: int, firmware: Firmware) -> None:
    """Waits for a word (then the guest may live on alone) or for the end of the line."""
    if not os.read(lifeline, 1):
        firmware.pull_the_plug()


class Firmware:
    """One machine, so to speak; see the module."""

    def __init__(self, name: str, directory: Path, tree: Path) -> None:
        self.name, self.directory, self.tree = name, directory, tree
        self.unplugged = False
        self._guest: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> int:
        """One life of the guest; returns the signal that ended it: REBOOT or another."""
        mounted = self.directory / "mounted"
        mounted.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", self.directory / "disk.img", mounted], check=True)
        try:
            entry = newest_entry(mounted)
            cmdline = self.directory / "cmdline"
            cmdline.write_text(entry["options"] + "\n")
            script = Path(__file__).with_name("initramfs.sh")
            group = cgroups.create(f"lashd-{self.name}")
            argv = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), "setpriv", "--pdeathsig"]
            argv += ["KILL", "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
            argv += ["--fork", "--kill-child", "sh", str(script), str(mounted), str(cmdline), str(self.tree), self.name]
            self._guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
            try:
                self._leader = _only_child(self._guest)
                # The group is the root of what the guest sees, and controllers want no foreign process in there.
                if self._leader:
                    cgroups.move(self._guest.pid, cgroups.current())
                self._note(event="up", leader=self._leader, title=entry.get("title", ""), options=entry["options"])
                if self.unplugged:  # the word came between two boots
                    self.pull_the_plug()
                # unshare ends as the guest's init did: by the same signal, so Python gives its negative number.
                status = -self._guest.wait()
            finally:
                self._end_guest()
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=False)
        self._note(event="down", status=status)
        return status

    def pull_the_plug(self) -> None:
        self.unplugged = True
        self._kill_init()

    def _kill_init(self) -> None:
        """All other processes of the guest die with their init, and `unshare`, its parent, buries it and ends."""
        if self._leader and self._guest is not None and self._guest.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)

    def _end_guest(self) -> None:
        assert self._guest is not None
        self._kill_init()
        try:
            self._guest.wait(5 if self._leader else 0)
        except subprocess.TimeoutExpired:
            self._guest.kill()  # --kill-child takes the init along
            self._guest.wait()
        self._guest, self._leader = None, 0

    def _note(self, **facts: object) -> None:
        with (self.directory / "boots.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), **facts}) + "\n")


def newest_entry(mounted: Path) -> dict[str, str]:
    """The boot entry with the highest version, as a boot loader that sorts them would choose it."""
    entries = []
    for path in mounted.glob("boot/loader/entries/*.conf"):
        lines = (line.split(maxsplit=1) for line in path.read_text().splitlines())
        entries.append({words[0]: words[1] for words in lines if len(words) == 2})
    if not entries:
        sys.exit("there is nothing to boot on this disk")
    return max(entries, key=lambda entry: int(entry["version"]))


def _only_child(parent: subprocess.Popen[bytes]) -> int:
    """The process id of the child of `parent`, as soon as it has one; 0 when it ends without one."""
    while parent.poll() is None:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == parent.pid:
                    return int(stat.parent.name)
        time.sleep(0.005)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
