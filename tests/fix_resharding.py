"""A small cluster with two sharded tables, for tests of operations.

Fixtures:
    writers (function)  Writers on s1 and s2, plain psycopg clients
    small (function)   Small: catalog and shards s1, s2 (in the cluster) and s3 (added), rows in two tables
    timely (function)  Small with a third table, `visits`, in windows of a week; its writers write that one too
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from shardwright import engines
from shardwright.catalog import adoption, maps, roster, shards
from shardwright.catalog.adoption import Wanted
from shardwright.partition.tick import tick
from shardwright.reshard import operate
from shardwright.routing.tables import Declaration, declaration_of, sharded_by, time_partitioned
from shardwright.testing.clusters import make_ready

ROWS = 4000
WEEKS_AHEAD = 2


@dataclass
class Small:
    """A cluster under test."""

    catalog_dsn: str
    dsns: dict[str, str]
    #: A moment in each window of `visits`, oldest first; all but the last WEEKS_AHEAD + 1 are over.
    weeks: tuple[datetime, ...] = ()

    def catalog(self) -> psycopg.Connection:
        return engines.connect_catalog(self.catalog_dsn, "test")

    def shard(self, name: str) -> psycopg.Connection:
        return psycopg.connect(self.dsns[name], autocommit=True)

    def ask(self, name: str, statement: str) -> Any:
        with self.shard(name) as connection:
            row = connection.execute(statement.encode()).fetchone()
            return row[0] if row is not None else None

    def start(self, **request: Any) -> int:
        """Start an operation; see `operate.plan` for what may be asked."""
        with self.catalog() as catalog:
            return operate.start(catalog, operate.plan(catalog, **request))

    def leaf_of(self, shard: str, at: datetime) -> str:
        """The name of the partition of `visits` that holds a moment."""
        found = self.ask(shard, f"SELECT tableoid::regclass::text FROM visits WHERE at = '{at.isoformat()}' LIMIT 1")
        assert found is not None
        return str(found)

    def rows(self, table: str = "orders") -> list[tuple[Any, ...]]:
        """All rows that the shards serve, with the shard's name; fails where a shard holds what it does not own."""
        found = []
        with self.catalog() as catalog:
            shard_map = maps.load_map(catalog)
        for name in self.dsns:
            with self.shard(name) as connection:
                for row in connection.execute(f"SELECT * FROM {table}".encode()):
                    assert shard_map.route("users", row[0]).shard == name, f"{row} is on {name}"
                    found.append(row)
        return sorted(found)

    def leftovers(self) -> dict[str, Any]:
        """What an operation left on the shards; empty when it is clean."""
        found: dict[str, Any] = {}
        with self.catalog() as catalog:
            shard_map = maps.load_map(catalog)
        for name in self.dsns:
            with self.shard(name) as connection:
                row = connection.execute(
                    "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), "
                    "(SELECT count(*) FROM pg_publication), "
                    "(SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
                    "   WHERE d.datname = current_database()), "
                    "(SELECT count(*) FROM shardwright.control), (SELECT count(*) FROM shardwright.marker), "
                    "(SELECT count(*) FROM shardwright.ranges WHERE state <> 'open')"
                ).fetchone()
                if any(row):
                    found[name] = row
                known = {(r.id, r.keyspace) for r in shard_map.ranges if r.shard == name}
                there = set(connection.execute("SELECT id, keyspace FROM shardwright.ranges").fetchall())
                if there != known:
                    found[f"{name} ranges"] = there ^ known
        return found


class Writer(threading.Thread):
    """A plain psycopg client that inserts rows on one shard and remembers what was acknowledged and what refused."""

    def __init__(self, dsn: str, keys: list[int], first: int, weeks: Sequence[datetime] = ()) -> None:
        super().__init__(daemon=True)
        self.dsn, self.keys, self.next, self.weeks = dsn, keys, first, weeks
        self.acknowledged: set[tuple[int, int]] = set()
        #: Those of `visits`, with their time; every second row goes there, where there are windows.
        self.visits: set[tuple[int, datetime, int]] = set()
        self.refused = 0
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stop.is_set():
                row = (self.keys[self.next % len(self.keys)], self.next)
                self.next += 1
                try:
                    if self.weeks and self.next % 2:
                        visit = (row[0], self.weeks[self.next // 2 % len(self.weeks)], row[1])
                        connection.execute("INSERT INTO visits VALUES (%s, %s, %s, 'written')", visit)
                        self.visits.add(visit)
                    else:
                        connection.execute("INSERT INTO orders VALUES (%s, %s, 'written')", row)
                        self.acknowledged.add(row)
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "SH001":
                        raise
                    self.refused += 1


@pytest.fixture
def small(cluster_dsns: Callable[..., Any]) -> Small:
    dsns = cluster_dsns(3)
    return load_small(dsns.catalog, dsns.shards)


@pytest.fixture
def timely(small: Small) -> Small:
    add_visits(small)
    return small


def add_visits(small: Small, weeks: int = 4, ahead: int = WEEKS_AHEAD, rows: int = ROWS) -> None:
    """Give the cluster a table in windows of a week, `weeks` of which are over, and rows in each."""
    now = datetime.now(UTC)
    policy = {"every": "1 week", "ahead": weeks + ahead}
    declared = declaration_of(
        sa.Table("visits", sa.MetaData(), sa.Column("user_id", sa.BigInteger, primary_key=True),
                 sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
                 sa.Column("n", sa.BigInteger, primary_key=True),
                 info=sharded_by("user_id", keyspace="users") | time_partitioned("at", **policy))
    )  # fmt: skip
    assert declared is not None
    with small.shard("s1") as connection:
        connection.execute(
            "CREATE TABLE visits (user_id bigint, at timestamptz, n bigint, note text, PRIMARY KEY (user_id, at, n)) "
            "PARTITION BY RANGE (at)"
        )
        connection.execute("CREATE INDEX visits_at ON visits (at)")
    with small.catalog() as catalog:
        adoption.adopt(catalog, [Wanted("public", "visits", declared)])
        shard_map = maps.load_map(catalog)
    report = tick(small.catalog_dsn, now=now - timedelta(weeks=weeks))
    assert report.exit_code == 0, report.to_json()
    small.weeks = tuple(now + timedelta(weeks=week) for week in range(-weeks, ahead + 1))
    for name in ("s1", "s2"):
        with small.shard(name) as connection, connection.cursor() as cursor:
            mine = [key for key in range(rows) if shard_map.route("users", key % ROWS).shard == name]
            with cursor.copy("COPY visits FROM STDIN") as copy:
                for key in mine:
                    copy.write_row((key % ROWS, small.weeks[key % len(small.weeks)], key // ROWS, f"visit {key}"))


def load_small(catalog_dsn: str, dsns: dict[str, str]) -> Small:
    """Make the small cluster from empty databases."""
    make_ready(catalog_dsn, {name: dsns[name] for name in ("s1", "s2")})
    made = Small(catalog_dsn, dsns)
    statements = (
        "CREATE TABLE orders (user_id bigint, n bigint, note text, PRIMARY KEY (user_id, n))",
        "CREATE TABLE items (user_id bigint, id bigint GENERATED BY DEFAULT AS IDENTITY, body jsonb, "
        "at timestamptz DEFAULT now(), PRIMARY KEY (user_id, id))",
        "CREATE INDEX items_at ON items (at)",
    )
    for name in ("s1", "s2"):
        with made.shard(name) as connection:
            for statement in statements:
                connection.execute(statement)
    declaration = Declaration(**_declared())
    with made.catalog() as catalog:
        adoption.adopt(catalog, [Wanted("public", name, declaration) for name in ("orders", "items")])
        shards.add_shard(catalog, "s3", dsns["s3"])
        shard_map = maps.load_map(catalog)
        assert [shard.name for shard in roster.list_shards(catalog)] == ["s1", "s2", "s3"]
    for name in ("s1", "s2"):
        with made.shard(name) as connection, connection.cursor() as cursor:
            mine = [k for k in range(ROWS) if shard_map.route("users", k).shard == name]
            with cursor.copy("COPY orders FROM STDIN") as copy:
                for key in mine:
                    copy.write_row((key, 1, f"note {key}"))
            cursor.execute(
                "INSERT INTO items (user_id, body) SELECT k, jsonb_build_object('k', k) FROM unnest(%s::bigint[]) k",
                (mine,),
            )
    return made


@pytest.fixture
def writers(small: Small) -> Iterator[list[Writer]]:
    """Clients without the library that write to both old shards all the time."""
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    made = [
        Writer(
            small.dsns[name],
            [k for k in range(ROWS) if shard_map.route("users", k).shard == name],
            10**6 * (i + 1),
            small.weeks,
        )
        for i, name in enumerate(("s1", "s2"))
    ]
    for writer in made:
        writer.start()
    yield made
    for writer in made:
        writer.stop.set()
        writer.join(60)
        assert not writer.is_alive(), "a writer still waits"


def check_exact(small: Small, writers: list[Writer]) -> None:
    """Every row that was there or acknowledged is on the one shard that owns it, no other is, and nothing is left."""
    for writer in writers:
        writer.stop.set()
        writer.join(60)
        assert not writer.is_alive(), "a writer still waits"
    rows = [row[:2] for row in small.rows()]
    wanted = {(key, 1) for key in range(ROWS)} | writers[0].acknowledged | writers[1].acknowledged
    assert len(rows) == len(set(rows)), "a row is on two shards"
    assert wanted - set(rows) == set(), "acknowledged rows are lost"
    assert set(rows) - wanted == set(), "rows came out of nowhere"
    if small.weeks:
        visits = [row[:3] for row in small.rows("visits")]
        promised = {(key, small.weeks[key % len(small.weeks)], 0) for key in range(ROWS)}
        promised |= writers[0].visits | writers[1].visits
        assert len(visits) == len(set(visits)), "a visit is on two shards"
        assert promised - set(visits) == set(), "acknowledged visits are lost"
        assert set(visits) - promised == set(), "visits came out of nowhere"
    assert small.leftovers() == {}


def _declared() -> dict[str, Any]:
    table = sa.Table("orders", sa.MetaData(), sa.Column("user_id", sa.BigInteger, primary_key=True),
                     info=sharded_by("user_id", keyspace="users"))  # fmt: skip
    found = declaration_of(table)
    assert found is not None
    return {name: getattr(found, name) for name in found.__dataclass_fields__}
