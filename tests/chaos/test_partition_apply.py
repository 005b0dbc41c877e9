"""kill -9 at every failpoint of apply: run again, it converges; a reader and a writer notice nothing meanwhile."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from fix_partitions import Timed, by_month, pending_detach

#: What must be there for a failpoint to be reached.
MONTHS_LATER = ("declared", "making", "made", "guard_detached", "guard_narrowed", "guard_settled")
LEAF_LOST = ("attaching", "attached")
PENDING = ("finalizing", "finalized")

#: Those that `make test` tries.
QUICK = ("declared", "attaching", "guard_narrowed", "finalizing")


class Client(threading.Thread):
    """Writes row after row, half of them for a time that no window takes yet, and reads all of them all the time."""

    def __init__(self, dsn: str, ahead: datetime | None) -> None:
        super().__init__(daemon=True)
        self.dsn, self.ahead = dsn, ahead
        self.acknowledged = 0
        self.reads = 0
        self.problems: list[str] = []
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            with (
                psycopg.connect(self.dsn, autocommit=True) as writer,
                psycopg.connect(self.dsn, autocommit=True) as reader,
            ):
                for number in itertools.count(1):
                    if self.stop.is_set():
                        return
                    at = self.ahead if self.ahead is not None and number % 2 else datetime.now(UTC)
                    writer.execute("INSERT INTO events (id, at) OVERRIDING SYSTEM VALUE VALUES (%s, %s)", (number, at))
                    self.acknowledged += 1
                    seen = reader.execute("SELECT count(*), count(DISTINCT id) FROM events WHERE note = 'x'").fetchone()
                    self.reads += 1
                    if seen != (self.acknowledged, self.acknowledged):
                        self.problems.append(f"{seen} of {self.acknowledged} rows were seen")
                        return
        except psycopg.Error as error:
            self.problems.append(str(error))

    def check(self) -> None:
        self.stop.set()
        self.join(30)
        assert self.problems == []
        assert self.reads == self.acknowledged > 0


def crash(cluster: Timed, start: Callable[..., subprocess.Popen[str]], failpoint: str) -> None:
    process = start(
        "partition", "tick",
        env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog, "SHARDWRIGHT_FAILPOINT": f"{failpoint}:crash"},
    )  # fmt: skip
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached: {said}"


@pytest.mark.parametrize(
    "failpoint",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in (*MONTHS_LATER, *LEAF_LOST, *PENDING)
    ],
)
def test_run_again_after_a_crash(
    timed: Callable[..., Timed], cli_start: Callable[..., subprocess.Popen[str]], failpoint: str
) -> None:
    cluster = timed(2, by_month(every="1 week", ahead=3))
    now = datetime.now(UTC)
    ahead = None
    if failpoint in MONTHS_LATER:
        cluster.tick(now - timedelta(days=15))
        # two weeks ahead: in the guard, until the tick
        ahead = now + timedelta(days=15)
    else:
        cluster.tick(now)
        last = [name for name in cluster.windows("s1") if not name.endswith(("_before", "_after"))][-1]
        if failpoint in LEAF_LOST:
            cluster.shard("s1").execute(f"ALTER TABLE events DETACH PARTITION {last}".encode())
            cluster.shard("s1").execute(f"DROP TABLE {last}".encode())
        else:
            pending_detach(cluster.dsns.shards["s1"], last)
    client = Client(cluster.dsns.shards["s1"], ahead)
    client.start()
    crash(cluster, cli_start, f"partition.{failpoint}")
    report = cluster.tick(datetime.now(UTC), patience=10.0)
    client.check()
    assert report.exit_code == 0, report.to_json()
    assert cluster.plan(datetime.now(UTC)).is_empty
    assert cluster.windows("s1") == cluster.windows("s2")
    assert cluster.ask("s1", "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0
    assert cluster.ask("s1", "SELECT count(*) FROM events_p_after") == 0
    assert cluster.ask("s1", "SELECT count(*) FROM events") == client.acknowledged
    loose = "SELECT count(*) FROM shardwright.partitions WHERE state <> 'attached'"
    assert (cluster.ask("s1", loose), cluster.ask("s2", loose)) == (0, 0)
