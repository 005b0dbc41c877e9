"""What may not happen at the same time: moves of rows beside splits, conversions and restores; and clocks that differ."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from fix_partitions import NOW, Timed, by_month
from shardwright import errors
from shardwright.catalog import maps, roster
from shardwright.partition import convert, restore, split
from shardwright.partition.fleet import Fleet
from shardwright.partition.tick import tick
from shardwright.reshard import operate
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

MONTHS = Declaration("local", policy=Policy("at", "1 month", keep="1 year", grace=None))


class _Stopped(Exception):
    """As a worker that is interrupted."""


def _stop() -> None:
    raise _Stopped


def _start(cluster: Found) -> int:
    return operate.start(cluster.catalog, operate.plan(cluster.catalog, move="users:[0,64)", to="s2"))


def _problems(cluster: Found) -> list[dict[str, Any]]:
    with pytest.raises(errors.PreflightFailed) as refused:
        _start(cluster)
    found: list[dict[str, Any]] = refused.value.facts["problems"]
    return found


def _prepare(found: Callable[..., Found]) -> Found:
    cluster = found(2)
    cluster.shard("s1").execute(
        "CREATE TABLE events (user_id bigint, at timestamptz, PRIMARY KEY (user_id, at)); CREATE TABLE notes (x int)"
    )
    cluster.adopt("events")
    return cluster


def test_moves_conversions_and_splits_wait_for_each_other(found: Callable[..., Found]) -> None:
    cluster = _prepare(found)
    dsn = cluster.dsns.catalog
    cluster.shard("s1").execute("CREATE TABLE IF NOT EXISTS old (at timestamptz PRIMARY KEY)")
    moving = _start(cluster)

    def refused(work: Callable[..., Any], *more: Any) -> None:
        with pytest.raises(errors.OperationConflict, match=r"moves rows of public\.events") as conflict:
            work(dsn, "public", "events", *more)
        assert conflict.value.fix.startswith(f"shardwright reshard status {moving};")

    refused(convert.plan, MONTHS)
    refused(convert.convert, MONTHS)
    # A table of no keyspace is not in its way.
    assert convert.plan(dsn, "public", "old", MONTHS).table == "public.old"
    operate.drive(dsn, moving, "aborted")

    with psycopg.connect(cluster.dsns.shards["s1"]) as reader:
        reader.execute("SELECT count(*) FROM events")
        with pytest.raises(errors.LockTimeout):
            convert.convert(dsn, "public", "events", MONTHS, patience=0.3)
        told = [one for one in _problems(cluster) if "under way" in one["found"]]
    assert {(one["shard"], one["found"]) for one in told} == {
        (name, "a convert of public.events is under way") for name in ("s1", "s2")
    }
    assert told[0]["fix"] == (
        "shardwright partition convert public.events to finish it, or shardwright partition convert public.events --abort"
    )
    convert.convert(dsn, "public", "events", MONTHS)
    assert tick(dsn).exit_code == 0
    shard_map = maps.load_map(cluster.catalog)
    cluster.shard("s1").execute(
        "INSERT INTO events SELECT u, now() - n * interval '10 days' "
        "FROM unnest(%s::bigint[]) u, generate_series(1, 20) n",
        ([n for n in range(50) if shard_map.route("users", n).shard == "s1"],),
    )

    moving = _start(cluster)
    refused(split.plan)
    refused(split.split)
    refused(restore.restore, ["events_p2020_01"])
    operate.drive(dsn, moving, "aborted")

    with pytest.raises(_Stopped):
        split.split(dsn, "public", "events", on_progress=_stop)
    assert [one["found"] for one in _problems(cluster)] == ["a split of public.events is under way"] * 2
    assert sorted(split.abort(dsn, "public", "events")) == ["s1", "s2"]
    operate.drive(dsn, _start(cluster), "aborted")
    assert tick(dsn).exit_code == 0


def test_a_split_that_begins_waits_for_who_changes_the_cluster(found: Callable[..., Found]) -> None:
    """A move that is being started and a job that is being noted see each other."""
    cluster = _prepare(found)
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(convert.convert(cluster.dsns.catalog, "public", "events", MONTHS))
        except errors.OperationConflict as error:
            outcome.append(error)

    with roster.changing(cluster.catalog):
        worker = threading.Thread(target=run, daemon=True)
        worker.start()
        # What `start` does while it holds the lock, just before that job would be noted.
        made = operate.plan(cluster.catalog, move="users:[0,64)", to="s2")
        operate.start(cluster.catalog, made)
    worker.join(60)
    assert len(outcome) == 1
    assert isinstance(outcome[0], errors.OperationConflict)
    jobs = cluster.catalog.execute("SELECT count(*) FROM shardwright.partition_jobs").fetchone()
    assert jobs == (0,)


@pytest.mark.parametrize("seconds", [30, pytest.param(-30, marks=pytest.mark.slow)])
def test_a_shard_whose_clock_is_wrong_stops_everything(timed: Callable[..., Timed], seconds: int) -> None:
    """The server's own clock function is replaced in that database."""
    cluster = timed(2, by_month(keep="1 month", grace=None))
    assert cluster.tick(NOW).exit_code == 0
    before = cluster.windows("s1")
    wrong = cluster.shard("s2")
    wrong.execute("SET allow_system_table_mods = on")
    wrong.execute("ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock")
    wrong.execute(
        "CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        f"'SELECT pg_catalog.true_clock() + interval ''{seconds} s'''".encode()
    )
    report = tick(cluster.dsns.catalog)
    assert report.exit_code == 3
    [finding] = report.plan.findings
    assert finding.kind == "clock-skew"
    ahead, behind = ("s2", "s1") if seconds > 0 else ("s1", "s2")
    assert f"the clock of shard {ahead} is" in finding.message
    assert f"ahead of that of {behind}" in finding.message
    assert abs(finding.facts["seconds"] - 30) < 3
    assert "chrony" in finding.fix
    assert cluster.windows("s1") == cluster.windows("s2") == before
    wrong.execute("DROP FUNCTION pg_catalog.clock_timestamp()")
    wrong.execute("ALTER FUNCTION pg_catalog.true_clock() RENAME TO clock_timestamp")
    assert not any(one.kind == "clock-skew" for one in tick(cluster.dsns.catalog).plan.findings)
    assert cluster.windows("s1") == cluster.windows("s2")


@pytest.mark.slow
def test_a_slow_answer_is_no_skew(timed: Callable[..., Timed]) -> None:
    """The clock was read at some moment while it was waited for."""
    cluster = timed(2)
    cluster.tick()
    slow = cluster.shard("s2")
    slow.execute("SET allow_system_table_mods = on")
    slow.execute("ALTER FUNCTION pg_catalog.pg_is_in_recovery() RENAME TO is_it")
    slow.execute(
        "CREATE FUNCTION pg_catalog.pg_is_in_recovery() RETURNS bool LANGUAGE sql VOLATILE AS "
        "'SELECT pg_catalog.is_it() FROM (SELECT pg_catalog.pg_sleep(2) OFFSET 0) AS slept'"
    )
    with Fleet(cluster.dsns.catalog, [("public", "events")]) as fleet:
        skews = {shape.name: shape.skew for shape in fleet.look().shards}
    assert abs(skews["s2"]) < 0.5, skews
