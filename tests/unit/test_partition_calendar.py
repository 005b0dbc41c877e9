"""Windows tile the axis in every zone, and are where a calendar on the wall has them."""

from __future__ import annotations

import importlib.resources
import itertools
import time
import zoneinfo
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardwright.errors import BadOption
from shardwright.partition import calendar, clocks
from shardwright.partition.calendar import Window, expired, label, now_on_axis, shift, wanted, window_at, windows
from shardwright.routing.policy import KEYS, UNITS, Policy, Span

TZDATA = importlib.resources.files("tzdata")
ZONES = TZDATA.joinpath("zones").read_text().split()
HOUR, DAY = 3600 * 10**6, 86_400 * 10**6
YEAR_1970, YEAR_2100 = 0, clocks.wall_of(datetime(2100, 1, 1))


@cache
def rules(zone: str) -> zoneinfo.ZoneInfo:
    with TZDATA.joinpath("zoneinfo", *zone.split("/")).open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file)


def at(*fields: int) -> int:
    """The instant of a moment of UTC, or the wall of a reading."""
    return clocks.wall_of(datetime(*fields))  # type: ignore[arg-type]


def policy(every: str = "1 day", zone: str = "UTC", **options: Any) -> Policy:
    return Policy("at", every, zone=zone, **options)


moments = st.integers(YEAR_1970, YEAR_2100 - 1)
#: Mostly near a day's beginning somewhere, where clocks are changed.
near_midnight = st.builds(
    lambda day, half_hours, off: day * DAY + half_hours * HOUR // 2 + off,
    st.integers(0, 47_480),
    st.integers(0, 47),
    st.integers(-2, 2),
)
anchors = st.one_of(
    st.none(),
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0).isoformat()
    ),
    st.sampled_from(["2024-01-31", "2023-12-30T00:00", "2024-02-29", "2026-01-04T00:00", "2020-04-01"]),
)
spans = st.builds(
    lambda count, unit: f"{count} {unit}", st.sampled_from([1, 1, 1, 2, 3, 5, 12, 100]), st.sampled_from(UNITS)
)
policies = st.builds(
    lambda every, zone, anchor, keep, ahead: policy(every, zone, anchor=anchor, keep=keep, ahead=ahead),
    spans,
    st.sampled_from(ZONES),
    anchors,
    spans,
    st.integers(1, 6),
)
keys = st.sampled_from(["timestamptz", "timestamptz", "timestamp"])
many = settings(max_examples=500, deadline=None)


# ------------------------------------------------------------------ for every policy


@many
@given(declared=policies, key=keys, moment=st.one_of(moments, near_midnight))
@example(declared=policy(zone="Pacific/Apia"), key="timestamptz", moment=at(2011, 12, 30, 10))
@example(declared=policy(zone="America/St_Johns"), key="timestamptz", moment=at(2005, 10, 30, 2, 31))
def test_a_moment_lies_in_its_window_and_windows_tile(declared: Policy, key: str, moment: int) -> None:
    here = window_at(declared, key, moment)
    assert here.lower <= moment < here.upper
    before, after = window_at(declared, key, here.lower - 1), window_at(declared, key, here.upper)
    assert before.upper == here.lower
    assert after.lower == here.upper
    assert before.lower < before.upper
    assert after.lower < after.upper
    assert list(windows(declared, key, before.lower, after.lower + 1)) == [before, here, after]
    assert list(windows(declared, key, moment, moment + 1)) == [here]
    assert list(windows(declared, key, here.lower, here.upper)) == [here]
    assert window_at(declared, key, here.lower) == window_at(declared, key, here.upper - 1) == here
    assert len({label(declared, key, window) for window in (before, here, after)}) == 3


@many
@given(zone=st.sampled_from(ZONES), moment=st.one_of(moments, near_midnight))
@example(zone="America/Havana", moment=at(2025, 11, 2, 4, 30))
def test_a_day_is_what_the_wall_says(zone: str, moment: int) -> None:
    shown = rules(zone).fromutc(clocks.datetime_of(moment).replace(tzinfo=rules(zone)))
    named = datetime.strptime(
        label(policy(zone=zone), "timestamptz", window_at(policy(zone=zone), "timestamptz", moment)), "%Y%m%d"
    )
    # A clock that is put back past midnight shows the end of a day twice: the second time belongs to the next day.
    assert named.date() == shown.date() or (shown.fold and named.date() == shown.date() + timedelta(days=1))


@many
@given(zone=st.sampled_from(ZONES), wall=st.one_of(moments, near_midnight))
def test_a_wall_is_reached_when_it_is_first_shown(zone: str, wall: int) -> None:
    clock = clocks.clock(zone)
    reached = clock.reach(wall)
    assert clock.shows(reached) >= wall
    assert all(clock.shows(reached - back) < wall for back in (1, 10**6, 60 * 10**6, HOUR // 2, HOUR, 2 * HOUR, DAY))
    assert clock.read(reached - 1) < wall <= clock.read(reached)


@many
@given(declared=policies, key=keys, moment=near_midnight, back=st.integers(0, 40))
def test_wanted_windows_are_contiguous(declared: Policy, key: str, moment: int, back: int) -> None:
    now = clocks.datetime_of(moment).replace(tzinfo=UTC)
    here = now_on_axis(declared, key, now)
    plain = wanted(declared, key, now)
    assert plain[0] == window_at(declared, key, here)
    assert len(plain) == 1 + declared.ahead
    since = max(here - back * 30 * HOUR, clocks.FIRST)
    found = wanted(declared, key, now, since)
    assert found[0] == window_at(declared, key, since)
    assert found[-len(plain) :] == plain
    assert all(one.upper == two.lower for one, two in itertools.pairwise(found))
    assert wanted(declared, key, now, here + 10**12) == plain


@many
@given(
    declared=policies,
    key=keys,
    pair=st.tuples(st.one_of(moments, near_midnight), st.one_of(moments, st.integers(0, 3 * HOUR))),
    count=st.integers(1, 50),
    unit=st.sampled_from(UNITS),
    sign=st.sampled_from([1, -1]),
)
def test_shift_is_monotone(declared: Policy, key: str, pair: tuple[int, int], count: int, unit: str, sign: Any) -> None:
    one, two = sorted((pair[0], pair[0] + pair[1] if pair[1] < 4 * HOUR else pair[1]))
    shifted = [shift(declared, key, moment, Span(count, unit), sign) for moment in (one, two)]
    # The 30th and the 31st of January both come to February's last day, each at its own time of day.
    assert shifted[0] <= shifted[1] + (DAY if unit in ("month", "quarter", "year") else 0)
    assert all(sign * (moved - moment) > 0 for moved, moment in zip(shifted, (one, two), strict=True))


@many
@given(declared=policies, key=keys, moment=near_midnight)
def test_a_window_expires_to_the_microsecond(declared: Policy, key: str, moment: int) -> None:
    upper = window_at(declared, key, moment).upper
    assert declared.kept is not None
    end = shift(declared, key, upper, declared.kept, 1)
    if key == "timestamptz" and end < clocks.LAST:
        moment_of_end = clocks.datetime_of(end).replace(tzinfo=UTC)
        assert expired(declared, key, upper, moment_of_end)
        assert not expired(declared, key, upper, moment_of_end - timedelta(microseconds=1))
        # Whatever zone the clock is given in.
        assert expired(declared, key, upper, moment_of_end.astimezone(rules("Asia/Kathmandu")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("every", ["1 day", "1 week", "1 month", "1 quarter", "1 year"])
def test_every_zone_from_1970_to_2100(every: str) -> None:
    seen = set()
    for zone in ZONES:
        content = TZDATA.joinpath("zoneinfo", *zone.split("/")).read_bytes()
        if content in seen:
            continue
        seen.add(content)
        declared = policy(every, zone)
        named, end = set(), window_at(declared, "timestamptz", YEAR_1970).lower
        for window in windows(declared, "timestamptz", YEAR_1970, YEAR_2100):
            assert window.lower == end < window.upper, (zone, window)
            name = label(declared, "timestamptz", window)
            assert name not in named, (zone, name)
            named.add(name)
            end = window.upper
        assert end >= YEAR_2100


# ------------------------------------------------------------------ ends


@given(
    declared=policies,
    key=keys,
    edge=st.sampled_from([clocks.FIRST, clocks.LAST]),
    off=st.integers(-400 * DAY, 400 * DAY),
)
@settings(max_examples=200, deadline=None)
def test_the_calendar_ends_without_a_crash(declared: Policy, key: str, edge: int, off: int) -> None:
    moment = edge + off
    if clocks.FIRST <= moment < clocks.LAST:
        window = window_at(declared, key, moment)
        assert clocks.FIRST <= window.lower <= moment < window.upper <= clocks.LAST
        assert label(declared, key, window)
    else:
        with pytest.raises(BadOption, match="outside the calendar"):
            window_at(declared, key, moment)
    found = list(windows(declared, key, edge - 100 * HOUR, edge + 100 * HOUR))
    assert found
    assert all(one.upper == two.lower for one, two in itertools.pairwise(found))
    assert clocks.FIRST in (w.lower for w in found) or clocks.LAST in (w.upper for w in found)
    assert clocks.FIRST <= shift(declared, key, moment, Span(9999, "year"), 1) <= clocks.LAST
    assert clocks.FIRST <= shift(declared, key, moment, Span(9999, "year"), -1) <= clocks.LAST


def test_far_ends() -> None:
    last = datetime(9999, 12, 30, 23, 59, 59, tzinfo=UTC)
    assert [w.upper for w in wanted(policy(ahead=5), "timestamptz", last)] == [clocks.LAST]
    with pytest.raises(BadOption, match="outside the calendar"):
        wanted(policy(), "timestamptz", datetime(9999, 12, 31, 12, tzinfo=UTC))
    assert list(windows(policy(), "timestamptz", 5, 5)) == list(windows(policy(), "timestamptz", 2**62, 2**63)) == []
    whole = policy("999999 years")
    assert [window_at(whole, "timestamptz", m) for m in (-1, 0)] == [Window(clocks.FIRST, 0), Window(0, clocks.LAST)]
    assert not expired(policy(keep="999999 years"), "timestamptz", 0, last)
    with pytest.raises(BadOption, match="no zone"):
        now_on_axis(policy(), "timestamptz", datetime(2026, 1, 1))


def test_every_key_has_an_axis() -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert {now_on_axis(policy(), key, now) for key in KEYS} == {at(2026, 11, 25, 12)}
    assert set(KEYS) > calendar.WALL_KEYS


def test_zones_come_from_the_package_and_names_are_no_paths() -> None:
    assert isinstance(clocks.clock("Europe/Berlin"), clocks.ZoneClock)
    assert type(clocks.clock("UTC")) is type(clocks.clock(None)) is clocks.Clock
    with pytest.raises(ValueError, match="path"):
        clocks.clock("/etc/passwd")
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        clocks.clock("Europe/Atlantis")


def test_a_thousand_windows_take_milliseconds() -> None:
    declared = policy(zone="America/New_York", keep="30 days", ahead=3)
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    since = at(2024, 3, 1)

    def took() -> float:
        begun = time.process_time()
        found = wanted(declared, "timestamptz", now, since)
        assert len(found) > 1000
        assert sum(expired(declared, "timestamptz", window.upper, now) for window in found) > 900
        return time.process_time() - begun

    took()
    assert min(took() for _ in range(5)) < 0.02
