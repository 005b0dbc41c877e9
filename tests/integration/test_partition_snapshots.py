"""Rows that moved into other partitions are newer than old snapshots: who would change them from there is told to begin anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa

from fix_catalog import Found
from fix_handmade import PARENT, adopted, leaf, run
from fix_partitions import Timed, by_month
from shardwright import errors
from shardwright.catalog import models, snapshots
from shardwright.partition import apply, split

pytestmark = pytest.mark.newest_postgres

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 25, 12, tzinfo=UTC)
STANDS = "SELECT count(*) FROM pg_trigger WHERE tgname = '~shardwright_snapshot'"
OLD_LEVELS = (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE)


@contextmanager
def old(dsn: str, level: psycopg.IsolationLevel, role: str = "origin") -> Iterator[psycopg.Connection]:
    """A transaction with a snapshot that has not touched the table yet."""
    with psycopg.connect(dsn, application_name="old") as connection:
        connection.isolation_level = level
        connection.execute("SELECT count(*) FROM pg_class")
        connection.execute(f"SET LOCAL session_replication_role = {role}".encode())
        yield connection
        connection.rollback()


def _fat(timed: Callable[..., Timed]) -> Timed:
    """One shard with a year's partition of a policy by month, and a row in it."""
    cluster = timed(1, by_month(every="1 year", ahead=1))
    assert cluster.tick(NOW).exit_code == 0
    cluster.shard("s1").execute("INSERT INTO events (id, at, note) VALUES (1, '2026-03-05', 'new')")
    metadata = sa.MetaData()
    by_month(ahead=1)(metadata)
    models.register(cluster.catalog, metadata)
    return cluster


def _cut(cluster: Timed) -> None:
    split.split(cluster.dsns.catalog, "public", "events", "events_p2026", settings=split.Settings(settle_seconds=0.1))


CHANGES = {
    "update": "UPDATE events SET note = 'old' WHERE id = 1 AND at = '2026-03-05'",
    "delete": "DELETE FROM events WHERE id = 1 AND at = '2026-03-05'",
    "merge": "MERGE INTO events e USING (VALUES (1, '2026-03-05'::timestamptz)) AS v(id, at) "
    "ON e.id = v.id AND e.at = v.at WHEN MATCHED THEN DELETE",
}


@pytest.mark.parametrize("level", OLD_LEVELS, ids=["repeatable read", "serializable"])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_split(timed: Callable[..., Timed], change: str, level: psycopg.IsolationLevel) -> None:
    cluster = _fat(timed)
    with old(cluster.dsns.shards["s1"], level, "replica" if change == "update" else "origin") as connection:
        _cut(cluster)
        with pytest.raises(psycopg.errors.SerializationFailure, match=r"(?s)partitions of events .*anew"):
            connection.execute(CHANGES[change].encode())
    assert cluster.ask("s1", "SELECT note FROM events WHERE id = 1") == "new"


def test_who_sees_the_rows_goes_on(timed: Callable[..., Timed]) -> None:
    """READ COMMITTED takes a new snapshot; a younger transaction has one; an INSERT needs none."""
    cluster = _fat(timed)
    dsn = cluster.dsns.shards["s1"]
    with old(dsn, OLD_LEVELS[0]) as keeps, old(dsn, psycopg.IsolationLevel.READ_COMMITTED) as committed:
        _cut(cluster)
        assert cluster.ask("s1", STANDS) == 1
        assert committed.execute(CHANGES["update"].encode()).rowcount == 1
        committed.commit()
        keeps.execute("INSERT INTO events (id, at, note) VALUES (2, '2026-03-05', 'new')")
        keeps.commit()
        keeps.execute("SELECT 1")
        assert keeps.execute(CHANGES["delete"].encode()).rowcount == 1
        keeps.commit()
    assert cluster.shard("s1").execute("SELECT id FROM events").fetchall() == [(2,)]


def test_it_goes_with_the_last_old_snapshot(timed: Callable[..., Timed]) -> None:
    cluster = _fat(timed)
    with old(cluster.dsns.shards["s1"], OLD_LEVELS[0]):
        _cut(cluster)
        report = cluster.tick(NOW)
        assert (report.exit_code, report.plan.is_empty) == (0, True)
        assert cluster.ask("s1", STANDS) == 1
    report = cluster.tick(NOW)
    assert report.exit_code == 0, report.to_json()
    assert [(step.kind, step.name) for _, _, step in report.plan.steps()] == [("lift", "events")]
    assert cluster.ask("s1", STANDS) == 0
    assert apply.plan(cluster.dsns.catalog, now=NOW).is_empty


def test_without_old_snapshots_nothing_stays(timed: Callable[..., Timed]) -> None:
    cluster = _fat(timed)
    _cut(cluster)
    assert cluster.ask("s1", STANDS) == 0


def test_a_role_that_is_not_told_of_others_waits_for_every_transaction(timed: Callable[..., Timed]) -> None:
    """Without pg_read_all_stats nobody knows how old a snapshot is: whoever is in a transaction now may have an old one."""
    cluster = _fat(timed)
    dsn = cluster.dsns.shards["s1"]
    cluster.shard("s1").execute("CREATE ROLE told_nothing")
    try:
        with old(dsn, OLD_LEVELS[0]) as reader, psycopg.connect(dsn, autocommit=True) as ours:
            xid = str(cluster.ask("s1", "SELECT pg_current_xact_id()"))
            ours.execute("SET ROLE told_nothing")
            [seen] = snapshots.older(ours, xid)
            assert not seen.certain
            reader.rollback()
            assert snapshots.older(ours, xid) == []
            reader.execute("SELECT 1")  # a new one, of which nobody can tell that it is
            [younger] = snapshots.older(ours, xid)
            assert younger.transaction != seen.transaction
            ours.execute("RESET ROLE")
            assert snapshots.older(ours, xid) == []
    finally:
        cluster.shard("s1").execute("DROP ROLE told_nothing")


def test_rows_of_a_guard(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(ahead=1))
    assert cluster.tick(NOW).exit_code == 0
    cluster.shard("s1").execute("INSERT INTO events (id, at, note) VALUES (1, '2027-01-05', 'new')")
    with old(cluster.dsns.shards["s1"], OLD_LEVELS[0]) as connection:
        assert cluster.tick(DECEMBER).exit_code == 0
        assert cluster.ask("s1", "SELECT count(*) FROM events_p2027_01") == 1
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute("DELETE FROM events WHERE id = 1 AND at = '2027-01-05'")
    assert cluster.tick(DECEMBER).exit_code == 0
    assert cluster.ask("s1", STANDS) == 0


def test_a_guard_without_rows_needs_none(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(ahead=1))
    assert cluster.tick(NOW).exit_code == 0
    with old(cluster.dsns.shards["s1"], OLD_LEVELS[0]):
        assert cluster.tick(DECEMBER).exit_code == 0
        assert cluster.ask("s1", STANDS) == 0


def test_rows_that_stay_in_their_guard_need_none(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month(ahead=1))
    assert cluster.tick(NOW).exit_code == 0
    cluster.shard("s1").execute("INSERT INTO events (id, at, note) VALUES (1, '2050-01-05', 'new')")
    with old(cluster.dsns.shards["s1"], OLD_LEVELS[0]):
        cluster.tick(DECEMBER)
        assert "events_p2027_01" in cluster.windows("s1")
        assert cluster.ask("s1", STANDS) == 0


def test_a_lift_that_broke_off_is_done_by_the_next_run(
    timed: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = _fat(timed)
    monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "partition.lifting:error")
    with pytest.raises(errors.FailpointReached):
        _cut(cluster)
    monkeypatch.delenv("SHARDWRIGHT_FAILPOINT")
    assert cluster.ask("s1", STANDS) == 1
    _cut(cluster)
    assert cluster.ask("s1", STANDS) == 0


def test_rows_of_a_default_partition(found: Callable[..., Found]) -> None:
    cluster = found(1)
    run(
        cluster,
        "s1",
        PARENT,
        leaf("october", "2026-10-01", "2026-11-01"),
        "CREATE TABLE rest PARTITION OF events DEFAULT",
    )
    cluster.shard("s1").execute("INSERT INTO events (user_id, at) VALUES (1, '2026-11-05')")
    with old(cluster.dsns.shards["s1"], OLD_LEVELS[0]) as connection:
        assert adopted(cluster).shards[0].moved_rows == 1
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute("DELETE FROM events WHERE user_id = 1 AND at = '2026-11-05'")


def test_where_somebody_reads_all_the_time_the_next_tick_lifts_it(timed: Callable[..., Timed]) -> None:
    cluster = _fat(timed)
    dsn = cluster.dsns.shards["s1"]
    with old(dsn, OLD_LEVELS[0]):
        _cut(cluster)
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM events")
        report = cluster.tick(NOW, patience=0.3)
        assert report.exit_code == 4
        [outcome] = [one for one in report.outcomes if one.outcome == "deferred"]
        assert "no lock on public.events within 0.3 s" in outcome.reason["message"]
        assert cluster.ask("s1", STANDS) == 1
    assert cluster.tick(NOW).exit_code == 0
    assert cluster.ask("s1", STANDS) == 0
