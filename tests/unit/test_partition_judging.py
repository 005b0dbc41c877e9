"""The demo's judge sees a window that is dropped early, late, is missing or too many, and rows that are gone or astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from shardwright.demo.partitions.judging import Judge, Leaf, Seen, Tally
from shardwright.demo.partitions.promise import PROMISES, Promise, Window, midnight

EVENTS, ACTIVITY, LOGS = PROMISES
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
FIRST = midnight(2026, 1, 1)
GRACE = timedelta(days=2)


def lowers(promise: Promise, first: datetime, now: datetime) -> list[str]:
    return [f"{window.lower:%m-%d}" for window in promise.windows(first, now)]


def test_what_is_promised() -> None:
    assert lowers(EVENTS, FIRST, FIRST) == ["01-01", "02-01", "03-01", "04-01"]
    assert lowers(EVENTS, midnight(2026, 1, 31), midnight(2027, 2, 1) - TICK)[0] == "01-01"
    assert lowers(EVENTS, midnight(2026, 1, 31), midnight(2027, 2, 1))[0] == "02-01"
    assert len(EVENTS.windows(FIRST, midnight(2028, 3, 1))) == 12 + 1 + 3
    # 2026-11-30 is a Monday: three months later is the last of February
    assert ACTIVITY.over(ACTIVITY.at(midnight(2026, 11, 30) - TICK)) == midnight(2027, 2, 28)
    assert lowers(ACTIVITY, midnight(2026, 1, 1), midnight(2026, 1, 4)) == ["12-29", "01-05", "01-12", "01-19"]
    assert lowers(LOGS, FIRST, FIRST + 31 * DAY)[0] == "01-02"
    assert len(LOGS.windows(FIRST, midnight(2028, 2, 29))) == 30 + 1 + 3


def sight(promise: Promise, now: datetime, rows: int = 0) -> Seen:
    """Exactly what is promised, with so many rows in each window."""
    windows = {w: Leaf(f"p{w.lower:%Y%m%d}", rows, w.lower, w.upper - TICK) for w in promise.windows(FIRST, now)}
    beside = [
        w
        for day in range((now - FIRST).days)
        if promise.over(w := promise.at(FIRST + day * DAY)) <= now < promise.over(w) + GRACE
    ]
    return Seen(windows, tables=frozenset(f"p{w.lower:%Y%m%d}" for w in [*windows, *beside]))


def watched(promise: Promise, tally: Tally, days: int) -> Judge:
    judge = Judge(promise, "s1", FIRST, GRACE, tally)
    for day in range(days):
        judge.look(FIRST + day * DAY, sight(promise, FIRST + day * DAY))
    return judge


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.table)
def test_what_is_as_promised_is_clean(promise: Promise) -> None:
    tally = Tally()
    watched(promise, tally, 500)
    assert tally == Tally()


def without(seen: Seen, window: Window, *, table: bool = False) -> Seen:
    windows = {one: leaf for one, leaf in seen.windows.items() if one != window}
    return replace(seen, windows=windows, tables=seen.tables - {seen.windows[window].name} if table else seen.tables)


def late(seen: Seen, now: datetime) -> Seen:
    return sight(LOGS, now - TICK)


def early(seen: Seen, now: datetime) -> Seen:
    return without(seen, min(seen.windows))


def missing(seen: Seen, now: datetime) -> Seen:
    return without(seen, max(seen.windows))


def shifted(seen: Seen, now: datetime) -> Seen:
    last = max(seen.windows)
    wrong = Window(last.lower + TICK, last.upper)
    return replace(without(seen, last), windows={**without(seen, last).windows, wrong: Leaf("p")})


def surplus(seen: Seen, now: datetime) -> Seen:
    window = LOGS.at(now + 10 * DAY)
    return replace(seen, windows={**seen.windows, window: Leaf("p")})


def astray(seen: Seen, now: datetime) -> Seen:
    return replace(seen, astray=1)


def stranger(seen: Seen, now: datetime) -> Seen:
    window = min(seen.windows)
    return replace(seen, windows={**seen.windows, window: replace(seen.windows[window], strangers=1)})


def outside(seen: Seen, now: datetime) -> Seen:
    window = min(seen.windows)
    return replace(seen, windows={**seen.windows, window: replace(seen.windows[window], greatest=window.upper)})


def grace_cut(seen: Seen, now: datetime) -> Seen:
    return replace(seen, tables=seen.tables - {f"p{now - 32 * DAY:%Y%m%d}"})


def grace_over(seen: Seen, now: datetime) -> Seen:
    return replace(seen, tables=seen.tables | {f"p{now - 33 * DAY:%Y%m%d}"})


@pytest.mark.parametrize(
    ("breaking", "found"),
    [
        (late, Tally(dropped_late=2, windows_wrong=1)),  # attached, in its grace, and the newest window is missing
        (early, Tally(dropped_early=1)),
        (missing, Tally(windows_wrong=1)),
        (shifted, Tally(windows_wrong=2)),
        (surplus, Tally(windows_wrong=1)),
        (astray, Tally(windows_wrong=1)),
        (stranger, Tally(windows_wrong=1)),
        (outside, Tally(windows_wrong=1)),
        (grace_cut, Tally(dropped_early=1)),
        (grace_over, Tally(dropped_late=1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_is_seen(breaking: Callable[[Seen, datetime], Seen], found: Tally) -> None:
    tally = Tally()
    judge = watched(LOGS, tally, 60)
    now = FIRST + 60 * DAY
    judge.look(now, breaking(sight(LOGS, now), now))
    assert tally.evidence
    tally.evidence.clear()
    assert tally == found
    assert not tally.clean


def test_rows_that_are_gone_are_counted_once() -> None:
    tally = Tally()
    judge = watched(LOGS, tally, 40)
    now = FIRST + 40 * DAY
    judge.wrote(now - DAY, 5)
    judge.look(now, sight(LOGS, now, rows=5))
    assert tally.windows_wrong > 1  # rows that nobody wrote
    tally.windows_wrong = 0
    judge.wrote(now, 7)
    for _ in range(2):
        judge.look(now, sight(LOGS, now))
    assert (tally.rows_lost, tally.windows_wrong) == (12, 0)
    judge.wrote(now, 3)
    judge.look(now, without(sight(LOGS, now), LOGS.at(now), table=True))
    assert (tally.rows_lost, tally.dropped_early) == (15, 1)
