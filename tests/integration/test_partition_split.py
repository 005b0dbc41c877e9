"""A fat partition is cut into windows while clients write into them: nothing is lost, doubled, brought back or out of sight."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import sqlalchemy as sa

from fix_partitions import Timed, by_month
from shardwright.catalog import models
from shardwright.partition import split

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
STILL = 20_000
WRITERS = 3


class Writer(threading.Thread):
    """Inserts, updates, moves and deletes rows of its own in all months, and knows what must be there.

    With a role of `replica` it writes as the worker of a subscription does.
    """

    def __init__(self, dsn: str, number: int, level: str, seed: int, role: str = "origin") -> None:
        super().__init__(daemon=True)
        self.dsn, self.level, self.role, self.random = dsn, level, role, random.Random(seed + number)
        self.ids = iter(range(1_000_000 * (number + 1), 1_000_000 * (number + 2)))
        self.rows: dict[int, tuple[datetime, str]] = {}
        self.failed: list[str] = []
        self.stop, self.done, self.refused = threading.Event(), 0, 0

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"SET session_replication_role = {self.role}".encode())
            while not self.stop.is_set():
                try:
                    self._once(connection)
                    self.done += 1
                except psycopg.errors.SerializationFailure:
                    self.refused += 1
                except psycopg.Error as error:
                    self.failed.append(str(error))

    def _once(self, connection: psycopg.Connection) -> None:
        what = self.random.random() if self.rows else 0.0
        after = dict(self.rows)
        with connection.transaction():
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {self.level}".encode())
            if what < 0.5:
                number, at = next(self.ids), FIRST + timedelta(minutes=self.random.randrange(360 * 1440))
                after[number] = (at, "new")
                connection.execute("INSERT INTO events (id, at, note) VALUES (%s, %s, 'new')", (number, at))
            else:
                rows = list(self.rows)
                # Every other time one that was written a moment ago: the exchange itself replays it.
                number = self.random.choice(rows[-2:] if self.random.random() < 0.5 else rows)
                at, note = self.rows[number]
                if what < 0.6:
                    moved = FIRST + timedelta(minutes=self.random.randrange(360 * 1440))
                    after[number] = (moved, note)
                    connection.execute("UPDATE events SET at = %s WHERE id = %s AND at = %s", (moved, number, at))
                elif what < 0.75:
                    after[number] = (at, note + "+")
                    connection.execute("UPDATE events SET note = note || '+' WHERE id = %s AND at = %s", (number, at))
                else:
                    del after[number]
                    connection.execute("DELETE FROM events WHERE id = %s AND at = %s", (number, at))
        self.rows = after


class Reader(threading.Thread):
    """Counts the rows that nobody changes."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.stop, self.counts = dsn, threading.Event(), list[int]()

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stop.is_set():
                row = connection.execute("SELECT count(*) FROM events WHERE note = 'still'").fetchone()
                self.counts.append(row[0] if row else -1)


def test_a_year_becomes_months_under_load(timed: Callable[..., Timed], seed: int) -> None:
    cluster = timed(1, by_month(every="1 year", ahead=1))
    assert cluster.tick(NOW).exit_code == 0
    cluster.shard("s1").execute(
        "INSERT INTO events (id, at, note) SELECT n, '2026-01-01+00'::timestamptz + n * interval '364 days' / %s, 'still' "
        "FROM generate_series(1, %s) n",
        (STILL, STILL),
    )
    metadata = sa.MetaData()
    by_month(ahead=1)(metadata)
    models.register(cluster.catalog, metadata)
    dsn = cluster.dsns.shards["s1"]
    levels = ("READ COMMITTED", "REPEATABLE READ", "READ COMMITTED")
    roles = ("origin", "origin", "replica")
    writers = [Writer(dsn, number, levels[number], seed, roles[number]) for number in range(WRITERS)]
    reader = Reader(dsn)
    for one in (*writers, reader):
        one.start()
    try:
        # slow enough for writers to get in between the copy and the exchange
        settings = split.Settings(rows_per_s=STILL / 2, workers=2)
        report = split.split(cluster.dsns.catalog, "public", "events", "events_p2026", settings=settings)
    finally:
        for one in (*writers, reader):
            one.stop.set()
            one.join()
    assert report.pieces == 12
    assert [failure for writer in writers for failure in writer.failed] == []
    assert all(writer.done > 20 for writer in writers)
    assert [writer.refused for writer in writers if writer.level == "READ COMMITTED"] == [0, 0]
    assert set(reader.counts) == {STILL}
    expected = {number: row for writer in writers for number, row in writer.rows.items()}
    found = cluster.shard("s1").execute("SELECT id, at, note FROM events WHERE note <> 'still'").fetchall()
    assert len(found) == len(expected), "rows were lost, doubled or brought back"
    assert {number: (at, note) for number, at, note in found} == expected
    assert sum(name.startswith("events_p2026_") for name in cluster.windows("s1")) == 12
    astray = cluster.ask(
        "s1",
        "SELECT count(*) FROM events WHERE tableoid::regclass::text <> to_char(at AT TIME ZONE 'UTC', '\"events_p\"YYYY_MM')",
    )
    assert astray == 0
    assert cluster.ask("s1", "SELECT count(*) FROM events_p2026_03") > 0
    assert cluster.tick(NOW).exit_code == 0
