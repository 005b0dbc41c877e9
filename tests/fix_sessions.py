"""A small shop on two shards, for tests of sessions.

Fixtures:
    shop    Shop: a cluster with tables of every kind, registered from the models below; `.connect()` gives a Cluster
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

import fix_drivers
from fix_servers import Dsns
from shardwright import engines, reference, sharded_by
from shardwright.catalog import maps, models
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap
from shardwright.routing.tables import global_on
from shardwright.session import Cluster
from shardwright.session.pools import Driver
from shardwright.testing.clusters import make_ready


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    score: Mapped[int | None]
    country: Mapped[str | None]
    orders: Mapped[list[Order]] = relationship(
        primaryjoin="User.id == foreign(Order.user_id)", back_populates="user", order_by="Order.n"
    )


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = ({"info": sharded_by("user_id")},)
    user_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    user: Mapped[User] = relationship(primaryjoin="User.id == foreign(Order.user_id)", back_populates="orders")


class Reading(Base):
    """A column of every type that is ordered or grouped."""

    __tablename__ = "readings"
    __table_args__ = ({"info": sharded_by("user_id")},)
    user_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime.datetime] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[datetime.datetime] = mapped_column(sa.DateTime())
    day: Mapped[datetime.date]
    tag: Mapped[uuid.UUID]
    blob: Mapped[bytes | None]
    flag: Mapped[bool | None]
    ratio: Mapped[float | None] = mapped_column(sa.Double)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    doc: Mapped[dict[str, Any]] = mapped_column(JSONB)


class Country(Base):
    __tablename__ = "countries"
    __table_args__ = ({"info": reference(home="s1")},)
    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class Setting(Base):
    __tablename__ = "settings"
    __table_args__ = ({"info": global_on("s2")},)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


@dataclass
class Shop:
    """The cluster under test."""

    dsns: Dsns
    stack: ExitStack
    driver: Driver = "psycopg"
    clusters: list[Cluster] = field(default_factory=list)
    _open: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)

    def connect(self, **options: Any) -> Cluster:
        options = {"refresh": "never", "application": "test"} | options
        # Fixtures are not driven, whatever the test is.
        driver: Driver = self.driver if in_greenlet() else "psycopg"
        self.clusters.append(self.stack.enter_context(fix_drivers.connect(driver, self.dsns.catalog, **options)))
        return self.clusters[-1]

    @property
    def catalog(self) -> psycopg.Connection[Any]:
        if "" not in self._open:
            self._open[""] = self.stack.enter_context(engines.connect_catalog(self.dsns.catalog, "test"))
        return self._open[""]

    def shard(self, name: str) -> psycopg.Connection[Any]:
        """A plain connection, in autocommit mode."""
        if name not in self._open:
            self._open[name] = self.stack.enter_context(psycopg.connect(self.dsns.shards[name], autocommit=True))
        return self._open[name]

    @property
    def map(self) -> ShardMap:
        return maps.load_map(self.catalog)

    def key_on(self, shard: str, nth: int = 0) -> int:
        """The nth key from 1 that lives on a shard by the newest map."""
        found = self.map
        keys = (key for key in range(1, 100_000) if found.route("users", key).shard == shard)
        for _ in range(nth):
            next(keys)
        return next(keys)

    def ask(self, name: str, statement: str, *args: Any) -> Any:
        row = self.shard(name).execute(statement.encode(), args).fetchone()
        return row[0] if row is not None else None

    # A handover in slow motion: what a real one does in one place after the other, and nothing of its streams.

    def fence(self, key: int) -> int:
        """The range of a key is about to be handed over by its shard; returns its id."""
        route = self.map.route("users", key)
        self.shard(route.shard).execute(
            "UPDATE shardwright.ranges SET state = 'fenced' WHERE id = %s", (route.range_id,)
        )
        self._guard(route.shard)
        return route.range_id

    def unfence(self, key: int) -> None:
        route = self.map.route("users", key)
        self.shard(route.shard).execute("UPDATE shardwright.ranges SET state = 'open' WHERE id = %s", (route.range_id,))
        self._guard(route.shard)

    def importing(self, key: int, target: str) -> None:
        """The rows of a key's range are being copied to another shard."""
        route = self.map.route("users", key)
        found = self.map.route_point("users", route.point)
        with self.shard(target).transaction():
            self.shard(target).execute(
                "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
                "VALUES (%s, 'users', %s, 'importing', %s) ON CONFLICT (id) DO UPDATE SET state = 'importing'",
                (route.range_id, f"[{found.lo},{found.hi})", route.map_version),
            )
        self.copy_rows(key, target)

    def copy_rows(self, key: int, target: str) -> None:
        """Copy the rows of a key's range, as the apply worker would: no guard is asked."""
        route = self.map.route("users", key)
        points = self.map.route_point("users", route.point).points()
        there = self.shard(target)
        there.execute("SET session_replication_role = replica")
        for table in (User.__table__, Order.__table__, Reading.__table__):
            column = "id" if table.name == "users" else "user_id"
            here = self.shard(route.shard)
            keys = [row[0] for row in here.execute(f"SELECT DISTINCT {column} FROM {table.name}".encode())]
            moving = [str(key) for key in keys if self.map.route("users", key).point in points]
            if moving:
                query = f"COPY (SELECT * FROM {table.name} WHERE {column} IN ({', '.join(moving)})) TO STDOUT"
                with here.cursor().copy(query.encode()) as out:
                    data = b"".join(bytes(block) for block in out)
                there.execute(f"DELETE FROM {table.name} WHERE {column} IN ({', '.join(moving)})".encode())
                with there.cursor().copy(f"COPY {table.name} FROM STDIN".encode()) as into:
                    into.write(data)
        there.execute("RESET session_replication_role")

    def commit_map(self, key: int, target: str) -> int:
        """The catalog gives a key's range to another shard; returns the new version."""
        route = self.map.route("users", key)
        with self.catalog.transaction():
            self.catalog.execute("UPDATE shardwright.ranges SET shard = %s WHERE id = %s", (target, route.range_id))
            return maps.write_version(self.catalog, "test")

    def open(self, range_id: int, target: str) -> None:
        """The new owner begins to serve a range."""
        with self.shard(target).transaction():
            self.shard(target).execute("UPDATE shardwright.ranges SET state = 'open' WHERE id = %s", (range_id,))
            self._guard(target)

    def wait_for_references(self) -> None:
        """Until each shard has every row of the reference tables."""
        deadline = time.monotonic() + 30
        wanted = self.ask("s1", "SELECT count(*) FROM countries")
        while self.ask("s2", "SELECT count(*) FROM countries") != wanted:
            assert time.monotonic() < deadline, "reference rows do not arrive"
            time.sleep(0.02)

    def hand_over(self, key: int, target: str) -> int:
        """All of it; the old rows stay where they were. Returns the range's id."""
        self.importing(key, target)
        return self.hand_over_rest(key, target)

    def hand_over_rest(self, key: int, target: str) -> int:
        """The switch."""
        source = self.map.route("users", key).shard
        number = self.fence(key)
        self.shard(source).execute("UPDATE shardwright.ranges SET state = 'moved' WHERE id = %s", (number,))
        self._guard(source)
        self.commit_map(key, target)
        self.open(number, target)
        return number

    def split(self, pieces: int = 8) -> None:
        """Cut the ranges of both shards, so that one can move without the others."""
        found, step = self.map, 4096 // pieces
        with self.catalog.transaction():
            for name in ("s1", "s2"):
                with self.shard(name).transaction():
                    self.shard(name).execute("DELETE FROM shardwright.ranges")
            self.catalog.execute("DELETE FROM shardwright.ranges")
            for low in range(0, 4096, step):
                owner = found.route_point("users", low).shard
                row = self.catalog.execute(
                    "INSERT INTO shardwright.ranges (keyspace, points, shard) "
                    "SELECT id, int8range(%s, %s), %s FROM shardwright.keyspaces RETURNING id",
                    (low, low + step, owner),
                ).fetchone()
                assert row is not None
                self.shard(owner).execute(
                    "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
                    "VALUES (%s, 'users', int8range(%s, %s), 'open', 1)",
                    (row[0], low, low + step),
                )
            maps.write_version(self.catalog, "test")

    def _guard(self, name: str) -> None:
        """Bring the guards in line with the open ranges."""
        from shardwright.catalog import guards, tables

        connection = self.shard(name)
        row = connection.execute(
            "SELECT coalesce(range_agg(points) FILTER (WHERE state = 'open'), '{}')::text FROM shardwright.ranges"
        ).fetchone()
        assert row is not None
        guarded = [t.guarded(self.map) for t in tables.list_tables(self.catalog, "users")]
        with connection.transaction():
            guards.replace(connection, guarded, Multirange.parse(row[0]), refuse_truncate=False)


@pytest.fixture
def shop(cluster_dsns: Callable[..., Dsns], driver: Driver) -> Iterator[Shop]:
    with ExitStack() as stack:
        made = Shop(cluster_dsns(2), stack, driver)
        make_ready(made.dsns.catalog, made.dsns.shards)
        models.register(made.catalog, Base.metadata)
        made.split()
        yield made


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until something is so; fails with `what` after 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        await_only(asyncio.sleep(0.005)) if in_greenlet() else time.sleep(0.005)


@contextlib.contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """Run something beside the test, as a task where the test is one; what it returned or raised is in the dict at the end."""
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["result"] = work()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            found["error"] = error

    thread = _Task(run) if in_greenlet() else threading.Thread(target=run)
    thread.start()
    found["thread"] = thread
    yield found
    thread.join(100)
    assert not thread.is_alive()


class _Task:
    """What is used of a thread, as a task."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(greenlet_spawn(self._target))

    def is_alive(self) -> bool:
        return not self._task.done()

    def join(self, seconds: float) -> None:
        await_only(asyncio.wait([self._task], timeout=seconds))
