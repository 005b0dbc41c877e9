"""Plans that are stored, and done later."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from fix_partitions import NOW, Timed, by_month
from shardwright import errors
from shardwright.catalog import models
from shardwright.partition import apply

# ---------------------------------------------------------------- saved plans


def test_a_saved_plan_is_done_later_as_it_was_made(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    saved = apply.Plan.from_json(cluster.plan(NOW - timedelta(days=40)).to_json())
    report = apply.apply(cluster.dsns.catalog, saved)
    assert report.exit_code == 0
    assert "events_p2026_10" in cluster.windows("s1")


def test_a_plan_is_stale_when_the_policy_or_a_shard_changed(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    saved = cluster.plan()
    metadata = sa.MetaData()
    by_month(every="1 week")(metadata)
    models.register(cluster.catalog, metadata)
    with pytest.raises(errors.PlanStale, match="the policy is") as caught:
        apply.apply(cluster.dsns.catalog, saved)
    assert caught.value.exit_code == 4
    assert cluster.windows("s1") == {}
    assert cluster.catalog.execute("SELECT count(*) FROM shardwright.windows").fetchone() == (0,)
    saved = cluster.plan()
    cluster.shard("s2").execute(
        "CREATE TABLE by_hand PARTITION OF events FOR VALUES FROM ('2026-11-24') TO ('2026-11-26')"
    )
    with pytest.raises(errors.PlanStale):
        apply.apply(cluster.dsns.catalog, saved)
    assert cluster.windows("s1") == {}


def test_a_plan_for_a_shard_that_went_down_is_done_on_the_others(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    saved = cluster.plan()
    with cluster.unreachable("s2"):
        report = apply.apply(cluster.dsns.catalog, saved)
    assert {one.shard: one.outcome for one in report.outcomes} == {"s1": "done", "s2": "deferred"}
    assert cluster.tick().exit_code == 0
