"""The numbers of those who make ids, handed out by the catalog: to a shard for good, to a process with a span of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright import errors

#: Milliseconds that a removed shard's clock may have been ahead of the catalog's.
_AHEAD_MS = 60_000

_FREE = """
SELECT number FROM shardwright.generators WHERE shard IS NULL AND granted <= shardwright.ids_clock()
 ORDER BY granted = 0, number DESC LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_GRANT = """
UPDATE shardwright.generators g
   SET granted = greatest(g.granted, shardwright.ids_clock()) + %(span)s, holder = %(holder)s, at = clock_timestamp()
  FROM (SELECT number, granted FROM shardwright.generators WHERE number = ({which})) AS old
 WHERE g.number = old.number AND g.granted = old.granted AND g.shard IS NULL
RETURNING g.number, g.granted - %(span)s, g.granted, shardwright.ids_clock()
"""


@dataclass(frozen=True)
class Grant:
    """A number and the milliseconds of ids that may be used with it: ids within were granted to nobody else."""

    number: int
    first: int
    end: int
    #: The catalog's clock when it was granted, in milliseconds of ids.
    now: int


def grant(catalog: psycopg.Connection[Any], holder: str, span: int, before: Grant | None = None) -> Grant:
    """Grant a process ids.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        holder: who asks, for people.
        span: milliseconds.
        before: what it had last; it keeps the number where nobody has taken that meanwhile.

    Returns:
        The grant; its first millisecond is never before what was granted with that number.

    Raises:
        OperationConflict: all numbers are in use.
    """
    values = {"span": span, "holder": holder}
    if before is not None:
        mine = _GRANT.format(which="SELECT number FROM shardwright.generators WHERE number = %(mine)s "
                             "AND granted = %(end)s FOR UPDATE")  # fmt: skip
        row = catalog.execute(mine.encode(), {**values, "mine": before.number, "end": before.end}).fetchone()
        if row is not None:
            return Grant(*row)
    row = catalog.execute(_GRANT.format(which=_FREE).encode(), values).fetchone()
    if row is None:
        raise errors.OperationConflict(
            "all numbers for making ids are in use by shards and processes",
            fix="wait for a minute: a process that has ended gives its number back",
        )
    return Grant(*row)


def number_for(catalog: psycopg.Connection[Any], shard: str) -> tuple[int, int]:
    """The number that a shard makes its ids with, given to it now unless it has one.

    Args:
        catalog: connection to the catalog.
        shard: its name.

    Returns:
        The number, and the millisecond of ids from which on it may be used.

    Raises:
        OperationConflict: all numbers are in use.
    """
    row = catalog.execute(
        "UPDATE shardwright.generators SET shard = %(shard)s WHERE number = coalesce("
        "(SELECT number FROM shardwright.generators WHERE shard = %(shard)s), "
        "(SELECT number FROM shardwright.generators WHERE shard IS NULL ORDER BY granted, number LIMIT 1 FOR UPDATE)) "
        "RETURNING number, granted",
        {"shard": shard},
    ).fetchone()
    if row is None:
        raise errors.OperationConflict("all numbers for making ids belong to shards", fix="use fewer shards")
    return int(row[0]), int(row[1])


def shard_is_gone(catalog: psycopg.Connection[Any], shard: str) -> None:
    """A shard made its last id: should one of its name come again, it goes on after it.

    Args:
        catalog: connection to the catalog.
        shard: its name.
    """
    catalog.execute(
        "UPDATE shardwright.generators SET granted = greatest(granted, shardwright.ids_clock() + %s) WHERE shard = %s",
        (_AHEAD_MS, shard),
    )
