"""Moving rows: copy against `psql COPY | psql COPY`, exact verification against a bare scan, the pause of writes.

Run as a script: python tests/bench/bench_reshard.py [--rows N] [--json]. Both sides of a ratio run in turn on the same
servers; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from shardwright import engines
from shardwright.catalog import adoption, maps, roster, shards
from shardwright.catalog.adoption import Wanted
from shardwright.reshard import operate, piping
from shardwright.routing.predicates import owned_sql
from shardwright.routing.tables import Declaration
from shardwright.servers import LocalCluster, find_binaries
from shardwright.testing.clusters import make_ready

ROUNDS = 3
COLUMNS = "user_id, id, at, payload"


def load(dsn: str, rows: int) -> None:
    """A table of rows of about 200 bytes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE events (user_id bigint, id bigint, at timestamptz, payload text, PRIMARY KEY (user_id, id))"
        )
        connection.execute(
            "INSERT INTO events SELECT n %% 50000, n, now(), repeat(md5(n::text), 5) FROM generate_series(1, %s) n",
            (rows,),
        )
        connection.execute("CREATE TABLE copied (LIKE events)")
        connection.execute("VACUUM ANALYZE events")


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def copy_rates(cluster: LocalCluster, shard_map: Any, rows: int) -> dict[str, float]:
    """Rows a second of one stream without indexes: ours and psql's, with the same filter and the binary form."""
    source_dsn, target_dsn = cluster.dsns()["s1"], cluster.dsns()["s2"]
    where = owned_sql(shard_map.keyspace("users"), shard_map.owned("users", "s1"), "user_id")
    copy_out = f"COPY (SELECT {COLUMNS} FROM ONLY events WHERE {where}) TO STDOUT (FORMAT binary)"
    copy_in = f"COPY copied ({COLUMNS}) FROM STDIN (FORMAT binary)"
    psql = str(find_binaries() / "psql")

    def by_psql() -> None:
        out = subprocess.Popen([psql, "-qX", source_dsn, "-c", copy_out], stdout=subprocess.PIPE)
        subprocess.run([psql, "-qX", target_dsn, "-c", copy_in], stdin=out.stdout, check=True)
        assert out.wait() == 0

    def by_us() -> None:
        with psycopg.connect(source_dsn) as source, psycopg.connect(target_dsn) as target:
            copied, _ = piping.pipe(source, copy_out, target, copy_in)
            assert copied == rows

    times: dict[str, list[float]] = {"psql": [], "ours": []}
    for _ in range(ROUNDS):
        for name, action in (("psql", by_psql), ("ours", by_us)):
            with psycopg.connect(target_dsn, autocommit=True) as connection:
                connection.execute("DROP TABLE IF EXISTS copied")
                connection.execute("CREATE TABLE copied (user_id bigint, id bigint, at timestamptz, payload text)")
                connection.execute("CHECKPOINT")
            times[name].append(timed(action))
    return {name: rows / statistics.median(seconds) for name, seconds in times.items()}


def scan_rate(dsn: str, rows: int) -> float:
    """Rows a second of a bare count(*)."""
    with psycopg.connect(dsn) as connection:
        return rows / statistics.median(
            timed(lambda: connection.execute("SELECT count(*) FROM events").fetchone()) for _ in range(ROUNDS)
        )


class Load(threading.Thread):
    """A client that updates rows of one shard as fast as it is answered, until told to stop."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.done, self.refused, self.stop = dsn, 0, 0, threading.Event()

    def run(self) -> None:
        """Write."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stop.is_set():
                try:
                    connection.execute(
                        "UPDATE events SET at = now() WHERE user_id = %s AND id < 1000", (self.done % 50000,)
                    )
                    self.done += 1
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "SH001":
                        raise
                    self.refused += 1
                    self.done += 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"rows": options.rows}
    with LocalCluster.temporary(2) as cluster:
        cluster.start()
        dsns = cluster.dsns()
        catalog_dsn = cluster.catalog.dsn("postgres")
        make_ready(catalog_dsn, {"s1": dsns["s1"]})
        load(dsns["s1"], options.rows)
        with engines.connect_catalog(catalog_dsn) as catalog:
            shard_map = maps.load_map(catalog)
        rates = copy_rates(cluster, shard_map, options.rows)
        found["copy_rows_per_s"] = {name: round(rate) for name, rate in rates.items()}
        found["copy_ours_to_psql"] = round(rates["ours"] / rates["psql"], 2)
        with engines.connect_catalog(catalog_dsn) as catalog:
            adoption.adopt(catalog, [Wanted("public", "events", Declaration("sharded", "user_id", "users"))])
            shards.add_shard(catalog, "s2", dsns["s2"])
            assert len(roster.list_shards(catalog)) == 2
            operation = operate.start(catalog, operate.plan(catalog, add="s2"))
        scanned = scan_rate(dsns["s1"], options.rows)
        clients = [Load(dsns["s1"]) for _ in range(4)]
        for client in clients:
            client.start()
        status = operate.drive(catalog_dsn, operation, "verified")
        begin = time.perf_counter()
        operate.verify(catalog_dsn, operation)
        verified = status.rows_done / (time.perf_counter() - begin)
        for goal in ("switched", "reverted", "switched"):
            status = operate.drive(catalog_dsn, operation, goal)
        for client in clients:
            client.stop.set()
            client.join()
        pauses = sorted(h.pause_ms for h in status.handovers if h.pause_ms is not None)
        found["operation_copy_rows_per_s_under_load"] = round(sum(m.rows_per_s or 0 for m in status.moves))
        found["scan_rows_per_s"] = round(scanned)
        found["verify_rows_per_s_under_load"] = round(verified)
        found["verify_to_scan"] = round(verified / scanned, 2)
        found["write_pause_ms"] = {
            "median": round(statistics.median(pauses), 1), "max": round(pauses[-1], 1), "batches": len(pauses)
        }  # fmt: skip
        operate.drive(catalog_dsn, operation, "done")
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
