# SPDX-License-Identifier: Apache-2.0
"""The real polkitd on a private bus, with actions, rules and login sessions of its own.

It runs in a mount namespace in which its directories and /run/systemd are ours, and in a namespace of a control group
of ours: libsystemd, which polkitd asks, finds the session of a process by the names of its control groups, and what is
known of that session in /run/systemd. Nothing of the machine's own is written to.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from demo import cgroups

PROGRAM = "/usr/lib/polkit-1/polkitd"
REPOSITORY = Path(__file__).resolve().parents[2]

# Users that every distribution has, because the bus lets nobody in whom it cannot look up. To this polkitd the first is
# an administrator, whose password it asks for.
_NAMES = ("games", "mail", "nobody")
ADMIN, INACTIVE, OTHER = (pwd.getpwnam(name).pw_uid for name in _NAMES)
# The state of each user with a session at the host's own seat. OTHER has none, like somebody who came over the network.
_SESSIONS = {ADMIN: "active", INACTIVE: "online"}

_RULE_OF_ADMINS = f'polkit.addAdminRule(function(action, subject) {{ return ["unix-user:{_NAMES[0]}"]; }});\n'
# One more action, to tell the columns apart: yes, with a password, no.
_COLUMNS = """<policyconfig><action id="io.github.lashd1.columns"><description>d</description><message>m</message>
<defaults><allow_any>no</allow_any><allow_inactive>auth_admin</allow_inactive><allow_active>yes</allow_active></defaults>
</action></policyconfig>
"""
_PLACES = {
    "actions": "/usr/share/polkit-1/actions",
    "rules": "/usr/share/polkit-1/rules.d",
    "local-rules": "/etc/polkit-1/rules.d",
    "systemd": "/run/systemd",
}


@dataclass
class Polkitd:
    """`process` is None while it does not run."""

    address: str
    directory: Path
    group: str
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        mounts = [f'mount --bind "$0/{name}" {place}' for name, place in _PLACES.items()]
        script = " && ".join([*mounts, f"exec {PROGRAM} --no-debug"])
        join = 'echo $$ >"$1" && shift && exec "$@"'
        namespaces = ["unshare", "--mount", "--propagation", "private", "--cgroup", "--"]
        self.process = subprocess.Popen(
            ["sh", "-c", join, "sh", f"{self._group()}/cgroup.procs", *namespaces, "sh", "-c", script, self.directory],
            env={"DBUS_SYSTEM_BUS_ADDRESS": self.address, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "log").open("ab"),
        )
        self._await()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """It is there and does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def add_rule(self, name: str, script: str) -> Path:
        """Put a rule where an administrator would: it is read while polkitd runs. Returns the file."""
        path = self.directory / "local-rules" / f"{name}.rules"
        # At once, so that no half of it is read.
        new = self.directory / "new.rules"
        new.write_text(script)
        new.rename(path)
        return path

    def log_in(self, pid: int, uid: int) -> None:
        """Process `pid` belongs to the login session of `uid`, if that has one."""
        if uid in _SESSIONS:
            group = self._group() / f"user.slice/user-{uid}.slice/session-{uid}.scope"
            group.mkdir(parents=True, exist_ok=True)
            cgroups.move(pid, group)

    def _group(self) -> Path:
        return cgroups.create(self.group)

    def _await(self) -> None:
        asked = ["gdbus", "wait", "--system", "--timeout", "20", "org.freedesktop.PolicyKit1"]
        subprocess.run(asked, env={"DBUS_SYSTEM_BUS_ADDRESS": self.address, "PATH": "/usr/bin:/bin"}, check=True)


@contextlib.contextmanager
def polkitd(address: str, directory: Path) -> Iterator[Polkitd]:
    """polkitd on the bus at `address`, with its files in `directory`, which everybody has to be able to enter."""
    _furnish(directory)
    running = Polkitd(address, directory, f"lashd-polkit-{os.getpid()}-{time.monotonic_ns()}")
    try:
        running.start()
        yield running
    finally:
        running.kill()
        cgroups.end(running.group)


def _furnish(directory: Path) -> None:
    for name in ("actions", "rules", "local-rules", *(f"systemd/{part}" for part in ("seats", "sessions", "users"))):
        (directory / name).mkdir(parents=True)
    (directory / "systemd/machines").mkdir()
    for policy in (REPOSITORY / "dbus").glob("*.policy"):
        shutil.copy(policy, directory / "actions")
    (directory / "actions/columns.policy").write_text(_COLUMNS)
    (directory / "rules/50-default.rules").write_text(_RULE_OF_ADMINS)
    for uid, state in _SESSIONS.items():
        name = pwd.getpwuid(uid).pw_name
        (directory / f"systemd/users/{uid}").write_text(f"NAME={name}\nSTATE={state}\nSESSIONS={uid}\n")
        active = int(state == "active")
        (directory / f"systemd/sessions/{uid}").write_text(
            f"UID={uid}\nUSER={name}\nACTIVE={active}\nSTATE={state}\nREMOTE=0\nTYPE=tty\nCLASS=user\nSEAT=seat0\n"
        )
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
