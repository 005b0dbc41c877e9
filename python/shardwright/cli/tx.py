"""``shardwright tx``: transactions on several shards that are not settled."""

from __future__ import annotations

import re
import uuid
from contextlib import ExitStack

from cyclopts import App

from shardwright import errors
from shardwright.catalog import recovery
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table, bad, good, warn

app = App(
    name="tx",
    help="List and end transactions on several shards whose sessions did not.",
    help_epilogue="Example:\n\n    shardwright tx list\n\n    shardwright tx recover --older-than 30s",
)

_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
_PARTS_LEFT = 4


@app.command(name="list")
def list_(*, common: Common = DEFAULTS) -> Answer:
    """List the transactions on several shards that are in doubt, or decided and not yet ended on every shard."""
    with common.connect() as catalog, ExitStack() as stack:
        found = recovery.look(catalog, stack)
    value = [
        {
            "id": one.id,
            "state": one.state,
            "age_s": round(one.age, 1),
            "shards": list(one.shards),
            "prepared_on": one.prepared_on,
            "application": one.application,
        }
        for one in found.transactions
    ]
    rows = [
        (
            one.id,
            warn(one.state) if one.outcome == "open" else good(one.state),
            f"{one.age:.1f} s",
            ", ".join(one.shards),
            ", ".join(one.prepared_on) or None,
            one.application or None,
        )
        for one in found.transactions
    ]
    columns = ("transaction", "state", "age", "shards", "prepared on", "application")
    return Answer(
        {"transactions": value, "unreachable": found.unreachable},
        [Table(columns, rows, empty="every transaction is settled"), *_unreachable(found.unreachable)],
        next_steps=["shardwright tx recover"] if value else [],
    )


@app.command
def recover(transaction: str | None = None, /, *, older_than: str = "30s", common: Common = DEFAULTS) -> Answer:
    """Bring transactions to their end: what the catalog has as committed is committed, everything else is rolled back.

    May be run at any time, again, and by several at once. Prepared transactions of others are never touched.

    Args:
        transaction: the only one to end, whatever its age; all by default.
        older_than: younger ones are left to their sessions: seconds, or a number with ms, s, m or h.
    """
    seconds = _seconds(older_than)
    only = _id(transaction) if transaction is not None else None
    with common.connect() as catalog:
        ended, unreachable = recovery.recover(catalog, older_than=seconds, only=only)
    value = [
        {
            "id": one.id,
            "outcome": one.outcome,
            "shards": list(one.shards),
            "ended_on": list(one.ended_on),
            "left": one.left,
        }
        for one in ended
    ]
    rows = [
        (
            one.id,
            good(one.outcome) if not one.left else warn(one.outcome),
            ", ".join(one.ended_on) or None,
            "; ".join(f"{shard}: {why}" for shard, why in one.left.items()) or None,
        )
        for one in ended
    ]
    is_left = any(one.left for one in ended)
    return Answer(
        {"transactions": value, "unreachable": unreachable},
        [
            Table(("transaction", "outcome", "ended on", "left"), rows, empty="nothing was to be ended"),
            *_unreachable(unreachable),
        ],
        next_steps=["shardwright tx recover"] if is_left or unreachable else [],
        exit_code=errors.PreconditionError.exit_code if unreachable else _PARTS_LEFT if is_left else 0,
    )


def _unreachable(found: dict[str, str]) -> list[str]:
    return [bad(f"shard {shard} was not asked: {why}") for shard, why in found.items()]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise errors.BadOption(f"--older-than {text}: no length of time", fix="--older-than 30s, 5m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise errors.BadOption(f"{text} is no transaction's id", fix="shardwright tx list") from None
