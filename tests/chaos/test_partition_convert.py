"""kill -9 at every failpoint of convert: run again, it converges; a reader and a writer notice nothing meanwhile."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable

import psycopg
import pytest

from fix_catalog import Found
from shardwright.catalog import tables, windows
from shardwright.failpoints import FAILPOINTS
from shardwright.partition import convert, jobs
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

ALL = [name for name in FAILPOINTS if name.startswith("partition.convert_")]
QUICK = ("partition.convert_swapping", "partition.convert_swapped")


class Client(threading.Thread):
    """Writes row after row, and reads all of them each time."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.stop, self.written, self.problems = dsn, threading.Event(), 0, list[str]()

    def run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self.stop.is_set():
                    connection.execute("INSERT INTO events (at) VALUES (clock_timestamp())")
                    self.written += 1
                    row = connection.execute("SELECT count(*) FROM events").fetchone()
                    if row != (1000 + self.written,):
                        self.problems.append(f"{row} of {1000 + self.written} rows were seen")
                        return
        except psycopg.Error as error:
            self.problems.append(str(error))


@pytest.mark.parametrize(
    "failpoint", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_run_again_after_a_crash(
    found: Callable[..., Found], cli_start: Callable[..., subprocess.Popen[str]], failpoint: str
) -> None:
    cluster = found(2)
    for name in ("s1", "s2"):
        for text in (
            "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL)",
            "CREATE TABLE notes (id bigint PRIMARY KEY)",
            "INSERT INTO events (at) SELECT now() - g * interval '1 h' FROM generate_series(1, 1000) g",
        ):
            cluster.shard(name).execute(text.encode())
    client = Client(cluster.dsns.shards["s1"])
    client.start()
    process = cli_start(
        "partition", "convert", "events", "--by", "at", "--every", "1 month", "--extend-key",
        env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog, "SHARDWRIGHT_FAILPOINT": f"{failpoint}:crash"},
    )  # fmt: skip
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached: {said}"
    if failpoint != "partition.convert_recorded":
        convert.convert(cluster.dsns.catalog, "public", "events", Declaration("local"))
    report = tick(cluster.dsns.catalog)
    client.stop.set()
    client.join(30)
    assert client.problems == []
    assert client.written > 0
    assert report.exit_code == 0, report.to_json()
    table = tables.get_table(cluster.catalog, "public", "events")
    assert table.policy == Policy("at", "1 month")
    assert jobs.list_jobs(cluster.catalog, table.id) == {}
    declared = {one.name for one in windows.list_windows(cluster.catalog, table.id)}
    for name in ("s1", "s2"):
        attached = cluster.ask(
            name,
            "SELECT array_agg(c.relname::text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'events'::regclass",
        )
        assert set(attached) == declared
        assert cluster.ask(name, "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'shardwright%'") == 0
        assert cluster.ask(name, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 1000 + client.written
    assert cluster.ask("s1", "SELECT count(DISTINCT id) FROM events") == 1000 + client.written
