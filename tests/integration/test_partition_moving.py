"""Ticks while rows move, and on a standby: nothing is taken away, targets get windows first, a standby is left alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import sqlalchemy as sa

from fix_partitions import NOW, Timed
from shardwright.catalog import shards
from shardwright.partition.status import status
from shardwright.reshard import operate
from shardwright.routing.tables import sharded_by, time_partitioned
from shardwright.servers import Server

JANUARY = datetime(2027, 1, 1, tzinfo=UTC)


def _by_user(metadata: sa.MetaData) -> sa.Table:
    policy = time_partitioned("at", every="1 month", ahead=2, keep="1 month", grace=None)
    return sa.Table(
        "events",
        metadata,
        sa.Column("user_id", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        info={**sharded_by("user_id"), **policy},
    )


def test_a_live_reshard(timed: Callable[..., Timed]) -> None:
    cluster = timed(3, _by_user)
    cluster.tick()
    operation = operate.start(cluster.catalog, operate.plan(cluster.catalog, move="users:[0,64)", to="s3"))
    plan = cluster.plan(JANUARY)
    assert [(finding.kind, finding.fix) for finding in plan.findings] == [
        ("frozen", f"shardwright reshard status {operation}")
    ]
    assert plan.tables[0].order == ("s3", "s1", "s2")
    assert not any(step.kind in ("detach", "archive", "drop") for _, _, step in plan.steps())
    with psycopg.connect(cluster.dsns.shards["s3"]) as reader:
        reader.execute("SELECT count(*) FROM events")
        report = cluster.tick(JANUARY, patience=0.3)
    outcomes = {one.shard: one for one in report.outcomes}
    assert {one.outcome for one in outcomes.values()} == {"deferred"}
    # no shard has a window that the target lacks
    assert "events_p2027_03" not in cluster.windows("s1")
    assert "events_p2027_03" not in cluster.windows("s2")
    assert "which must have the windows first" in outcomes["s1"].reason["message"]
    report = cluster.tick(JANUARY)
    assert report.exit_code == 0, report.to_json()
    for name in ("s1", "s2", "s3"):
        assert "events_p2027_03" in cluster.windows(name)
        assert "events_p2026_11" in cluster.windows(name)
    operate.drive(cluster.dsns.catalog, operation, "aborted")
    for _ in range(3):
        assert cluster.tick(JANUARY).exit_code == 0
    assert "events_p2026_11" not in cluster.windows("s1")
    assert cluster.plan(JANUARY).is_empty


def test_a_target_that_is_down_holds_the_source_back(timed: Callable[..., Timed]) -> None:
    cluster = timed(3, _by_user)
    cluster.tick()
    operate.start(cluster.catalog, operate.plan(cluster.catalog, move="users:[0,64)", to="s3"))
    cluster.catalog.execute("UPDATE shardwright.shards SET conninfo = 'host=/nonexistent dbname=x' WHERE name = 's3'")
    report = cluster.tick(JANUARY)
    assert {one.outcome for one in report.outcomes} == {"deferred"}
    assert "events_p2027_03" not in cluster.windows("s1")


def test_a_standby_is_left_alone(
    timed: Callable[..., Timed], server_factory: Callable[..., Server], workdir: Path
) -> None:
    cluster = timed(1)
    cluster.tick()
    primary = server_factory()
    database = "s2"
    dsn = primary.create_database(database)
    shards.add_shard(cluster.catalog, "s2", dsn)
    standby = primary.standby(workdir / "standby")
    try:
        cluster.catalog.execute(
            "UPDATE shardwright.shards SET conninfo = %s WHERE name = 's2'", (standby.dsn(database),)
        )
        report = cluster.tick()
        outcomes = {one.shard: one for one in report.outcomes}
        assert (outcomes["s1"].outcome, outcomes["s2"].outcome) == ("done", "deferred")
        assert "standby" in outcomes["s2"].reason["message"]
        assert "standby" in str(status(cluster.dsns.catalog, now=NOW).shards["s2"])
    finally:
        standby.stop("immediate")
    cluster.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = 's2'", (dsn,))
    assert cluster.tick().exit_code == 0


def test_what_the_servers_settings_say_of_time_does_not_matter(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    for name, zone in (("s1", "Asia/Kathmandu"), ("s2", "America/Santiago")):
        database = cluster.ask(name, "SELECT current_database()")
        for setting in (f"TimeZone = '{zone}'", "DateStyle = 'SQL, DMY'", "search_path = ''"):
            cluster.shard(name).execute(f"ALTER DATABASE {database} SET {setting}".encode())
    assert cluster.tick().exit_code == 0
    assert cluster.windows("s1") == cluster.windows("s2")
    assert cluster.windows("s1")["events_p2026_12"] == "('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')"
    assert cluster.plan().is_empty
