"""What a fat partition will be cut into on every shard: looked at, refused with every reason, and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright import errors
from shardwright.catalog import operations, windows
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import codecs, cuttable, occupied, pieces, swap
from shardwright.partition.fleet import Fleet
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite


@dataclass(frozen=True)
class SplitPlan:
    """What a fat partition will be cut into."""

    #: ``schema.table``.
    table: str
    fat: Partition
    pieces: tuple[Partition, ...]
    #: Bytes of it on each shard; about as many more are needed until it is dropped.
    bytes: dict[str, int]
    rows: dict[str, int]
    #: Bounds as text, by the piece's name.
    bounds: dict[str, tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "table": self.table,
            "partition": self.fat.name,
            "pieces": [
                {"name": one.name, "role": one.role, "from": self.bounds[one.name][0], "to": self.bounds[one.name][1]}
                for one in self.pieces
            ],
            "bytes": self.bytes,
            "rows": self.rows,
        }


def the_table(fleet: Fleet) -> tuple[int, str]:
    """Number and key of the only table of a fleet.

    Args:
        fleet: catalog and shards.

    Raises:
        UnfitTable: its policy does not go with its column.
    """
    if not fleet.tables:
        found = fleet.findings[0]
        raise errors.UnfitTable(found.message, fix=found.fix)
    return fleet.tables[0].id, fleet.tables[0].key


def refuse_moves(catalog: psycopg.Connection, keyspace: str | None, name: str) -> None:
    """Refuse while a live operation moves a table's rows.

    Args:
        catalog: connection to the catalog.
        keyspace: the table's; None where it is not sharded.
        name: the table, for the message.

    Raises:
        OperationConflict: one does.
    """
    for operation in operations.list_live(catalog):
        if any(move.keyspace == keyspace for move in operation.moves):
            raise errors.OperationConflict(
                f"operation {operation.id} ({operation.phase}) moves rows of {name}",
                fix=f"shardwright reshard status {operation.id}; then finish or abort it",
                operation=operation.id,
            )


def make(fleet: Fleet, partition: str | None, since: int | None) -> SplitPlan:
    """Look at every shard and plan.

    Args:
        fleet: catalog and shards.
        partition: which; the only one of role `whole` unless given.
        since: what lies before the window of this moment (of the policy's axis) stays one piece.

    Raises:
        BadOption, UnfitTable, OperationConflict: it cannot be cut.
    """
    number, key = the_table(fleet)
    table = fleet.registered[number]
    assert table.policy is not None
    refuse_moves(fleet.catalog, table.keyspace, table.name)
    listed = [one for one in windows.list_windows(fleet.catalog, number) if one.state == "wanted"]
    fat = _chosen(table.name, listed, partition)
    on = [name for name in sorted(fleet.shards) if table.is_on(name)]
    sites = {name: fleet.site(number, key, name) for name in on}
    said = [f"shard {name}: {what}\n  fix: {fix}" for name in on for what, fix in cuttable.reasons(sites[name], fat)]
    if said:
        raise errors.UnfitTable(
            f"{fat.name} of {table.name} cannot be cut: {len(said)} reason{'s' if len(said) > 1 else ''}\n"
            + "\n".join(said),
            fix="see each line; nothing was changed",
            table=table.name,
        )
    filled = sorted({window for site in sites.values() for window in occupied.windows(site, fat.name)})
    taken = {one.name for one in windows.list_windows(fleet.catalog, number)}
    for site in sites.values():
        taken |= swap.names_in(site.connection, site.schema)
    cut = pieces.cut(table.policy, key, table.table_name, fat, filled, since=since, taken=taken)
    if len(cut) < 2:
        raise errors.UnfitTable(
            f"{fat.name} of {table.name} has rows of one window only: there is nothing to cut",
            fix="shardwright partition status",
            table=table.name,
        )
    sizes = {name: _size(site, fat.name) for name, site in sites.items()}
    column = next(iter(sites.values())).column_type
    bounds = {
        one.name: (
            codecs.bound(table.policy, key, one.lower, "lower", column),
            codecs.bound(table.policy, key, one.upper, "upper", column),
        )
        for one in cut
    }
    return SplitPlan(
        table.name,
        fat,
        tuple(cut),
        {name: size[0] for name, size in sizes.items()},
        {name: size[1] for name, size in sizes.items()},
        bounds,
    )


def _chosen(table: str, listed: Sequence[CatalogWindow], partition: str | None) -> Partition:
    fitting = [one for one in listed if (one.name == partition if partition else one.role == "whole")]
    if len(fitting) == 1 and not fitting[0].is_guard:
        one = fitting[0]
        return Partition(one.name, one.lower, one.upper, one.role)
    names = ", ".join(one.name for one in listed if one.role == "whole") or "none"
    what = f"has no partition {partition} that could be cut" if partition else f"has {len(fitting)} whole partitions"
    raise errors.BadOption(f"{table} {what}", fix=f"name one; whole partitions: {names}")


def _size(site: PartitionSite, name: str) -> tuple[int, int]:
    row = site.connection.execute(
        "SELECT pg_total_relation_size(c.oid), greatest(c.reltuples, 0)::int8 FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (site.schema, name),
    ).fetchone()
    assert row is not None
    return row[0], row[1]
