"""Clusters with tables that are partitioned by time.

Fixtures:
    timed     (n=2, *tables) -> Timed: a cluster of n shards and the given tables, `events` by month unless given
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from fix_servers import Dsns
from shardwright import engines
from shardwright.catalog import models
from shardwright.partition import apply
from shardwright.partition.outcomes import Report
from shardwright.partition.plan import Plan
from shardwright.partition.tick import tick
from shardwright.routing.tables import time_partitioned
from shardwright.testing.clusters import make_ready

#: The frozen clock of most tests.
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def by_month(name: str = "events", /, column: str = "at", type_: Any = None, **policy: Any) -> Callable[..., sa.Table]:
    """A table of rows with a time, as a maker that is given the MetaData."""

    def make(metadata: sa.MetaData) -> sa.Table:
        info = policy.pop("info", {})
        return sa.Table(
            name,
            metadata,
            sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
            sa.Column(column, type_ or sa.DateTime(timezone=True), primary_key=True),
            sa.Column("note", sa.Text, server_default="x"),
            info={**info, **time_partitioned(column, **{"every": "1 month", "ahead": 2, **policy})},
        )

    return make


@dataclass
class Timed:
    """A cluster under test."""

    dsns: Dsns
    stack: ExitStack
    _open: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)

    @property
    def catalog(self) -> psycopg.Connection[Any]:
        if "" not in self._open:
            self._open[""] = self.stack.enter_context(engines.connect_catalog(self.dsns.catalog, "test"))
        return self._open[""]

    def shard(self, name: str) -> psycopg.Connection[Any]:
        """A plain connection, as an application has it, in UTC."""
        if name not in self._open:
            self._open[name] = self.stack.enter_context(
                psycopg.connect(self.dsns.shards[name], autocommit=True, options="-c TimeZone=UTC")
            )
        return self._open[name]

    def ask(self, name: str, statement: str, *values: Any) -> Any:
        row = self.shard(name).execute(statement.encode(), values or None).fetchone()
        return row[0] if row is not None else None

    def plan(self, now: datetime = NOW) -> Plan:
        return apply.plan(self.dsns.catalog, now=now)

    def tick(self, now: datetime = NOW, **options: Any) -> Report:
        return tick(self.dsns.catalog, now=now, **{"patience": 1.0, **options})

    def windows(self, shard: str, table: str = "events") -> dict[str, str]:
        """Bounds of the attached partitions by name."""
        found = self.shard(shard).execute(
            "SELECT c.relname, pg_get_expr(c.relpartbound, 0) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = %s::regclass ORDER BY 1",
            (sql.Identifier(table).as_string(None),),
        )
        return {name: text.removeprefix("FOR VALUES FROM ") for name, text in found.fetchall()}

    @contextmanager
    def unreachable(self, shard: str) -> Iterator[None]:
        """Nothing answers at the shard's address."""
        [conninfo] = self.catalog.execute(
            "SELECT conninfo FROM shardwright.shards WHERE name = %s", (shard,)
        ).fetchone() or [""]
        update = "UPDATE shardwright.shards SET conninfo = %s WHERE name = %s"
        self.catalog.execute(update, ("host=/nonexistent dbname=x", shard))
        try:
            yield
        finally:
            self.catalog.execute(update, (conninfo, shard))


def pending_detach(dsn: str, leaf: str) -> None:
    """Leave a DETACH CONCURRENTLY of a leaf of `events` half done, as a server that went down does."""
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn, autocommit=True) as detacher:
        reader.execute("SELECT count(*) FROM events")
        detacher.execute("SET statement_timeout = '500ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            detacher.execute(f"ALTER TABLE events DETACH PARTITION {leaf} CONCURRENTLY".encode())


@pytest.fixture
def timed(cluster_dsns: Callable[..., Dsns]) -> Iterator[Callable[..., Timed]]:
    with ExitStack() as stack:

        def make(n: int = 2, *tables: Callable[[sa.MetaData], sa.Table], keyspace: str = "users") -> Timed:
            made = Timed(cluster_dsns(n), stack)
            make_ready(made.dsns.catalog, made.dsns.shards, keyspace)
            metadata = sa.MetaData()
            for table in tables or (by_month(),):
                table(metadata)
            models.register(made.catalog, metadata)
            return made

        yield make
