"""Windows of time: where each begins and ends, which are wanted, and which are over. Pure.

Everything is an integer on the policy's axis, microseconds since 1970-01-01: the UTC instant, or for columns that store
what a wall clock shows (`timestamp`, `date`) that reading itself. Windows are half-open and tile the axis: each begins
where the one before it ends, in every zone and over every change of its clock.

Only the coordinator computes windows, and it stores them in the catalog. Shards get literals; they cannot disagree, whatever
their own time zone data say.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Final, Literal

from shardwright import errors
from shardwright.partition import clocks
from shardwright.partition.clocks import DAY, FIRST, HOUR, LAST
from shardwright.routing.policy import Policy, Span

#: Keys whose column stores what a wall clock shows, without a zone.
WALL_KEYS: Final = frozenset({"timestamp", "date"})

_DAYS: Final = {"day": 1, "week": 7}
_MONTHS: Final = {"month": 1, "quarter": 3, "year": 12}
_ORDINAL_1970: Final = date(1970, 1, 1).toordinal()
#: Starts that a grid remembers; 1,000 leaves need 1,001.
_REMEMBERED: Final = 20_000


@dataclass(frozen=True, order=True)
class Window:
    """A half-open piece of a policy's axis: ``lower <= at < upper``, in microseconds."""

    lower: int
    upper: int


class Grid:
    """The starts of all windows of one length, anchor and clock, numbered from the anchor's, which is 0."""

    def __init__(self, span: Span, clock: clocks.Clock, anchor: datetime) -> None:
        self.span = span
        self.anchor = anchor
        self._clock = clock
        self._wall = clocks.wall_of(anchor)
        self._time_of_day = self._wall % DAY
        self._month = anchor.year * 12 + anchor.month - 1
        self._starts: dict[int, int] = {}
        if span.unit == "hour":
            self._origin = clock.reach(self._wall)

    def start(self, number: int) -> int:
        """Where a window begins. Never less than the start of the window before it; equal where a whole window is left
        out by the clock (a day that a zone skipped), or lies beyond the calendar.
        """
        known = self._starts.get(number)
        if known is None:
            if len(self._starts) >= _REMEMBERED:
                self._starts.clear()
            known = self._starts[number] = self._compute(number)
        return known

    def number(self, at: int) -> int:
        """The number of the window that `at`, from `FIRST` on and before `LAST`, lies in."""
        if self.span.unit == "hour":
            return (at - self._origin) // (self.span.count * HOUR)
        wall = self._clock.read(at)
        if self.span.unit in _DAYS:
            number = (wall - self._wall) // (self.span.count * _DAYS[self.span.unit] * DAY)
        else:
            shown = clocks.datetime_of(wall)
            months = shown.year * 12 + shown.month - 1 - self._month
            number = months // (self.span.count * _MONTHS[self.span.unit])
        while self.start(number) > at:
            number -= 1
        while self.start(number + 1) <= at:
            number += 1
        return number

    def wall(self, number: int) -> int | None:
        """What a calendar on the wall says of a window's start, whether or not the clock shows it; None: beyond the years
        1 to 9999. Not for hours, which have no calendar.
        """
        if self.span.unit in _DAYS:
            return self._wall + number * self.span.count * _DAYS[self.span.unit] * DAY
        month = self._month + number * self.span.count * _MONTHS[self.span.unit]
        return month_wall(month, self.anchor.day, self._time_of_day)

    def _compute(self, number: int) -> int:
        if self.span.unit == "hour":
            return clocks.within(self._origin + number * self.span.count * HOUR)
        wall = self.wall(number)
        if wall is None:
            return FIRST if number < 0 else LAST
        return self._clock.reach(wall)


def month_wall(month: int, day: int, time_of_day: int) -> int | None:
    """The wall of a day of a month, which is the month's last where it has no such day; None beyond the years 1 to 9999.

    Args:
        month: months since the beginning of year 0.
        day: 1 to 31.
        time_of_day: microseconds.
    """
    year, index = divmod(month, 12)
    if not 1 <= year <= 9999:
        return None
    day = min(day, monthrange(year, index + 1)[1]) if day > 28 else day
    return (date(year, index + 1, day).toordinal() - _ORDINAL_1970) * DAY + time_of_day


@lru_cache(maxsize=512)
def _grid(every: str, zone: str | None, anchor: str | None) -> Grid:
    span = Span.parse(every)
    default = datetime(1970, 1, 5) if span.unit == "week" else datetime(1970, 1, 1)
    return Grid(span, clocks.clock(zone), datetime.fromisoformat(anchor) if anchor is not None else default)


def grid_of(policy: Policy, key: str) -> Grid:
    """The grid that a policy's windows lie on.

    Args:
        policy: whose windows.
        key: one of `policy.KEYS`, as resolved from the column's type.
    """
    return _grid(policy.every, None if key in WALL_KEYS else policy.zone, policy.anchor)


def window_at(policy: Policy, key: str, at: int) -> Window:
    """The window that a moment lies in.

    Args:
        policy: whose windows.
        key: one of `policy.KEYS`, as resolved from the column's type.
        at: the moment on the axis.

    Raises:
        BadOption: the moment is outside the calendar, which covers the years 1 to 9999 but for a day at either end.
    """
    grid = grid_of(policy, key)
    number = grid.number(_inside(at))
    return Window(grid.start(number), grid.start(number + 1))


def _inside(at: int) -> int:
    if not FIRST <= at < LAST:
        raise errors.BadOption(
            f"{at} microseconds since 1970 is outside the calendar, which goes from 0001-01-02 to 9999-12-31",
            fix="look at the clock and at the rows that carry such a time",
        )
    return at


def windows(policy: Policy, key: str, lower: int, upper: int) -> Iterator[Window]:
    """The windows that meet ``[lower, upper)``, whole, in order. What is outside the calendar has none.

    Args:
        policy: whose windows.
        key: one of `policy.KEYS`, as resolved from the column's type.
        lower: from here on.
        upper: before here.
    """
    lower, upper = max(lower, FIRST), min(upper, LAST)
    if lower >= upper:
        return
    grid = grid_of(policy, key)
    number = grid.number(lower)
    start = grid.start(number)
    while start < upper:
        number += 1
        end = grid.start(number)
        if end > start:
            yield Window(start, end)
            start = end


def now_on_axis(policy: Policy, key: str, now: datetime) -> int:
    """The present moment on a policy's axis.

    Args:
        policy: gives the zone, through which columns without one see the time.
        key: one of `policy.KEYS`, as resolved from the column's type.
        now: the database's clock, aware.

    Raises:
        BadOption: `now` has no zone.
    """
    offset = now.utcoffset()
    if offset is None:
        raise errors.BadOption(f"the time {now.isoformat()} has no zone", fix="give an aware datetime")
    instant = clocks.wall_of(now) - offset // clocks.TICK
    return clocks.clock(policy.zone).shows(instant) if key in WALL_KEYS else instant


def wanted(policy: Policy, key: str, now: datetime, since: int | None = None) -> list[Window]:
    """The windows that should exist: that of now, `ahead` after it, and from that of `since` on.

    Args:
        policy: whose windows.
        key: one of `policy.KEYS`, as resolved from the column's type.
        now: the database's clock, aware.
        since: a moment on the axis; None, or one that is to come: nothing before now.

    Returns:
        Windows in order, each beginning where the one before it ends.

    Raises:
        BadOption: `now` has no zone or is outside the calendar.
    """
    here = window_at(policy, key, now_on_axis(policy, key, now))
    grid = grid_of(policy, key)
    found = list(windows(policy, key, min(here.lower, since if since is not None else here.lower), here.upper))
    number, end = grid.number(here.lower), here.upper
    for _ in range(policy.ahead):
        if end >= LAST:
            break
        number = grid.number(end)
        upper = grid.start(number + 1)
        found.append(Window(end, upper))
        end = upper
    return found


def shift(policy: Policy, key: str, at: int, span: Span, sign: Literal[1, -1]) -> int:
    """A moment, moved by a span of the zone's calendar.

    Hours are 3,600 seconds. A day later is the same time on the wall clock of the next day, or when the clock has passed
    it; a month later the same day of the next month, or its last day (as in PostgreSQL).

    Args:
        policy: gives the zone.
        key: one of `policy.KEYS`, as resolved from the column's type.
        at: the moment on the axis.
        span: how far.
        sign: 1 for later, -1 for earlier.

    Returns:
        The moment; beyond the calendar its nearest end.
    """
    return _shift(None if key in WALL_KEYS else policy.zone, at, span.unit, sign * span.count)


@lru_cache(maxsize=16_384)
def _shift(zone: str | None, at: int, unit: str, count: int) -> int:
    if unit == "hour":
        return clocks.within(at + count * HOUR)
    clock = clocks.clock(zone)
    wall = clock.read(at)
    if unit in _DAYS:
        return clock.reach(wall + count * _DAYS[unit] * DAY)
    shown = clocks.datetime_of(wall)
    month = shown.year * 12 + shown.month - 1 + count * _MONTHS[unit]
    moved = month_wall(month, shown.day, wall % DAY)
    if moved is None:
        return LAST if count > 0 else FIRST
    return clock.reach(moved)


def expired(policy: Policy, key: str, upper: int, now: datetime) -> bool:
    """Whether a window is no longer kept: its end, and `keep` after it, have passed.

    Args:
        policy: says how long rows are kept; one without `keep` keeps them for ever.
        key: one of `policy.KEYS`, as resolved from the column's type.
        upper: the window's upper bound.
        now: the database's clock, aware.

    Raises:
        BadOption: `now` has no zone.
    """
    if policy.kept is None:
        return False
    return shift(policy, key, upper, policy.kept, 1) <= now_on_axis(policy, key, now)


def label(policy: Policy, key: str, window: Window) -> str:
    """What a window is called in the name of its partition; another one for each window of a policy.

    ``2026``, ``2026q4``, ``2026_11``, ``2026w48`` (the ISO year and week) and ``20261125`` by the calendar of the zone,
    ``20261125t06`` in UTC, since a zone's own hours repeat. Where the anchor makes a year, quarter, month or week begin elsewhere
    than the calendar's own, the name says the first month or day.

    Args:
        policy: whose window.
        key: one of `policy.KEYS`, as resolved from the column's type.
        window: one of the policy's, or a piece of one.

    Raises:
        BadOption: the window begins outside the calendar.
    """
    grid = grid_of(policy, key)
    number = grid.number(_inside(window.lower))
    unit, anchor = grid.span.unit, grid.anchor
    if unit == "hour":
        start = clocks.datetime_of(grid.start(number))
        return f"{start.year:04d}{start:%m%dt%H}" + (f"{start:%M}" if start.minute else "")
    wall = grid.wall(number)
    start = clocks.datetime_of(wall if wall is not None and wall > clocks.FIRST_WALL else clocks.FIRST_WALL)
    if unit == "week" and anchor.weekday() == 0:
        iso = start.isocalendar()
        return f"{iso.year:04d}w{iso.week:02d}"
    if unit in _MONTHS and anchor.day == 1:
        if unit == "year" and anchor.month == 1:
            return f"{start.year:04d}"
        if unit == "quarter" and anchor.month % 3 == 1:
            return f"{start.year:04d}q{(start.month + 2) // 3}"
        return f"{start.year:04d}_{start.month:02d}"
    return f"{start.year:04d}{start.month:02d}{start.day:02d}"
