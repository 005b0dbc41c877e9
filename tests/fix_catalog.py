"""Clusters without application tables, for tests of the catalog.

Fixtures:
    found     (n=2, joined=n, keyspace="users") -> Found: a catalog and databases for n shards, `joined` of them shards
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from fix_servers import Dsns
from shardwright import engines
from shardwright.catalog import adoption, keyspaces, migrations, shards
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.tables import Declaration


@dataclass
class Found:
    """A cluster under test."""

    dsns: Dsns
    stack: ExitStack
    catalog: psycopg.Connection = field(init=False)
    _open: dict[str, psycopg.Connection] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.catalog = self.stack.enter_context(engines.connect_catalog(self.dsns.catalog, "test"))

    def shard(self, name: str) -> psycopg.Connection:
        """A plain connection, as an application has it."""
        if name not in self._open:
            self._open[name] = self.stack.enter_context(psycopg.connect(self.dsns.shards[name], autocommit=True))
        return self._open[name]

    def add(self, name: str, **options: Any) -> shards.Shard:
        return shards.add_shard(self.catalog, name, self.dsns.shards[name], **options)

    def adopt(self, *tables: str, **declared: Any) -> list[RegisteredTable]:
        """Register tables of schema public; by default as sharded by user_id."""
        declaration = Declaration(**declared) if declared else BY_USER
        return adoption.adopt(self.catalog, [adoption.Wanted("public", table, declaration) for table in tables])

    def ask(self, name: str, statement: str) -> Any:
        row = self.shard(name).execute(statement.encode()).fetchone()
        return row[0] if row is not None else None


BY_USER = Declaration("sharded", "user_id", "users")


def refused(connection: psycopg.Connection, statement: str) -> str | None:
    """The SQLSTATE with which a statement is refused; None when it is not. What it did is undone."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
    except psycopg.DatabaseError as error:
        return error.sqlstate
    return None


@pytest.fixture
def found(cluster_dsns: Callable[..., Dsns]) -> Iterator[Callable[..., Found]]:
    with ExitStack() as stack:

        def make(n: int = 2, joined: int | None = None, keyspace: str | None = "users") -> Found:
            made = Found(cluster_dsns(n), stack)
            migrations.apply(made.catalog, "catalog")
            for name in list(made.dsns.shards)[: n if joined is None else joined]:
                made.add(name)
            if keyspace:
                keyspaces.create_keyspace(made.catalog, keyspace)
            return made

        yield make
