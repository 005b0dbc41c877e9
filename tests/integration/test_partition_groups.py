"""Windows of tables that refer to each other, and a detach that broke off."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa

from fix_partitions import NOW, Timed, by_month, pending_detach
from shardwright.partition.status import status
from shardwright.routing.tables import time_partitioned

# ---------------------------------------------------------------- foreign keys, pending detaches


def _group(parent_keep: str, child_keep: str | None) -> Callable[[sa.MetaData], sa.Table]:
    def make(metadata: sa.MetaData) -> sa.Table:
        by_month("events", keep=parent_keep, grace=None)(metadata)
        info = time_partitioned("at", every="1 month", ahead=2, keep=child_keep, grace=None)
        return sa.Table(
            "notes",
            metadata,
            sa.Column("id", sa.BigInteger, primary_key=True),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.ForeignKeyConstraint(["id", "at"], ["events.id", "events.at"]),
            info=info,
        )

    return make


def test_windows_that_rows_refer_to_stay_until_those_rows_go(timed: Callable[..., Timed]) -> None:
    cluster = timed(2, _group("1 month", "3 months"))
    assert cluster.tick().exit_code == 0
    shard = cluster.shard("s2")
    shard.execute("INSERT INTO events (id, at) OVERRIDING SYSTEM VALUE VALUES (1, '2026-11-30')")
    shard.execute("INSERT INTO notes VALUES (1, '2026-11-30')")
    january = datetime(2027, 1, 5, tzinfo=UTC)
    report = cluster.tick(january)
    [finding] = [one for one in report.plan.findings if one.kind == "needed-window"]
    assert "rows of public.notes refer to rows in it" in finding.message
    assert (finding.shard, report.exit_code) == ("s2", 3)
    assert "events_p2026_11" in cluster.windows("s1")
    assert "events_p2026_11" in cluster.windows("s2")
    shard.execute("DELETE FROM notes")
    assert cluster.tick(january).exit_code == 0
    assert "events_p2026_11" not in cluster.windows("s2")


def test_a_group_with_the_same_windows_loses_them_together(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, _group("1 month", "1 month"))
    cluster.tick()
    shard = cluster.shard("s1")
    shard.execute("INSERT INTO events (id, at) OVERRIDING SYSTEM VALUE VALUES (1, '2026-11-30')")
    shard.execute("INSERT INTO notes VALUES (1, '2026-11-30')")
    for day in (5, 6, 7):
        report = cluster.tick(datetime(2027, 1, day, tzinfo=UTC))
        assert report.exit_code == 0, report.to_json()
    for table in ("events", "notes"):
        assert f"{table}_p2026_11" not in cluster.windows("s1", table)
        assert cluster.ask("s1", "SELECT to_regclass(%s)", f"{table}_p2026_11") is None


def test_an_interrupted_detach_is_finished_and_a_wanted_window_comes_back(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    cluster.tick()
    shard = cluster.shard("s1")
    shard.execute("INSERT INTO events (at) VALUES ('2026-12-24')")
    pending_detach(cluster.dsns.shards["s1"], "events_p2026_12")
    assert cluster.ask("s1", "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 1
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 0
    [pending] = [
        window for window in status(cluster.dsns.catalog, now=NOW).tables[0].windows if window.name == "events_p2026_12"
    ]
    assert pending.shards == {"s1": "pending"}
    report = cluster.tick()
    assert report.exit_code == 0, report.to_json()
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 1
    assert cluster.plan().is_empty
