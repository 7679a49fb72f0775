# SPDX-License-Identifier: Apache-2.0
"""The commands that are done at once, without a job: hold, release."""

from __future__ import annotations

from typing import Any

from lashd.cli import jsonout
from lashd.cli.client import Client


async def hold(client: Client, arguments: Any) -> int:
    await client.order("Hold", {"expected-digest": arguments.expected_digest, "reason": arguments.reason})
    return _told("The staged deployment is kept back; 'lashctl release' takes that back.", json=arguments.json)


async def release(client: Client, arguments: Any) -> int:
    await client.order("Release", {"expected-digest": arguments.digest, "reason": arguments.reason})
    return _told("The staged deployment will be let through as it is: reboot to start it.", json=arguments.json)


def _told(sentence: str, *, json: bool) -> int:
    if json:
        jsonout.document({"done": True})
    else:
        print(sentence)
    return 0
