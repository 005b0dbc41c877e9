"""kill -9 at every failpoint of split: run again, it converges; a reader and a writer notice nothing meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections.abc import Callable

import psycopg
import pytest

from fix_catalog import Found
from shardwright.catalog import windows
from shardwright.failpoints import FAILPOINTS
from shardwright.partition import convert, jobs, split
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

ALL = [name for name in FAILPOINTS if name.startswith("partition.split_")]
QUICK = ("partition.split_half_copied", "partition.split_exchanged")
#: There is nothing to give up any more, or nothing was recorded yet.
TOO_LATE = ("partition.split_exchanged", "partition.split_recorded", "partition.split_settled")
ROWS = 6000


class Client(threading.Thread):
    """Inserts, changes and deletes rows of its own in the months that are being cut, and counts all rows each time."""

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.dsn, self.random, self.stop, self.done = dsn, random.Random(seed), threading.Event(), 0
        self.mine: dict[int, str] = {}
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self.stop.is_set():
                    self._write(connection)
                    self.done += 1
                    row = connection.execute("SELECT count(*) FROM events").fetchone()
                    if row != (ROWS + len(self.mine),):
                        self.problems.append(f"{row} of {ROWS + len(self.mine)} rows were seen")
                        return
        except psycopg.Error as error:
            self.problems.append(str(error))

    def _write(self, connection: psycopg.Connection) -> None:
        what = self.random.random()
        if what < 0.5 or not self.mine:
            row = connection.execute(
                "INSERT INTO events (user_id, at, note) VALUES (1, now() - %s * interval '1 day', '') RETURNING id",
                (self.random.randrange(200),),
            ).fetchone()
            assert row is not None
            self.mine[row[0]] = ""
        elif what < 0.8:
            number = self.random.choice(list(self.mine))
            text = "UPDATE events SET note = note || 'x', at = at - interval '20 days' WHERE id = %s"
            connection.execute(text.encode(), (number,))
            self.mine[number] += "x"
        else:
            number = self.random.choice(list(self.mine))
            connection.execute("DELETE FROM events WHERE id = %s", (number,))
            del self.mine[number]


def _prepare(found: Callable[..., Found]) -> Found:
    cluster = found(2)
    for name in ("s1", "s2"):
        for text in (
            "CREATE TABLE users (id int PRIMARY KEY)",
            "INSERT INTO users SELECT generate_series(1, 10)",
            "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, user_id int NOT NULL, at timestamptz NOT NULL, "
            "note text, PRIMARY KEY (id, at), FOREIGN KEY (user_id) REFERENCES users)",
            "CREATE TABLE files (event bigint, at timestamptz, FOREIGN KEY (event, at) REFERENCES events (id, at))",
            f"INSERT INTO events (user_id, at, note) SELECT 1 + g % 10, now() - g * interval '150 days' / {ROWS}, 'still' "
            f"FROM generate_series(1, {ROWS}) g",
            "INSERT INTO files SELECT id, at FROM events LIMIT 50",
        ):
            cluster.shard(name).execute(text.encode())
    cluster.adopt("users", "events", kind="local")
    convert.convert(cluster.dsns.catalog, "public", "events", Declaration("local", policy=Policy("at", "1 month")))
    assert tick(cluster.dsns.catalog).exit_code == 0
    return cluster


def _crash(cluster: Found, cli_start: Callable[..., subprocess.Popen[str]], failpoint: str) -> None:
    process = cli_start(
        "partition", "split", "events", "--workers", "1",
        env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog, "SHARDWRIGHT_FAILPOINT": f"{failpoint}:crash"},
    )  # fmt: skip
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached: {said}"


def _check(cluster: Found, client: Client) -> None:
    client.stop.set()
    client.join(30)
    assert client.problems == []
    assert client.done > 0
    rows = cluster.shard("s1").execute("SELECT id, note FROM events WHERE note <> 'still'").fetchall()
    assert len(rows) == len(client.mine), "rows were lost, doubled or brought back"
    assert dict(rows) == client.mine
    (table,) = (one.table_id for one in windows.list_windows(cluster.catalog) if one.role == "after")
    assert jobs.list_jobs(cluster.catalog, table) == {}
    for name in ("s1", "s2"):
        assert cluster.ask(name, "SELECT count(*) FROM pg_constraint WHERE NOT convalidated AND conparentid = 0") == 0
        assert cluster.ask(name, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
        left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'shardwright'::regnamespace AND relname ~ '_[0-9]+$'"
        assert cluster.ask(name, left) == 0
        assert cluster.ask(name, "SELECT count(*) FROM pg_trigger WHERE tgname = '~shardwright_touch'") == 0
        assert cluster.ask(name, "SELECT count(*) FROM pg_constraint WHERE conname = 'shardwright_bounds'") == 0


@pytest.mark.parametrize(
    "failpoint", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_run_again_after_a_crash(
    found: Callable[..., Found], cli_start: Callable[..., subprocess.Popen[str]], failpoint: str, seed: int
) -> None:
    cluster = _prepare(found)
    client = Client(cluster.dsns.shards["s1"], seed)
    client.start()
    _crash(cluster, cli_start, failpoint)
    split.split(cluster.dsns.catalog, "public", "events")
    report = tick(cluster.dsns.catalog)
    _check(cluster, client)
    assert report.exit_code == 0, report.to_json()
    for name in ("s1", "s2"):
        attached = cluster.ask(
            name,
            "SELECT array_agg(c.relname::text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'events'::regclass",
        )
        declared = {one.name for one in windows.list_windows(cluster.catalog) if one.state == "wanted"}
        assert set(attached) == declared
        assert "events_p_whole" not in declared
        assert cluster.ask(name, "SELECT state FROM shardwright.partitions WHERE name = 'events_p_whole'") == "replaced"
        # Rows that were deleted, too, are gone from what was made.
        assert cluster.ask(name, "SELECT count(*) = count(DISTINCT id) FROM events")


@pytest.mark.parametrize(
    "failpoint",
    [
        name if name == "partition.split_ready" else pytest.param(name, marks=pytest.mark.slow)
        for name in ALL
        if name not in TOO_LATE
    ],
)
def test_give_up_after_a_crash(
    found: Callable[..., Found], cli_start: Callable[..., subprocess.Popen[str]], failpoint: str, seed: int
) -> None:
    cluster = _prepare(found)
    before = cluster.ask("s1", "SELECT array_agg(relname ORDER BY relname) FROM pg_class WHERE relname !~ '^pg_'")
    client = Client(cluster.dsns.shards["s1"], seed)
    client.start()
    _crash(cluster, cli_start, failpoint)
    split.abort(cluster.dsns.catalog, "public", "events")
    report = tick(cluster.dsns.catalog)
    _check(cluster, client)
    assert report.exit_code == 0
    after = cluster.ask("s1", "SELECT array_agg(relname ORDER BY relname) FROM pg_class WHERE relname !~ '^pg_'")
    assert after == before
