"""One statement that writes on several shards: its rows are dealt out, and what comes back is one result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import CursorResult
from sqlalchemy.engine.result import IteratorResult

from shardwright.session.narrowing import OwnedRow
from shardwright.session.targets import Spread

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

#: One shard's part: its name, the statement for it, and the sets of values for it.
Part = tuple[str, Any, Any]


def parts_of(cluster: Cluster, target: Spread, statement: Any, params: Any) -> Iterator[Part]:
    """What each shard executes.

    Args:
        cluster: knows the keyspaces.
        target: which shards.
        statement: the caller's.
        params: what it was given with.
    """
    for shard in target.ranges:
        if target.rows:
            yield shard, statement, [params[at] for at in target.rows[shard]]
        else:
            # While rows move, a shard has copies of rows that it does not own.
            assert target.plan.root is not None
            keyspace = cluster.map.keyspace(target.plan.root_keyspace)
            owned = OwnedRow(keyspace, target.points[shard], target.plan.root)
            yield shard, statement.where(owned), params


def joined(target: Spread, statement: Any, results: Mapping[str, Any]) -> Any:
    """The shards' results as one.

    Args:
        target: what was dealt out.
        statement: the caller's.
        results: a result a shard, as `Session.execute` gives them.

    Returns:
        A result whose rows are in the order of the rows that were given, where each of those gave one back, and else
        shard by shard; its `rowcount` is the sum.
    """
    found = list(results.values())
    first = found[0]
    if not statement._returning:
        if isinstance(first, CursorResult):
            counts = [one.rowcount for one in found]
            first.context._rowcount = -1 if -1 in counts else sum(counts)
            # SQLAlchemy remembers what it has told.
            first.__dict__.pop("rowcount", None)
        return first
    rows = {shard: one.all() for shard, one in results.items()}
    whole: IteratorResult[Any] = IteratorResult(first._metadata, iter(_in_order(target, rows)))
    whole._attributes = first._attributes
    return whole


def _in_order(target: Spread, rows: Mapping[str, Sequence[Any]]) -> list[Any]:
    if not target.rows or any(len(rows[shard]) != len(given) for shard, given in target.rows.items()):
        return [row for part in rows.values() for row in part]
    placed = ((at, row) for shard, given in target.rows.items() for at, row in zip(given, rows[shard], strict=True))
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]
