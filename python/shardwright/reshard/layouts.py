"""Whether two shards have the same partitions: what one side writes must find its window on the other.

A stream sends rows as rows of the partitioned table, and the other side puts each into its own window; one without a
window stops the stream. So all windows are there before a move begins, with equal bounds, guards and old tables included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg

from shardwright import errors
from shardwright.catalog.tables import RegisteredTable
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import calendar, codecs, observed
from shardwright.reshard import parts
from shardwright.reshard.parts import Part

_Span = tuple[int | None, int | None]


@dataclass(frozen=True)
class WindowGap:
    """One partition that is not as it must be on one shard."""

    table: str
    #: Its name where it is, or where it was declared.
    window: str
    bounds: str
    #: Where it lacks.
    shard: str
    #: ``missing``; ``pending`` where a detach broke off; ``foreign`` and ``identity`` where it cannot be replicated.
    what: str
    fix: str


def gaps(
    table: RegisteredTable, found: Mapping[str, Sequence[Part]], declared: Sequence[CatalogWindow] = ()
) -> list[WindowGap]:
    """What keeps a table's partitions on some shards from being the same.

    Args:
        table: the partitioned table.
        found: its parts on each shard.
        declared: the catalog's windows of the table; those that are wanted must be on every shard.
    """
    if table.layout.partition_by is None:
        return []
    apply = f"shardwright partition apply {table.name}"
    made: list[WindowGap] = []
    everywhere: dict[str, str] = {}
    for some in found.values():
        for part in some:
            if not part.pending:
                everywhere.setdefault(part.bounds or "", part.name)
    for shard, some in found.items():
        for part in some:
            bounds = part.bounds or ""
            if part.pending:
                made.append(WindowGap(table.name, part.name, bounds, shard, "pending", apply))
            elif part.relkind != "r":
                detach = f"ALTER TABLE {table.name} DETACH PARTITION {part.name}"
                made.append(WindowGap(table.name, part.name, bounds, shard, "foreign", detach))
            elif part.identity == "n" or (part.identity == "i") != (table.layout.replica_identity == "i"):
                # an index on one side and not on the other would send other columns than are looked for
                whose = table.name if table.layout.replica_identity == "i" else f"{part.schema}.{part.name}"
                default = f"ALTER TABLE {whose} REPLICA IDENTITY DEFAULT"
                made.append(WindowGap(table.name, part.name, bounds, shard, "identity", default))
        here = {part.bounds or "" for part in some if not part.pending}
        for bounds in sorted(everywhere.keys() - here):
            made.append(WindowGap(table.name, everywhere[bounds], bounds, shard, "missing", apply))
        spans = {span for bounds in here if (span := span_of(table, bounds)) is not None}
        for window in declared:
            if window.table_id != table.id or window.state != "wanted" or (window.lower, window.upper) in spans:
                continue
            bounds = _bounds_text(table, window)
            if bounds not in everywhere:
                made.append(WindowGap(table.name, window.name, bounds, shard, "missing", apply))
    return made


def span_of(table: RegisteredTable, bounds: str) -> _Span | None:
    """The bounds of a partition on the axis of its table's policy; None for one that no policy makes.

    Args:
        table: the partitioned table.
        bounds: as PostgreSQL prints them in UTC.
    """
    if table.policy is None:
        return None
    try:
        return codecs.parse_bounds(table.policy, observed.partitioned(table).key, bounds)
    except errors.ShardwrightError:
        return None


def is_over(table: RegisteredTable, part: Part, now: datetime) -> bool:
    """Whether the window of a part has ended, so that hardly anything is written there any more.

    Args:
        table: the part's table.
        part: the part.
        now: the source's clock.
    """
    span = span_of(table, part.bounds) if part.bounds is not None else None
    if span is None or span[1] is None or table.policy is None:
        return False
    return span[1] <= calendar.now_on_axis(table.policy, observed.partitioned(table).key, now)


def _bounds_text(table: RegisteredTable, window: CatalogWindow) -> str:
    assert table.policy is not None
    key = observed.partitioned(table).key
    lower = codecs.bound(table.policy, key, window.lower, "lower")
    upper = codecs.bound(table.policy, key, window.upper, "upper")
    return f"FOR VALUES FROM ({lower}) TO ({upper})"


def describe(found: Sequence[WindowGap], limit: int = 5) -> str:
    """Gaps in one line.

    Args:
        found: what `gaps` gave.
        limit: how many are named.
    """
    said = {
        "missing": "{shard} lacks {window} of {table} ({bounds})",
        "pending": "a detach of {window} of {table} broke off on {shard}",
        "foreign": "{window} of {table} on {shard} is no ordinary table",
        "identity": "the replica identity of {window} of {table} on {shard} does not do",
    }
    some = [said[gap.what].format(**vars(gap)) for gap in found[:limit]]
    if len(found) > limit:
        some.append(f"and {len(found) - limit} more")
    return "; ".join(some)


def matrix(found: Sequence[WindowGap]) -> dict[str, dict[str, dict[str, str]]]:
    """Gaps as table -> window -> shard -> what, for JSON."""
    made: dict[str, dict[str, dict[str, str]]] = {}
    for gap in found:
        made.setdefault(gap.table, {}).setdefault(gap.window, {})[gap.shard] = gap.what
    return made


def look(
    connections: Mapping[str, psycopg.Connection],
    tables: Sequence[RegisteredTable],
    declared: Sequence[CatalogWindow] = (),
) -> list[WindowGap]:
    """Look at some shards.

    Args:
        connections: to them, by name.
        tables: which tables; those that are not partitioned are passed over.
        declared: the catalog's windows.
    """
    made: list[WindowGap] = []
    for table in tables:
        if table.layout.partition_by is not None:
            found = {name: parts.of(there, table.schema_name, table.table_name) for name, there in connections.items()}
            made.extend(gaps(table, found, declared))
    return made
