"""Plan, apply and tick on real shards: the same windows everywhere, whatever happens to one of them."""

from __future__ import annotations

from collections.abc import Callable

from fix_partitions import Timed


def test_every_shard_gets_the_same_windows(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    report = cluster.tick()
    assert report.exit_code == 0, report.to_json()
    assert cluster.windows("s1") == {
        "events_p2026_11": "('2026-11-01 00:00:00+00') TO ('2026-12-01 00:00:00+00')",
        "events_p2026_12": "('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')",
        "events_p2027_01": "('2027-01-01 00:00:00+00') TO ('2027-02-01 00:00:00+00')",
        "events_p_after": "('2027-02-01 00:00:00+00') TO (MAXVALUE)",
        "events_p_before": "(MINVALUE) TO ('2026-11-01 00:00:00+00')",
    }
    assert cluster.windows("s2") == cluster.windows("s1")
    assert cluster.plan().is_empty
