"""The platform's tables for two years of days: exactly what is promised, at each midnight and a microsecond before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from fix_servers import Dsns
from shardwright import engines
from shardwright.catalog import models as catalog_models
from shardwright.demo.partitions import models
from shardwright.demo.partitions.days import TICK, Days
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.promise import midnight
from shardwright.partition import calendar
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres

GRACE = "2 days"
#: Two years from here on have a leap day and a week 53.
FIRST = midnight(2019, 11, 15)


@pytest.fixture
def days(cluster_dsns: Callable[..., Dsns]) -> Iterator[Days]:
    dsns = cluster_dsns(3)
    make_ready(dsns.catalog, dsns.shards)
    with engines.connect_catalog(dsns.catalog, "test") as catalog:
        catalog_models.register(catalog, models.platform(grace=GRACE))
        with Days(catalog, dsns.catalog, FIRST, timedelta(days=2)) as made:
            made.begin()
            yield made


def test_weeks_and_the_ends_of_what_is_kept(days: Days) -> None:
    """Days one by one; then, with a tick only now and then, up to where months come to their end, and over that."""
    for _ in range(40):
        days.next_day()
    over = (midnight(2020, 12, 1) - FIRST).days  # of the first month
    for leap in (52, over - 92 - 2, 1, 1, 1, 1, 1):
        days.next_day(leap)
    assert days.now == midnight(2020, 12, 4)
    assert days.tally == Tally(), "\n".join(days.tally.evidence)
    assert days.rows > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_years(days: Days) -> None:
    for _ in range(731):
        days.next_day()
        assert days.tally == Tally(), "\n".join(days.tally.evidence)
    assert days.now == midnight(2021, 11, 15)
    assert days.rows > 5000


def test_what_somebody_else_does_is_found_out(days: Days) -> None:
    """The judgement's own control: a window dropped by hand, a row deleted, a row of another shard's user."""
    for _ in range(3):
        days.next_day()
    assert days.tally == Tally(), "\n".join(days.tally.evidence)
    days.vandalise("s2", "DELETE FROM public.user_activity WHERE id = (SELECT min(id) FROM public.user_activity)")
    days.look()
    assert (days.tally.rows_lost, days.tally.dropped_early, days.tally.windows_wrong) == (1, 0, 0)
    days.vandalise("s1", "DROP TABLE public.system_logs_p20191116")
    days.look()
    assert days.tally.dropped_early == 1
    assert days.tally.rows_lost > 1
    days.vandalise("s3", "ALTER TABLE public.analytics_events DETACH PARTITION public.analytics_events_p2020_01")
    days.look()
    assert days.tally.dropped_early == 2
    assert not days.tally.clean


@pytest.mark.parametrize(
    ("shift", "what"),
    [(TICK, "dropped_early"), (-TICK, "dropped_late")],
    ids=["a-microsecond-early", "a-microsecond-late"],
)
def test_a_microsecond_is_found_out(days: Days, monkeypatch: pytest.MonkeyPatch, shift: timedelta, what: str) -> None:
    days.next_day(40)
    expired = calendar.expired
    monkeypatch.setattr(calendar, "expired", lambda policy, key, upper, now: expired(policy, key, upper, now + shift))
    days.next_day()
    assert getattr(days.tally, what) == 3
