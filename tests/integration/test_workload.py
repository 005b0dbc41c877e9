"""The workload and its checker on a small cluster: a sound operation passes, a broken one is caught."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shardwright import engines
from shardwright.catalog import guards, maps, roster, shards
from shardwright.reshard import operate
from shardwright.testing import checker, history, sample
from shardwright.testing.checker import Verdict
from shardwright.testing.clusters import make_ready
from shardwright.testing.final import final_state, leftovers
from shardwright.testing.spec import Spec
from shardwright.testing.workload import Workload

pytestmark = pytest.mark.newest_postgres


@dataclass
class Running:
    """A cluster of s1 and s2 with s3 added, and the workload on it."""

    catalog: psycopg.Connection[Any]
    dsn: str
    spec: Spec
    workload: Workload

    def start(self) -> tuple[int, list[int]]:
        """An operation that gives s3 its share; its number, and keys of s1 that move."""
        plan = operate.plan(self.catalog, add="s3")
        shard_map = maps.load_map(self.catalog)
        points = next(move.points for move in plan.moves if move.source == "s1")
        moving = [key for key in self.spec.keys if shard_map.route(sample.KEYSPACE, key).point in points]
        return operate.start(self.catalog, plan), moving

    def drive_while_idle(self, operation: int, goal: str, shard: str, keys: list[int]) -> None:
        """Go to a goal, beginning when a round of idle transactions is open."""
        with ThreadPoolExecutor(1) as pool:
            driven = []
            self.workload.idle_round(
                shard, keys, lambda: driven.append(pool.submit(operate.drive, self.dsn, operation, goal))
            )
            driven[0].result()

    def wait_for(self, role: str, more: int) -> None:
        """Wait until the processes of a role have recorded some more operations."""

        def count() -> int:
            return sum(one.process.startswith(role) for one in history.read(self.workload.histories()))

        wanted, deadline = count() + more, time.monotonic() + 60
        while count() < wanted:
            self.workload.check_alive()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def judge(self) -> Verdict:
        """Stop the workload and check what it recorded."""
        operations = history.read(self.workload.stop())
        assert len(operations) > 100
        found = roster.list_shards(self.catalog)
        bases = {"visits": len(self.spec.keys), "tickets": 0}
        return checker.check(operations, final_state(self.spec, maps.load_map(self.catalog), found, bases))


@pytest.fixture
def running(cluster_dsns: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    dsns = cluster_dsns(3)
    make_ready(dsns.catalog, {name: dsns.shards[name] for name in ("s1", "s2")})

    @contextmanager
    def start(*roles: str, **more: Any) -> Iterator[Running]:
        with engines.connect_catalog(dsns.catalog, "test") as catalog:
            spec = sample.install(catalog, dsns.catalog, dsns.shards, tmp_path, rate=50.0, idle=0.7, **more)
            shards.add_shard(catalog, "s3", dsns.shards["s3"])
            workload = Workload(spec, roles)
            try:
                workload.start()
                yield Running(catalog, dsns.catalog, spec, workload)
            finally:
                workload.kill()

    return start


def test_a_sound_operation_passes(running: Callable[..., Any]) -> None:
    with running("pinned", "run", "routed", "reader", "direct", "idle") as on:
        operation, moving = on.start()
        operate.drive(on.dsn, operation, "verified")
        on.drive_while_idle(operation, "switched", "s1", moving)
        on.drive_while_idle(operation, "reverted", "s3", moving)
        on.drive_while_idle(operation, "switched", "s1", moving)
        operate.drive(on.dsn, operation, "done")
        verdict = on.judge()
        assert verdict.ok, verdict.evidence
        assert leftovers(on.catalog, roster.cluster_id(on.catalog), "s1", roster.list_shards(on.catalog)) == []


def test_guards_that_stay_as_they_were_are_caught(running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without the library goes on being acknowledged where the rows no longer live."""
    with running("direct") as on:
        operation, _ = on.start()
        operate.drive(on.dsn, operation, "verified")
        for change in ("replace", "set_owned"):
            monkeypatch.setattr(guards, change, lambda *_, **__: None)
        operate.drive(on.dsn, operation, "switched")
        on.wait_for("direct", 100)
        verdict = on.judge()
    assert verdict.counts["lost"] > 0
    assert any(one.kind == "lost" for one in verdict.evidence)


def test_a_reader_that_stays_with_an_old_map_is_caught(running: Callable[..., Any]) -> None:
    """Without the check at BEGIN, a reader whose map is old reads where the rows were."""
    with running("pinned", "reader", reads="relaxed") as on:
        operation, _ = on.start()
        operate.drive(on.dsn, operation, "done")
        on.wait_for("reader", 100)
        verdict = on.judge()
    assert verdict.counts["stale"] > 0
    assert set(verdict.counts) == {"stale"}


@pytest.mark.slow
def test_writers_that_take_the_tables_in_another_order_do_not_stop_a_comparison(running: Callable[..., Any]) -> None:
    """They deadlock with the locks that hold writers off; the comparison is the one that tries again."""
    stop = threading.Event()

    def write(dsn: str, key: int) -> int:
        done = 0
        with psycopg.connect(dsn) as connection:
            while not stop.is_set():
                with connection.transaction():
                    connection.execute("UPDATE visits SET times = times + 1 WHERE user_id = %s", (key,))
                    connection.execute(
                        "INSERT INTO journal VALUES (%s, 10000, '{1}') ON CONFLICT (user_id, page) "
                        "DO UPDATE SET entries = '{2}'",
                        (key,),
                    )
                done += 1
        return done

    with running() as on, ThreadPoolExecutor(8) as pool:
        operation, moving = on.start()
        writers = [pool.submit(write, on.spec.direct["s1"], key) for key in moving[:8]]
        try:
            operate.drive(on.dsn, operation, "verified")
            for _ in range(5):
                operate.verify(on.dsn, operation)
        finally:
            stop.set()
        assert all(writer.result() > 10 for writer in writers)
