"""An archived window is brought back, and compared row by row with what was acknowledged when it was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright import errors
from shardwright.catalog import archives, tables
from shardwright.demo.partitions.days import Days
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.promise import Promise
from shardwright.partition import restore


@dataclass(frozen=True)
class Restored:
    """What became of one window."""

    name: str
    rows: int
    #: Whether every shard has exactly the rows that were acknowledged.
    equal: bool


def count(catalog: psycopg.Connection[Any], promise: Promise) -> int:
    """How many windows of a table were archived, counted once for all shards.

    Args:
        catalog: connection to the catalog.
        promise: of the table.
    """
    return len({one.name for one in _archived(catalog, promise)})


def bring_back(
    catalog: psycopg.Connection[Any],
    catalog_dsn: str,
    days: Days,
    promise: Promise,
    tally: Tally,
    on_progress: Callable[[], None] = lambda: None,
) -> Restored:
    """Restore the first archived window of a table on all shards, and compare.

    Args:
        catalog: connection to the catalog.
        catalog_dsn: its address.
        days: that wrote the rows.
        promise: of the table.
        tally: gets the evidence of what differs.
        on_progress: called between steps; it may raise to stop the work.

    Raises:
        InvariantFailed: nothing was archived, or the window is there still.
    """
    listed = _archived(catalog, promise)
    if not listed:
        raise errors.InvariantFailed(f"no window of {promise.table} was archived")
    name = listed[0].name
    before = days.found(promise.table, name)
    if any(rows is not None for rows in before.values()):
        raise errors.InvariantFailed(f"{name} is archived and not gone")
    restore.restore(catalog_dsn, "public", promise.table, [name], now=days.now, on_progress=on_progress)
    equal, rows = True, 0
    for shard, there in days.found(promise.table, name).items():
        wanted = days.acknowledged(promise.table, shard, name)
        rows += len(there or ())
        if there is None or there != wanted:
            equal = False
            lacking, strange = len(wanted - (there or set())), len((there or set()) - wanted)
            tally.say(
                f"{name} restored on {shard}: {lacking} rows are missing, {strange} are not those that were written"
            )
    return Restored(name, rows, equal)


def _archived(catalog: psycopg.Connection[Any], promise: Promise) -> list[archives.ArchiveRow]:
    return archives.list_archives(catalog, tables.get_table(catalog, "public", promise.table).id)
