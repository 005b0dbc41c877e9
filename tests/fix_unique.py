"""People with an address that is unique across shards.

Fixtures:
    people    People: a cluster of two shards with people and the directory of their addresses
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fix_servers import Dsns
from shardwright import Cluster, engines, sharded_by, unique_across_shards, unique_directory
from shardwright.catalog import keyspaces, models
from shardwright.testing.clusters import make_ready


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str | None] = mapped_column(info=unique_across_shards())
    name: Mapped[str | None]


directory = unique_directory(Base.metadata, keyspace="values")


@dataclass
class People:
    """A cluster with people on two shards, and the directory of their addresses."""

    dsns: Dsns
    stack: ExitStack

    def connect(self) -> Cluster:
        return self.stack.enter_context(Cluster.connect(self.dsns.catalog, refresh="never", application="people"))

    def ask(self, shard: str, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsns.shards[shard], autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def everywhere(self, statement: str) -> list[tuple[Any, ...]]:
        return sorted(row for shard in self.dsns.shards for row in self.ask(shard, statement))

    def check(self) -> dict[str, int]:
        """Each address of a row is in the directory with that row, and nothing else is; returns it."""
        rows = self.everywhere("SELECT email, id::text FROM people WHERE email IS NOT NULL")
        values = self.everywhere("SELECT value, owner FROM unique_values WHERE of_column = 'people.email'")
        assert rows == values
        assert len({email for email, _ in rows}) == len(rows), "two rows have one value"
        assert self.ask("s1", "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'shardwright:%'") == []
        return {email: int(key) for email, key in rows}


@contextmanager
def ready_with_people(dsns: Dsns) -> Iterator[People]:
    """A cluster of empty databases, made ready for people."""
    with ExitStack() as stack:
        made = People(dsns, stack)
        make_ready(made.dsns.catalog, made.dsns.shards)
        with engines.connect_catalog(made.dsns.catalog, "test") as catalog:
            keyspaces.create_keyspace(catalog, "values", key_type="text")
            models.register(catalog, Base.metadata)
        yield made


class Writer(Protocol):
    """A thread that writes people until it is stopped."""

    #: set to stop it
    stop: threading.Event
    #: what it met
    failure: BaseException | None

    def start(self) -> None: ...
    def join(self, timeout: float) -> None: ...
    def is_alive(self) -> bool: ...


@contextmanager
def at_work(writers: Sequence[Writer]) -> Iterator[None]:
    """While writers write; fails where one of them did."""
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(60)
    assert [writer.failure for writer in writers] == [None] * len(writers)
    assert not any(writer.is_alive() for writer in writers)


@pytest.fixture
def people(cluster_dsns: Callable[..., Dsns]) -> Iterator[People]:
    with ready_with_people(cluster_dsns(2)) as made:
        yield made
