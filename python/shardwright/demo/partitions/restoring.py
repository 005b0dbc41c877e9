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
class Compared:
    """A window that was brought back, beside what was acknowledged."""

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
    on_progress: Callable[[], None] = lambda: None,
) -> str:
    """Restore the first archived window of a table on all shards.

    Args:
        catalog: connection to the catalog.
        catalog_dsn: its address.
        days: that wrote the rows.
        promise: of the table.
        on_progress: called between steps; it may raise to stop the work.

    Returns:
        The window's name.

    Raises:
        InvariantFailed: nothing was archived, or the window is there still.
    """
    listed = _archived(catalog, promise)
    if not listed:
        raise errors.InvariantFailed(f"no window of {promise.table} was archived")
    name = listed[0].name
    if any(rows is not None for rows in days.found(promise.table, name).values()):
        raise errors.InvariantFailed(f"{name} is archived and not gone")
    restore.restore(catalog_dsn, "public", promise.table, [name], now=days.now, on_progress=on_progress)
    days.brought_back(promise.table, name)
    return name


def compare(days: Days, promise: Promise, name: str, tally: Tally) -> Compared:
    """Compare what was brought back with what was acknowledged, row by row on every shard.

    Args:
        days: that wrote the rows.
        promise: of the table.
        name: of the window.
        tally: gets the evidence of what differs.
    """
    equal, rows = True, 0
    for shard, there in days.found(promise.table, name).items():
        wanted, found = days.acknowledged(promise.table, shard, name), there or set()
        rows += len(found)
        if there is None or found != wanted:
            equal = False
            tally.say(
                f"{name} restored on {shard}: {len(wanted - found)} rows are missing, "
                f"{len(found - wanted)} are not those that were written"
            )
    return Compared(name, rows, equal)


def _archived(catalog: psycopg.Connection[Any], promise: Promise) -> list[archives.ArchiveRow]:
    return archives.list_archives(catalog, tables.get_table(catalog, "public", promise.table).id)
