"""Whether each shard has exactly what was promised, and every row where it belongs. Pure: it sees what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from shardwright.demo.partitions.promise import Promise, Window


@dataclass(frozen=True)
class Leaf:
    """What a partition that is attached was seen to hold."""

    name: str
    rows: int = 0
    #: The least and the greatest value of the column by which the table is partitioned.
    least: datetime | None = None
    greatest: datetime | None = None
    #: Rows whose key another shard owns.
    strangers: int = 0


@dataclass(frozen=True)
class Seen:
    """One table on one shard after a tick."""

    windows: Mapping[Window, Leaf]
    #: Rows in partitions that are no windows: guards.
    astray: int = 0
    #: Names of all tables that are there, attached or not.
    tables: frozenset[str] = frozenset()


@dataclass
class Tally:
    """What went wrong, and what stands behind the numbers."""

    windows_wrong: int = 0
    rows_lost: int = 0
    dropped_early: int = 0
    dropped_late: int = 0
    evidence: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep one piece of evidence while there is room."""
        if len(self.evidence) < 20:
            self.evidence.append(text)

    def __add__(self, other: Tally) -> Tally:
        """Both together."""
        made = Tally(
            self.windows_wrong + other.windows_wrong,
            self.rows_lost + other.rows_lost,
            self.dropped_early + other.dropped_early,
            self.dropped_late + other.dropped_late,
        )
        for text in (*self.evidence, *other.evidence):
            made.say(text)
        return made

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.windows_wrong or self.rows_lost or self.dropped_early or self.dropped_late)


class Judge:
    """Follows one table on one shard from tick to tick."""

    def __init__(self, promise: Promise, shard: str, first: datetime, grace: timedelta, tally: Tally) -> None:
        """Nothing has been seen yet.

        Args:
            promise: of the table.
            shard: the shard's name.
            first: when the table was made.
            grace: for which a window that is over stays beside the table.
            tally: gets what is found.
        """
        self._promise = promise
        self._shard = shard
        self._first = first
        self._grace = grace
        self._tally = tally
        #: Rows that were acknowledged, by the window in which they belong.
        self.rows: Counter[Window] = Counter()
        #: The partition of each window that was ever seen.
        self.names: dict[Window, str] = {}
        #: Windows that were brought back from their archives: they are to be there.
        self._back: set[Window] = set()
        #: When each of those that are over was first not seen in the table: its grace begins.
        self._left: dict[Window, datetime] = {}

    def wrote(self, moment: datetime, rows: int = 1) -> None:
        """Rows were acknowledged."""
        self.rows[self._promise.at(moment)] += rows

    def brought_back(self, window: Window) -> None:
        """A window that was over is to be there again, with all its rows."""
        self._back.add(window)

    def look(self, now: datetime, seen: Seen) -> None:
        """Compare what is there with what is promised.

        Args:
            now: the moment of the tick.
            seen: what is there.
        """
        where = f"{self._promise.table} on {self._shard} at {now:%Y-%m-%d %H:%M:%S.%f}"
        promised = set(self._promise.windows(self._first, now)) | self._back
        for window in sorted(promised - seen.windows.keys()):
            if window in self.names:
                self._tally.dropped_early += 1
                name = self.names.pop(window)
                self._tally.say(f"{where}: {name} is gone, to be kept until {self._promise.over(window)}")
                self._lost(window, self.rows[window])
            else:
                self._tally.windows_wrong += 1
                self._tally.say(f"{where}: the window from {window.lower} is missing")
        for window in sorted(seen.windows.keys() - promised):
            if self._promise.at(window.lower) == window and self._promise.over(window) <= now:
                self._tally.dropped_late += 1
                self._tally.say(f"{where}: {seen.windows[window].name} is still there, over since {window.upper}")
            else:
                self._tally.windows_wrong += 1
                self._tally.say(
                    f"{where}: nobody promised {seen.windows[window].name}, {window.lower} to {window.upper}"
                )
        for window in sorted(promised & seen.windows.keys()):
            self._look_into(window, seen.windows[window], where)
        if seen.astray:
            self._tally.windows_wrong += 1
            self._tally.say(f"{where}: {seen.astray} rows lie in no window")
        self._look_beside(now, seen, where)

    def _look_into(self, window: Window, leaf: Leaf, where: str) -> None:
        self.names[window] = leaf.name
        if leaf.rows < self.rows[window]:
            self._tally.say(f"{where}: {leaf.name} has {leaf.rows} rows of {self.rows[window]}")
            self._lost(window, self.rows[window] - leaf.rows)
        outside = (leaf.least is not None and leaf.least < window.lower) or (
            leaf.greatest is not None and leaf.greatest >= window.upper
        )
        if leaf.rows > self.rows[window] or leaf.strangers or outside:
            self._tally.windows_wrong += 1
            self._tally.say(f"{where}: {leaf.name} has rows that do not belong there")

    def _look_beside(self, now: datetime, seen: Seen, where: str) -> None:
        """What is over stays beside the table for the grace, to the microsecond, and then goes."""
        for window, name in list(self.names.items()):
            if now < self._promise.over(window) or window in self._back:
                continue
            ends = self._left.setdefault(window, now) + self._grace
            gone = name not in seen.tables
            if gone and now < ends:
                self._tally.dropped_early += 1
                self._tally.say(f"{where}: {name} is gone before {ends}, when its grace ends")
            elif not gone and now >= ends:
                self._tally.dropped_late += 1
                self._tally.say(f"{where}: {name} is still there; its grace ended {ends}")
            if gone:
                del self.names[window], self._left[window]

    def _lost(self, window: Window, rows: int) -> None:
        self._tally.rows_lost += rows
        self.rows[window] -= rows  # counted once: what is gone is not there tomorrow either
