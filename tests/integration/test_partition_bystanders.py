"""Whoever has nothing to do with it does not wait: a new reader, while a step wants a table that another reader has open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
import sqlalchemy as sa

from fix_catalog import Found
from shardwright import engines, errors, time_partitioned
from shardwright.catalog import models, roster, tables
from shardwright.partition import codecs
from shardwright.partition.plan import Step
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.partition.steps import attach, create, guard

DAY = 86_400_000_000
START = 20_000 * DAY


def _events(found: Callable[..., Found], *, guards: bool) -> Found:
    cluster = found(1)
    metadata = sa.MetaData()
    sa.Table(
        "events",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        info=time_partitioned("at", every="1 day", guards=guards),
    )
    models.register(cluster.catalog, metadata)
    return cluster


@contextmanager
def _site(cluster: Found, patience: float) -> Iterator[PartitionSite]:
    shard = roster.get_shard(cluster.catalog, "s1")
    [table] = tables.list_tables(cluster.catalog)
    assert table.policy is not None
    with engines.connect_shard(shard, "test") as connection:
        key = codecs.resolve_key(table.policy, "timestamp with time zone")
        yield PartitionSite(shard, table, table.policy, key, connection, cluster.catalog, patience=patience)


def _window(n: int) -> Partition:
    return Partition(f"events_{n}", START + n * DAY, START + (n + 1) * DAY)


def _make(site: PartitionSite, one: Partition, *, attached: bool = True) -> None:
    step = Step("create", one.name, one.lower, one.upper, one.role)
    create.run(site, step)
    if attached:
        attach.run(site, step)


class _Reader(threading.Thread):
    """Reads again and again, and would rather fail than wait for a lock."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.read, self.waited = dsn, 0, 0
        self.begun, self.stop = threading.Event(), threading.Event()

    def end(self) -> None:
        self.stop.set()
        self.join()

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True, options="-c lock_timeout=10ms") as connection:
            while not self.stop.is_set():
                try:
                    connection.execute("SELECT count(*) FROM events")
                    self.read += 1
                    self.begun.set()
                except psycopg.errors.LockNotAvailable:
                    self.waited += 1


@pytest.mark.parametrize("what", ["attach", "guard"])
def test_a_new_reader_does_not_queue_behind_a_window(found: Callable[..., Found], what: str) -> None:
    cluster = _events(found, guards=what == "guard")
    with _site(cluster, patience=2.0) as site:
        _make(site, _window(0))
        rest = Partition("events_after", START + DAY, None, "after")
        if what == "guard":
            _make(site, rest)
        _make(site, _window(1), attached=False)
        idle = cluster.shard("s1")
        idle.execute("BEGIN; SELECT count(*) FROM events")
        reader = _Reader(cluster.dsns.shards["s1"])
        reader.start()
        assert reader.begun.wait(10)
        try:
            if what == "attach":
                before = reader.read
                attach.run(site, Step("attach", "events_1", _window(1).lower, _window(1).upper))  # beside both readers
                deadline = time.monotonic() + 10
                while reader.read < before + 20 and time.monotonic() < deadline:
                    reader.stop.wait(0.01)
            else:
                # Within the first half of the patience; in the second the guard waits, and makes others wait.
                ended = threading.Timer(0.7, lambda: (reader.end(), idle.execute("ROLLBACK")))
                ended.start()
                begin = time.monotonic()
                guard.run(site, Step("guard", "events_after", START + 2 * DAY, None, "after", (_window(1),)))
                assert time.monotonic() - begin > 0.6
                ended.join()
        finally:
            reader.end()
        assert reader.read > 20
        assert reader.waited == 0
        bounds = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"
        assert cluster.ask("s1", bounds) == (2 if what == "attach" else 3)


def test_a_guard_gives_up_on_a_reader_that_stays(found: Callable[..., Found]) -> None:
    cluster = _events(found, guards=True)
    with _site(cluster, patience=0.6) as site:
        _make(site, _window(0))
        _make(site, Partition("events_after", START + DAY, None, "after"))
        _make(site, _window(1), attached=False)
        idle = cluster.shard("s1")
        idle.execute("BEGIN; SELECT count(*) FROM events")
        with pytest.raises(errors.LockTimeout, match=f"pid {idle.info.backend_pid}"):
            guard.run(site, Step("guard", "events_after", START + 2 * DAY, None, "after", (_window(1),)))
        idle.execute("ROLLBACK")
        guard.run(site, Step("guard", "events_after", START + 2 * DAY, None, "after", (_window(1),)))


def test_an_attach_reads_no_row(found: Callable[..., Found]) -> None:
    """PostgreSQL says so at DEBUG1: the CHECK that the window was made with implies its bounds."""
    cluster = _events(found, guards=False)
    with _site(cluster, patience=2.0) as site:
        _make(site, _window(0), attached=False)
        said: list[str] = []
        site.connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        site.connection.execute("SET client_min_messages = debug1")
        attach.run(site, Step("attach", "events_0", _window(0).lower, _window(0).upper))
        site.connection.execute("RESET client_min_messages")
    assert [text for text in said if "is implied by existing constraints" in text], said
