# SPDX-License-Identifier: Apache-2.0
"""What a reboot now would bring, as the deployments and their images are."""

from __future__ import annotations

from collections.abc import Callable

from lashd.running.jobs import Jobs
from lashd.running.reboot_ways import Outlook
from lashd.running.view import View
from lashd.words.model import Deployment, Role


def look_ahead(view: View, jobs: Jobs, passes: Callable[[Deployment], bool] = lambda staged: False) -> Outlook:
    """Empty of a target when the next boot would bring up what runs already.

    `passes` says of the staged deployment whether the gate lets it through although nobody has declared it ready.
    """
    deployments = view.deployments()
    booted = next((one for one in deployments if Role.BOOTED in one.roles), None)
    first = deployments[0] if deployments else None
    if booted is None or first is None or first is booted:
        return Outlook(booted=_identity(booted))
    staged = Role.STAGED in first.roles
    ready = jobs.active is None and (first.declared or passes(first) if staged else view.decision(first).release)
    return Outlook(_identity(booted), _identity(first), ready, not staged)


def _identity(deployment: Deployment | None) -> str:
    """With its serial: the same commit staged over itself with other kernel arguments is another system."""
    return deployment.name if deployment is not None else ""
