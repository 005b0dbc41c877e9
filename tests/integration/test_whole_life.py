"""A database made by pgbench is adopted under load, grown to two shards under writers, drained back, and left as it was."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_cli import Ran
from fix_servers import Dsns, Postgres
from shardwright import Cluster, sharded_by

pytestmark = [pytest.mark.newest_postgres, pytest.mark.slow]

ACCOUNTS = sa.Table(
    "pgbench_accounts",
    sa.MetaData(),
    sa.Column("aid", sa.Integer, primary_key=True),
    sa.Column("abalance", sa.Integer),
    info=sharded_by("aid", keyspace="accounts"),
)


class Writers(threading.Thread):
    """Adds one to accounts through the library, and counts what was acknowledged."""

    def __init__(self, catalog_dsn: str, accounts: int) -> None:
        super().__init__(daemon=True)
        self.catalog_dsn, self.accounts = catalog_dsn, accounts
        self.added: dict[int, int] = {}
        self.failed: list[BaseException] = []
        self.stop = threading.Event()

    def run(self) -> None:
        with Cluster.connect(self.catalog_dsn, application="whole-life", refresh="never") as cluster:
            n = 0
            while not self.stop.is_set():
                aid = n * 7919 % self.accounts + 1
                n += 1
                add = sa.update(ACCOUNTS).where(ACCOUNTS.c.aid == aid).values(abalance=ACCOUNTS.c.abalance + 1)
                try:
                    cluster.run(aid, lambda session, add=add: session.execute(add).rowcount, keyspace="accounts")
                except Exception as error:  # noqa: BLE001 - the test's thread judges it
                    self.failed.append(error)
                    return
                self.added[aid] = self.added.get(aid, 0) + 1


def _dump(postgres: Postgres, dsn: str) -> str:
    assert postgres.bin_dir is not None
    command = [str(postgres.bin_dir / "pg_dump"), "--schema-only", "--no-comments", dsn]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # newer pg_dumps write a random key there
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def _balances(dsn: str) -> dict[int, int]:
    with psycopg.connect(dsn) as connection:
        return dict(connection.execute("SELECT aid, abalance FROM pgbench_accounts").fetchall())


@pytest.mark.parametrize("scale", [1, 10])
def test_adopted_grown_drained_and_left(
    cluster_dsns: Callable[..., Dsns], cli: Callable[..., Ran], postgres: Postgres, workdir: Path, scale: int
) -> None:
    if postgres.bin_dir is None:
        pytest.skip("needs pgbench")
    dsns = cluster_dsns(2)
    first, env = dsns.shards["s1"], {"SHARDWRIGHT_CATALOG": dsns.catalog}
    pgbench = str(postgres.bin_dir / "pgbench")
    subprocess.run([pgbench, "-i", "-q", "-s", str(scale), first], check=True, capture_output=True)
    schema_before, accounts = _dump(postgres, first), scale * 100_000

    def ok(*words: str) -> Any:
        return cli(*words, "--json", env=env).ok().json

    load = subprocess.Popen(
        [pgbench, "-N", "-n", "-c", "4", "-T", "12", "-l", f"--log-prefix={workdir}/log", first],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ok("init")
        ok("shard", "add", "s1", first)
        ok("keyspace", "create", "accounts", "--type", "int4")
        ok("table", "add", "pgbench_accounts", "--key", "aid", "--keyspace", "accounts")
        ok("table", "add", "pgbench_branches", "pgbench_tellers", "pgbench_history", "--global", "s1")
        out, err = load.communicate(timeout=60)
    finally:
        load.kill()
    assert "number of failed transactions: 0 (0.000%)" in out, err
    stalls = [int(line.split()[2]) for file in workdir.glob("log*") for line in file.read_text().splitlines()]
    assert max(stalls) < 1_000_000, f"a transaction of pgbench took {max(stalls)} us"
    print(f"pgbench: {len(stalls)} transactions, longest {max(stalls) / 1000:.0f} ms")

    before = _balances(first)
    writers = Writers(dsns.catalog, accounts)
    writers.start()
    try:
        ok("shard", "add", "s2", dsns.shards["s2"])
        for request in ("--add", "--drain"):
            operation = str(ok("reshard", "start", request, "s2")["operation"])
            ok("reshard", "switch", operation)
            ok("reshard", "finish", operation)
            if request == "--add":
                assert abs(len(_balances(dsns.shards["s2"])) - accounts / 2) < accounts / 50
        seen = len(writers.added)
        deadline = time.monotonic() + 30
        while len(writers.added) == seen and writers.is_alive():
            assert time.monotonic() < deadline
    finally:
        writers.stop.set()
        writers.join()
    assert writers.failed == []
    ok("shard", "remove", "s2")
    ok("leave")
    assert _dump(postgres, first) == schema_before
    assert _balances(first) == {aid: balance + writers.added.get(aid, 0) for aid, balance in before.items()}
    print(f"{sum(writers.added.values())} additions through the library while it grew and was drained")
