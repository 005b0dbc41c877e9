"""Wall clocks of IANA zones, on an axis of integers: microseconds since 1970-01-01. Pure.

A *wall* is what a clock on the wall shows, as if it were UTC; an *instant* is a moment of UTC. A wall clock may leave
out a piece of the day (or a whole day), show it twice, or be moved by half an hour. Two functions bridge the two, and
both never go back: `Clock.reach`, the first instant at which a wall is reached, and `Clock.read`, the furthest wall that
the clock has shown. Whatever is cut by them therefore has neither gap nor overlap.
"""

from __future__ import annotations

import importlib.resources
import zoneinfo
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR

_EPOCH: Final = datetime(1970, 1, 1)
TICK: Final = timedelta(microseconds=1)


def wall_of(moment: datetime) -> int:
    """The wall of a datetime; its zone, if it has one, is not looked at."""
    return (moment.replace(tzinfo=None) - _EPOCH) // TICK


def datetime_of(wall: int) -> datetime:
    """The naive datetime of a wall from year 1 to 9999."""
    return _EPOCH + timedelta(microseconds=wall)


#: The instants that the calendar covers, half-open. A day is left out at either end of what `datetime` can express, so
#: that no zone's wall clock leaves it.
FIRST: Final = wall_of(datetime(1, 1, 2))
LAST: Final = wall_of(datetime(9999, 12, 31))

#: The walls that `datetime` can express, half-open.
FIRST_WALL: Final = wall_of(datetime(1, 1, 1))
LAST_WALL: Final = wall_of(datetime(9999, 12, 31)) + DAY


def within(at: int) -> int:
    """The instant of the calendar that is nearest to `at`."""
    return min(max(at, FIRST), LAST)


class Clock:
    """Of an axis on which walls are instants: UTC, and columns that store walls."""

    def reach(self, wall: int) -> int:
        """The first instant at which the clock shows `wall` or more.

        That is the end of a gap for a wall that is left out, and the first of two for one that is shown twice.

        Args:
            wall: any integer; beyond the calendar's ends it is reached at `FIRST` or `LAST`.
        """
        return within(wall)

    def read(self, at: int) -> int:
        """The furthest wall that the clock has shown up to the instant `at`.

        That is what it shows, except while it repeats itself: then what it showed before it was put back.

        Args:
            at: an instant; beyond the calendar's ends its nearest end is read.
        """
        return within(at)

    def shows(self, at: int) -> int:
        """What the clock shows at the instant `at`, for people and for columns without a zone."""
        return within(at)


class ZoneClock(Clock):
    """Of an IANA zone."""

    def __init__(self, zone: zoneinfo.ZoneInfo) -> None:
        self._zone = zone

    def reach(self, wall: int) -> int:
        """As `Clock.reach`."""
        if not FIRST_WALL < wall < LAST_WALL:
            return within(wall)
        shown = datetime_of(wall).replace(tzinfo=self._zone)
        early, late = self._offset(shown), self._offset(shown.replace(fold=1))
        if early >= late:
            return within(wall - early)
        # In a gap the two offsets, of before and of after it, lie on the wrong side of each other: it ends between.
        return within(self._first(wall - late, wall - early, lambda at: self.shows(at) >= wall))

    def read(self, at: int) -> int:
        """As `Clock.read`."""
        shown = self._shown(at)
        wall = wall_of(shown)
        if not shown.fold:
            return wall
        offset = self._offset(shown.replace(fold=0))
        put_back = self._first(wall - offset, at, lambda then: self.shows(then) - then != offset)
        return put_back + offset

    def shows(self, at: int) -> int:
        """As `Clock.shows`."""
        return wall_of(self._shown(at))

    def _shown(self, at: int) -> datetime:
        return self._zone.fromutc(datetime_of(within(at)).replace(tzinfo=self._zone))

    @staticmethod
    def _offset(shown: datetime) -> int:
        offset = shown.utcoffset()
        assert offset is not None
        return (offset.days * 86_400 + offset.seconds) * SECOND

    @staticmethod
    def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
        """The first instant after `low`, where it does not hold, for which it holds, as it does at `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high


@lru_cache(maxsize=256)
def clock(zone: str | None) -> Clock:
    """The clock of a zone.

    The rules come from the package `tzdata`, so that the same installation cuts the same windows on every host, whatever
    the host's own files say; a zone that the package does not know is looked for on the host.

    Args:
        zone: an IANA name; None where walls are stored as they are.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no such zone.
    """
    if zone in (None, "UTC", "Etc/UTC"):
        return Clock()
    rules = zoneinfo.ZoneInfo(zone)  # also refuses what is no name, such as a path
    try:
        with importlib.resources.files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as file:
            rules = zoneinfo.ZoneInfo.from_file(file, key=zone)
    except (ImportError, OSError):
        pass
    return ZoneClock(rules)
