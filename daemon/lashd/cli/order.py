# SPDX-License-Identifier: Apache-2.0
"""The commands that are done at once, without a job: hold, release."""

from __future__ import annotations

from typing import Any

from lashd.cli import jsonout, values
from lashd.cli.client import Client
from lashd.cli.failures import Failure
from lashd.cli.names import whole_digest
from lashd.cli.render import words


async def hold(client: Client, arguments: Any) -> int:
    expected = await whole_digest(client, arguments.expected_digest)
    await client.order("Hold", {"expected-digest": expected, "reason": arguments.reason})
    if arguments.json:
        jsonout.document({"done": True})
        return 0
    rows = values.rows((await _state(client)).get("deployments"))
    staged = next((row for row in rows if "staged" in values.texts(row, "roles")), {})
    name = words.digest(values.text(staged, "digest", "checksum")) or "DIGEST"
    print(f"The staged deployment is kept back; 'lashctl release {name}' takes that back.")
    return 0


async def release(client: Client, arguments: Any) -> int:
    digest = await whole_digest(client, arguments.digest)
    await client.order("Release", {"expected-digest": digest, "reason": arguments.reason})
    # No order is left where nothing was missing.
    order = values.row((await _state(client)).get("order"))
    incomplete = order.get("hold") is False
    if arguments.json:
        jsonout.document({"done": True, "incomplete": incomplete})
    elif incomplete:
        print(
            "The staged deployment will be let through as it is, although images are missing; their containers "
            "will not start. Reboot to start it."
        )
    else:
        print("The staged deployment is complete and is not held back any more: reboot to start it.")
    return 0


async def _state(client: Client) -> values.Row:
    """How things stand now; nothing when that cannot be had, because what was asked for is done all the same."""
    try:
        return jsonout.parse(await client.describe())
    except Failure:
        return {}
