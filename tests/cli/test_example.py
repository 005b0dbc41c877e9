"""examples/platform as a whole: started by its one command, it registers its models, writes, and has equal windows everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from shardwright.servers import LocalCluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "platform"
SHARDS = ("s1", "s2", "s3")

#: The present window, three ahead, and a guard at each end.
WINDOWS = {"analytics_events": 6, "user_activity": 6, "system_logs": 6}
_COLUMNS = {"analytics_events": "created_at", "user_activity": "timestamp", "system_logs": "log_date"}

_BOUNDS = """
SELECT i.inhparent::regclass::text, c.relname, pg_get_expr(c.relpartbound, 0)
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
 WHERE p.relkind = 'p' AND c.relkind = 'r' ORDER BY 1, 2
"""


def test_the_platform_on_three_shards(workdir: Path) -> None:
    place, started = workdir / "platform", datetime.now(UTC)
    try:
        done = subprocess.run(
            [sys.executable, EXAMPLE / "run.py", "--dir", place],
            env={name: value for name, value in os.environ.items() if not name.startswith(("SHARDWRIGHT_", "PG"))},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        _holds(LocalCluster.open(place).dsns(), started)
        _shown(done.stdout)
    finally:
        if (place / "cluster.json").exists():
            LocalCluster.open(place).purge()


def _holds(dsns: dict[str, str], started: datetime) -> None:
    assert tuple(dsns) == SHARDS
    bounds = {}
    rows: Counter[str] = Counter()
    for name, dsn in dsns.items():
        with psycopg.connect(dsn, options="-c TimeZone=UTC") as shard:
            bounds[name] = shard.execute(_BOUNDS).fetchall()
            for table, column in _COLUMNS.items():
                here = shard.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
                assert here is not None
                assert here[0] > 0, f"{table} has no row on {name}"
                rows[table] += here[0]
                astray = shard.execute(
                    f"SELECT count(*) FROM {table} WHERE tableoid::regclass::text ~ '_p_(before|after)$'".encode()
                ).fetchone()
                assert astray == (0,), f"{table}.{column}: rows in guards on {name}"
    assert bounds["s1"] == bounds["s2"] == bounds["s3"]
    assert Counter(table for table, _, _ in bounds["s1"]) == WINDOWS
    assert rows == dict.fromkeys(WINDOWS, 60)
    months = {moment.strftime("FROM ('%Y-%m-01 00:00:00+00')") for moment in (started, datetime.now(UTC))}
    assert any(month in text for table, _, text in bounds["s2"] for month in months if table == "analytics_events")


def _shown(out: str) -> None:
    commands = [line.split()[2:4] for line in out.splitlines() if line.startswith("$ shardwright ")]
    assert commands == [["dev", "up"], ["table", "register"], ["partition", "status"], ["partition", "tick"]]
    assert "analytics_events: 60 rows on all shards together" in out
    assert "missing" not in out
    runways = [line.split()[-3:] for line in out.splitlines() if line.startswith("runway")]
    assert len(runways) == 3
    assert all(float(days) > 2 for row in runways for days in row)
    assert out.count(" done ") == 9
