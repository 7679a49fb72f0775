# SPDX-License-Identifier: Apache-2.0
"""Who may do what on a booted host: by real sessions of a real logind, its own polkit, and lashd as installed."""

from __future__ import annotations

import json
import time

import pytest

from demo.host import Host

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
