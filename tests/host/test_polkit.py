# SPDX-License-Identifier: Apache-2.0
"""Who may do what on a booted host: by real sessions of a real logind, its own polkit, and lashd as installed."""

from __future__ import annotations

import json
import os
import select
import termios
import time

import pytest

from demo.host import Host
from demo.shell import end, start

pytestmark = pytest.mark.host

PASSWORD = "InteractiveAuthorizationRequired"
# A session at the seat, made by PAM as login does it. This seat has no virtual terminals, so the session that was
# opened last is the active one.
_SESSION = ("--property=PAMName=login", "--setenv=XDG_SEAT=seat0", "--setenv=XDG_SESSION_TYPE=tty")
_COMMANDS = ("status", "check", "verify", "hold")
# Its commands wait until everybody is there.
_SCRIPT = f"""
until [ -e /run/go ]; do sleep 0.05; done
for each in {" ".join(f"'{command}'" for command in _COMMANDS)}; do
    lashctl --json $each 2>/dev/null | tr -d '\\n'
    echo
done >$1
"""
_RULE = """
polkit.addRule(function(action, subject) {
    if (action.id == "io.github.lashd1.verify" && subject.user == "nobody") return polkit.Result.YES;
});
"""


def log_in(host: Host, user: str, *how: str) -> None:
    """Start the commands of `user`, and see to it that the session is there."""
    host.run("install", "-o", user, "/dev/null", f"/run/{user}.out")
    argv = ["systemd-run", "--quiet", f"--unit=at-{user}", f"--uid={user}", *how]
    host.run(*argv, "sh", "-c", _SCRIPT, "sh", f"/run/{user}.out")
    deadline = time.monotonic() + 10
    while how and user not in host.run("loginctl", "list-sessions", "--no-legend").output:
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.1)


def outcome(told: str) -> str:
    """The name of the error when somebody may not, else nothing, whatever came of it."""
    name = json.loads(told).get("error", {}).get("name", "").rpartition(".")[2]
    return name if name in ("NotAuthorized", PASSWORD) else ""


def outcomes(host: Host, user: str) -> list[str]:
    deadline = time.monotonic() + 30
    while host.run("systemctl", "is-active", f"at-{user}", check=False).output == "active\n":
        assert time.monotonic() < deadline, host.journal()
        time.sleep(0.1)
    return [outcome(line) for line in host.run("cat", f"/run/{user}.out").output.splitlines()]


def verify(host: Host, user: str) -> str:
    as_user = ["systemd-run", "--quiet", "--pipe", "--wait", f"--uid={user}"]
    return outcome(host.run(*as_user, "lashctl", "--json", "verify", check=False).output)


def test_real_sessions(booted: Host) -> None:
    log_in(booted, "mail", *_SESSION)
    log_in(booted, "games", *_SESSION)
    log_in(booted, "nobody")
    booted.run("touch", "/run/go")
    assert outcomes(booted, "games") == ["", "", *[PASSWORD] * 2]
    assert outcomes(booted, "mail") == ["", *[PASSWORD] * 3]
    assert outcomes(booted, "nobody") == ["", *[PASSWORD] * 3]


def at_a_terminal(host: Host, typed: bytes) -> tuple[str, bool]:
    """What is shown where somebody asks for something and types `typed` at the prompt; is typing seen again then?"""
    ours, theirs = os.openpty()
    as_user = ["setsid", "--ctty", "su", "--shell=/bin/sh", "--session-command=lashctl verify", "games"]
    process = start(host.enter(as_user, ["TERM=dumb"]), stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""
    try:
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            shown += os.read(ours, 4096)
            if shown.endswith(b"Password: "):
                while seen(theirs):  # what was typed before is thrown away
                    time.sleep(0.01)
                os.write(ours, typed)
        return shown.decode(), seen(theirs)
    finally:
        os.close(ours)
        os.close(theirs)
        end(process)


def seen(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def test_a_password_on_a_terminal(booted: Host) -> None:
    """lashctl brings the agent that a terminal lacks, and leaves neither it nor a silent terminal behind."""
    booted.run("chpasswd", input=b"root:right\n")
    shown, typing_is_seen = at_a_terminal(booted, b"right\n")
    assert "verify the application images of this host (verify; asked for by user 5 as lashctl)" in shown
    assert "Every image is as it was recorded." in shown
    assert typing_is_seen
    shown, _ = at_a_terminal(booted, b"wrong\n")
    assert "no administrator's password was given" in shown
    shown, typing_is_seen = at_a_terminal(booted, b"\x03")
    assert "recorded" not in shown
    assert typing_is_seen
    assert booted.run("pidof", "pkttyagent", check=False).output == ""


def test_a_rule_and_no_polkit(booted: Host) -> None:
    assert verify(booted, "nobody") == PASSWORD
    booted.run("sh", "-c", "cat >/etc/polkit-1/rules.d/50-lashd.rules", input=_RULE.encode())
    deadline = time.monotonic() + 5
    while verify(booted, "nobody") != "":
        assert time.monotonic() < deadline
    assert verify(booted, "mail") == PASSWORD
    booted.run("systemctl", "mask", "--runtime", "--now", "polkit.service")
    started = time.monotonic()
    assert verify(booted, "nobody") == "NotAuthorized"
    assert time.monotonic() - started < 5
    assert "UnitMasked" in booted.run("journalctl", "--unit=lashd", "--no-pager", "--grep=only root may").output
    assert verify(booted, "root") == ""
