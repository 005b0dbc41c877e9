"""Moving a partitioned table: the pause of writes and the copy, by the number of leaves, against a table that is not partitioned.

Run as a script: python tests/bench/bench_moves.py [--rows N] [--leaves 0,1,100,1000] [--tables N] [--pg-bin DIR] [--json].
0 leaves: not partitioned. Rows are spread evenly over the leaves. The servers have PostgreSQL's default room for locks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from shardwright import engines
from shardwright.catalog import adoption, shards
from shardwright.catalog.adoption import Wanted
from shardwright.partition.tick import tick
from shardwright.reshard import operate
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration
from shardwright.servers import LocalCluster
from shardwright.testing.clusters import make_ready

CLIENTS = 2
#: Defaults of PostgreSQL, which our own local servers raise or which say how many locks there is room for.
DEFAULTS = {"max_connections": "100", "max_locks_per_transaction": "64", "max_prepared_transactions": "0"}


class Load(threading.Thread):
    """A client that updates one row after the other through the table, until told to stop."""

    def __init__(self, dsn: str, first: int, at: list[datetime]) -> None:
        super().__init__(daemon=True)
        self.dsn, self.next, self.at, self.slowest, self.stop = dsn, first, at, 0.0, threading.Event()

    def run(self) -> None:
        """Write."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stop.is_set():
                self.next += 1
                began = time.perf_counter()
                try:
                    connection.execute(
                        "UPDATE events0 SET payload = 'new' WHERE user_id = %s AND id = %s AND at = %s",
                        (self.next % 50000, self.next % 100000, self.at[self.next % len(self.at)]),
                    )
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "SH001":
                        raise
                self.slowest = max(self.slowest, time.perf_counter() - began)


def prepare(catalog_dsn: str, dsn: str, leaves: int, tables: int, rows: int) -> list[datetime]:
    """Tables on the first shard, their windows, and rows of about 200 bytes; returns a moment in each window."""
    now = datetime.now(UTC)
    first = now - timedelta(days=max(leaves - 4, 0))
    partitioned = " PARTITION BY RANGE (at)" if leaves else ""
    declaration = Declaration(
        "sharded",
        "user_id",
        "users",
        policy=Policy("at", "1 day", ahead=max(1, min(1000, leaves - 3))) if leaves else None,
    )
    with psycopg.connect(dsn, autocommit=True) as connection, engines.connect_catalog(catalog_dsn) as catalog:
        for number in range(tables):
            connection.execute(
                f"CREATE TABLE events{number} (user_id bigint, id bigint, at timestamptz, payload text, "
                f"PRIMARY KEY (user_id, id, at)){partitioned}".encode()
            )
            connection.execute(f"CREATE INDEX ON events{number} (at)".encode())
        adoption.adopt(catalog, [Wanted("public", f"events{number}", declaration) for number in range(tables)])
    at = [first + timedelta(days=day) for day in range(max(leaves - 3, 1))]
    if leaves:
        report = tick(catalog_dsn, now=first)
        assert report.exit_code == 0, report.to_json()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(tables):
            connection.execute(
                f"INSERT INTO events{number} SELECT n %% 50000, n %% 100000, (%s::timestamptz[])[1 + n %% %s], "
                "repeat(md5(n::text), 5) FROM generate_series(1, %s) n ON CONFLICT DO NOTHING",
                (at, len(at), rows // tables),
            )
    return at


def measure(leaves: int, tables: int, rows: int, bin_dir: Path | None) -> dict[str, Any]:
    """One operation there, back, there and to its end, under load."""
    with LocalCluster.temporary(2, pg_bin=bin_dir) as cluster:
        for server in cluster.servers.values():
            server.given_settings = {**server.given_settings, **DEFAULTS}
        cluster.start()
        dsns = cluster.dsns()
        catalog_dsn = cluster.catalog.dsn("postgres")
        make_ready(catalog_dsn, {"s1": dsns["s1"]})
        at = prepare(catalog_dsn, dsns["s1"], leaves, tables, rows)
        with engines.connect_catalog(catalog_dsn) as catalog:
            shards.add_shard(catalog, "s2", dsns["s2"])
        if leaves:
            report = tick(catalog_dsn)
            assert report.exit_code == 0, report.to_json()
        with engines.connect_catalog(catalog_dsn) as catalog:
            shares = tuple(part / 10 for part in range(1, 11))
            operation = operate.start(catalog, operate.plan(catalog, add="s2", batch_shares=shares))
        status = operate.drive(catalog_dsn, operation, "verified")
        copied = dict(status.history)
        begin = time.perf_counter()
        operate.verify(catalog_dsn, operation)
        verified = time.perf_counter() - begin
        clients = [Load(dsns["s1"], 1000 * number, at) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for goal in ("switched", "reverted", "switched"):
            status = operate.drive(catalog_dsn, operation, goal)
        for client in clients:
            client.stop.set()
            client.join()
        pauses = sorted(h.pause_ms for h in status.handovers if h.pause_ms is not None)
        operate.drive(catalog_dsn, operation, "done")
    return {
        "leaves": leaves,
        "tables": tables,
        "rows": status.rows_done,
        "windows_checked": sum(move.windows_checked for move in status.moves),
        "copy_rows_per_s": round(sum(move.rows_per_s or 0 for move in status.moves)),
        "copy_with_keys_s": copied.get("catching_up"),
        "verify_rows_per_s": round(status.rows_done / verified),
        "pause_ms_median": round(statistics.median(pauses), 1),
        "pause_ms_p90": round(pauses[int(len(pauses) * 0.9)], 1),
        "slowest_write_ms": round(max(client.slowest for client in clients) * 1000),
        "hand_overs": len(pauses),
        "tries": sum(h.attempts for h in status.handovers),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--leaves", default="0,1,100,1000")
    parser.add_argument("--tables", type=int, default=1)
    parser.add_argument("--pg-bin", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for leaves in options.leaves.split(","):
        found = measure(int(leaves), options.tables, options.rows, options.pg_bin)
        print(
            json.dumps(found) if options.json else "  ".join(f"{name}={value}" for name, value in found.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
