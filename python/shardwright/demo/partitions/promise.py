"""What each table of the platform promises at a moment, by plain datetime arithmetic. Pure.

It shares nothing with `shardwright.partition.calendar`, which it is held against.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

Unit = Literal["month", "week", "day"]

#: Days that a unit has at most.
_LONGEST: Final = {"month": 31, "week": 7, "day": 1}


class Window(NamedTuple):
    """A window of one table: from `lower` on, before `upper`."""

    lower: datetime
    upper: datetime


@dataclass(frozen=True)
class Promise:
    """The windows of one table, and how long each is kept."""

    table: str
    column: str
    #: Length of a window.
    unit: Unit
    #: Kept for so many of these after a window's end.
    keep: int
    keep_unit: Unit
    ahead: int = 3
    #: Rows carry a date, not a moment.
    is_date: bool = False
    is_sharded: bool = True

    def at(self, moment: datetime) -> Window:
        """The window that a moment lies in."""
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.unit == "month":
            day = day.replace(day=1)
        elif self.unit == "week":
            day -= timedelta(days=day.weekday())
        return Window(day, self.after(day))

    def after(self, lower: datetime) -> datetime:
        """Where the window ends that begins there."""
        return lower + timedelta(days=1) if self.unit == "day" else _later(lower, 1, self.unit)

    def over(self, window: Window) -> datetime:
        """The first moment at which a window is no longer kept."""
        return _later(window.upper, self.keep, self.keep_unit)

    def windows(self, first: datetime, now: datetime) -> list[Window]:
        """All windows that exist at a moment.

        Args:
            first: when the table was made: nothing before its window was ever promised.
            now: the moment.
        """
        # Nothing that old is kept: it need not be looked at.
        long_ago = now - timedelta(days=_LONGEST[self.keep_unit] * (self.keep + 1) + 2 * _LONGEST[self.unit])
        window, found = self.at(max(first, long_ago)), []
        here = self.at(now)
        while window.lower <= here.lower:
            if now < self.over(window):
                found.append(window)
            window = self.at(window.upper)
        for _ in range(self.ahead):
            found.append(window)
            window = self.at(window.upper)
        return found


def _later(moment: datetime, count: int, unit: Unit) -> datetime:
    """A moment, later by days, weeks or calendar months; a day that a month lacks is its last."""
    if unit != "month":
        return moment + timedelta(days=count * (7 if unit == "week" else 1))
    year, month = divmod(moment.year * 12 + moment.month - 1 + count, 12)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, monthrange(year, month + 1)[1]))


#: The tables of the platform.
PROMISES: Final = (
    Promise("analytics_events", "created_at", "month", 12, "month"),
    Promise("user_activity", "timestamp", "week", 3, "month"),
    Promise("system_logs", "log_date", "day", 30, "day", is_date=True, is_sharded=False),
)


def midnight(year: int, month: int, day: int) -> datetime:
    """The beginning of a day in UTC."""
    return datetime(year, month, day, tzinfo=UTC)
