"""The catalog and all shards, looked at together: everything that a plan is made from, and connections to carry it out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import psycopg

from shardwright import engines, errors
from shardwright.catalog import operations, roster, tables, windows
from shardwright.catalog.tables import RegisteredTable
from shardwright.partition import observed
from shardwright.partition.declare import Declared
from shardwright.partition.plan import Finding
from shardwright.partition.planner import Facts, expiring
from shardwright.partition.shapes import LiveMove, Needed, Partition, PartitionedTable, ShardShape
from shardwright.partition.site import MOST_MOVED, PATIENCE, PartitionSite

_Result = TypeVar("_Result")

#: Shards that are worked on at the same time.
_WIDTH = 8

_NAME = "shardwright partitions"


class Fleet:
    """The catalog, the shards, and the tables with a policy."""

    def __init__(
        self,
        catalog_dsn: str,
        names: Collection[tuple[str, str]] = (),
        *,
        ids: Collection[int] = (),
        on_progress: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
        most_moved: int = MOST_MOVED,
    ) -> None:
        """Read what the catalog says.

        Args:
            catalog_dsn: where the catalog is.
            names: schema and name of the only tables that count; all by default.
            ids: the same by number.
            on_progress: called between steps; it may raise to stop the work.
            patience: seconds that a step waits for its locks.
            most_moved: rows of a guard that a step may move while the table is locked.

        Raises:
            UnknownTable: one is not registered.
            BadDeclaration: one has no policy.
            CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be asked.
        """
        self._dsn = catalog_dsn
        self._on_progress = on_progress
        self._patience = patience
        self._most_moved = most_moved
        #: The moment that was given to plan for; None: the databases' clocks count.
        self._now: datetime | None = None
        self._connections: dict[str, psycopg.Connection] = {}
        self._catalogs: dict[str, psycopg.Connection] = {}
        self.catalog = engines.connect_catalog(catalog_dsn, _NAME)
        try:
            self.shards = {shard.name: shard for shard in roster.list_shards(self.catalog)}
            self.registered = {table.id: table for table in _chosen(self.catalog, names, ids)}
        except BaseException:
            self.catalog.close()
            raise
        self.tables: list[PartitionedTable] = []
        #: Tables that cannot be planned.
        self.findings: list[Finding] = []
        for table in self.registered.values():
            try:
                self.tables.append(observed.partitioned(table))
            except (errors.UnfitTable, errors.BadDeclaration) as error:
                self.findings.append(Finding("unfit-policy", f"{table.name}: {error.message}", error.fix, table.name))

    def close(self) -> None:
        """Close every connection."""
        for connection in (*self._connections.values(), *self._catalogs.values(), self.catalog):
            connection.close()
        self._connections.clear()
        self._catalogs.clear()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- looking

    def look(self, now: datetime | None = None) -> Facts:
        """Everything that a plan is made from.

        Args:
            now: the moment to plan for; the databases' clock unless given, the slowest one.
        """
        self._now = now
        listed = windows.list_windows(self.catalog)
        declared = {
            table.id: Declared(
                tuple(_partition(one) for one in listed if one.table_id == table.id and one.state == "wanted"),
                tuple(
                    (_partition(one), one.retired_at)
                    for one in listed
                    if one.table_id == table.id and one.retired_at is not None
                ),
                {one.name: one.kept_until for one in listed if one.table_id == table.id and one.kept_until is not None},
            )
            for table in self.tables
        }
        live = [
            LiveMove(operation.id, move.keyspace, move.source, move.target)
            for operation in operations.list_live(self.catalog)
            for move in operation.moves
        ]
        shapes = self.each(self.shards, self._observe)
        clocks = [shape.clock for shape in shapes if shape.clock is not None]
        facts = Facts(
            now or min(clocks, default=datetime.now(UTC)), tuple(self.tables), declared, tuple(shapes), tuple(live)
        )
        return replace(facts, needed=tuple(self._needed(facts)))

    def each(self, names: Iterable[str], work: Callable[[str], _Result]) -> list[_Result]:
        """Do something on several shards at the same time.

        Args:
            names: the shards'.
            work: what; it is given a shard's name, and is the only one that works there.
        """
        names = list(names)
        if len(names) < 2:
            return [work(name) for name in names]
        with ThreadPoolExecutor(min(_WIDTH, len(names)), thread_name_prefix="partitions") as pool:
            return list(pool.map(work, names))

    def _observe(self, name: str) -> ShardShape:
        try:
            return observed.observe(self.shards[name], self.tables, self.connection(name), counted=self._most_moved)
        except errors.PreconditionError as error:
            return ShardShape(name, problem=(error.kind, error.message))

    def _needed(self, facts: Facts) -> Iterable[Needed]:
        by_id = {table.id: table for table in self.tables}
        for shape in facts.shards:
            for key in shape.foreign_keys:
                table = by_id[key.to_id]
                asked = expiring(facts, table) & {leaf.name for leaf in shape.tables[table.id].leaves if leaf.attached}
                if not asked:
                    continue
                child = by_id.get(key.table_id) if key.table_id is not None else None
                going = expiring(facts, child) if child is not None else set()
                yield from observed.needed(self.connection(shape.name), shape.name, table, key, asked, going)

    # ---------------------------------------------------------------- working

    def connection(self, shard: str) -> psycopg.Connection:
        """A connection to a shard, kept open; a broken one is opened anew. For whoever works on that shard.

        Args:
            shard: its name.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: it cannot be used.
        """
        kept = self._connections.get(shard)
        if kept is None or kept.closed:
            kept = self._connections[shard] = engines.connect_shard(self.shards[shard], _NAME)
        return kept

    def site(self, table_id: int, key: str, shard: str) -> PartitionSite:
        """One table on one shard, to be worked on.

        Args:
            table_id: the table's number.
            key: as resolved from the column's type.
            shard: its name.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: the shard or the catalog cannot be used.
        """
        table = self.registered[table_id]
        assert table.policy is not None
        kept = self._catalogs.get(shard)
        if kept is None or kept.closed:
            kept = self._catalogs[shard] = engines.connect_catalog(self._dsn, _NAME)
        return PartitionSite(
            self.shards[shard],
            table,
            table.policy,
            key,
            self.connection(shard),
            kept,
            self._on_progress,
            self._patience,
            self._now,
            self._most_moved,
        )


def _partition(one: windows.CatalogWindow) -> Partition:
    return Partition(one.name, one.lower, one.upper, one.role)


def _chosen(
    catalog: psycopg.Connection, names: Collection[tuple[str, str]], ids: Collection[int]
) -> Sequence[RegisteredTable]:
    listed = tables.list_tables(catalog)
    for schema, name in names:
        found = next((one for one in listed if (one.schema_name, one.table_name) == (schema, name)), None)
        if found is None:
            raise errors.UnknownTable(
                f"table {schema}.{name} is not registered", fix="shardwright table list", table=f"{schema}.{name}"
            )
        if found.policy is None:
            raise errors.BadDeclaration(
                f"table {schema}.{name} has no policy of time partitions",
                fix='time_partitioned("created_at", every="1 month") in its info, then: shardwright table register',
                table=f"{schema}.{name}",
            )
    return [
        one
        for one in listed
        if one.policy is not None
        and (not names or (one.schema_name, one.table_name) in set(names))
        and (not ids or one.id in ids)
    ]
