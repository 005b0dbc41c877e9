"""Guards with more rows than a tick moves, and policies that are changed under them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from fix_partitions import Timed, by_month
from shardwright import errors, time_partitioned
from shardwright.catalog import models

MANY = 10_001
DECEMBER = datetime(2026, 12, 20, tzinfo=UTC)


def _fill(cluster: Timed, shard: str, rows: int, start: str, days: int) -> None:
    cluster.shard(shard).execute(
        "INSERT INTO events (at) SELECT %s::timestamptz + n * %s * interval '1 day' / %s FROM generate_series(1, %s) n",
        (start, days, rows, rows),
    )


def test_a_full_guard_waits_for_a_person(timed: Callable[..., Timed]) -> None:
    cluster = timed(2, by_month(keep="3 years"))
    cluster.tick()
    _fill(cluster, "s1", MANY, "2026-08-10", 80)
    _fill(cluster, "s2", 20, "2026-09-01", 10)
    _fill(cluster, "s1", MANY, "2027-02-02", 20)
    before = {name: cluster.ask(name, "SELECT count(*) FROM events") for name in ("s1", "s2")}
    report = cluster.tick(DECEMBER)
    assert report.exit_code == 3
    said = {one.facts["leaf"]: one for one in report.plan.findings if one.kind == "rows-in-guard"}
    assert set(said) == {"events_p_before", "events_p_after"}
    for leaf, finding in said.items():
        assert (finding.shard, finding.facts["more"]) == ("s1", True)
        assert f"more than {MANY - 1} rows are in the guard {leaf}" in finding.message
        assert f"SELECT * FROM public.{leaf};" in finding.fix
        assert finding.fix.endswith("shardwright partition tick --table public.events --guard-rows N")
    # The other shard goes on; rows of that time are taken by the guard here.
    assert "events_p2027_02" in cluster.windows("s2")
    assert "events_p2027_02" not in cluster.windows("s1")
    cluster.shard("s1").execute("INSERT INTO events (at) VALUES ('2027-02-27')")
    # One more than may be moved is still too many.
    assert cluster.tick(DECEMBER, most_moved=MANY).exit_code == 3
    assert "events_p2026_09" in cluster.windows("s1")
    assert "events_p2027_02" not in cluster.windows("s1")
    assert cluster.tick(DECEMBER, most_moved=MANY + 1).exit_code == 0
    assert cluster.windows("s1") == cluster.windows("s2")
    assert {name: cluster.ask(name, "SELECT count(*) FROM events") for name in before} == {
        "s1": before["s1"] + 1,
        "s2": before["s2"],
    }
    assert cluster.ask("s1", "SELECT count(*) FROM events_p2027_02") == MANY + 1
    assert cluster.ask("s1", "SELECT count(*) FROM events_p_before") == 0
    assert cluster.tick(DECEMBER).exit_code == 0


def _again(cluster: Timed, *args: object, **policy: object) -> None:
    metadata = sa.MetaData()
    by_month("events", *args, **policy)(metadata)
    models.register(cluster.catalog, metadata)


def test_guards_that_are_turned_off_stay_and_come_no_more(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    cluster.tick()
    _again(cluster, guards=False)
    report = cluster.tick(DECEMBER)
    assert report.exit_code == 0, report.to_json()
    have = cluster.windows("s1")
    assert have["events_p_after"].startswith("('2027-03-01"), "it goes on giving way"
    cluster.shard("s1").execute("INSERT INTO events (at) VALUES ('2050-01-01')")
    cluster.shard("s1").execute("DELETE FROM events")
    # Taken out by hand it is not made again while the policy does not want it.
    cluster.catalog.execute("DELETE FROM shardwright.windows WHERE name = 'events_p_after'")
    cluster.shard("s1").execute("DROP TABLE events_p_after")
    cluster.shard("s1").execute("DELETE FROM shardwright.partitions WHERE name = 'events_p_after'")
    assert cluster.tick(DECEMBER).exit_code == 0
    assert "events_p_after" not in cluster.windows("s1")
    _again(cluster)
    assert cluster.tick(DECEMBER).exit_code == 0
    assert cluster.windows("s1")["events_p_after"] == have["events_p_after"]


def test_a_key_that_means_another_time_is_told_and_nothing_is_made(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month("events", "at", sa.BigInteger, key="epoch_s"))
    assert cluster.tick().exit_code == 0
    have = cluster.windows("s1")
    _again(cluster, "at", sa.BigInteger, key="epoch_ms")
    report = cluster.tick()
    assert report.exit_code == 3, report.to_json()
    assert "other-bounds" in {one.kind for one in report.plan.findings}
    assert all(one.fix for one in report.plan.findings)
    assert cluster.windows("s1") == have
    _again(cluster, "at", sa.BigInteger, key="epoch_s")
    assert cluster.tick().exit_code == 0
    assert cluster.windows("s1") == have


def test_another_column_is_refused(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    cluster.tick()
    have = cluster.windows("s1")
    other = by_month()(sa.MetaData())
    other.info.update(time_partitioned("id", every="1 month", key="epoch_s"))
    with pytest.raises((errors.BadDeclaration, errors.UnfitTable)) as refused:
        models.register(cluster.catalog, other.metadata)
    assert refused.value.fix
    assert cluster.tick().exit_code == 0
    assert cluster.windows("s1") == have
