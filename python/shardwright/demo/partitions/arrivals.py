"""Rows that arrive on a simulated day: at the edges of windows to the microsecond, and in between. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shardwright.demo.partitions.promise import Promise

_TICK = timedelta(microseconds=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Arrival:
    """One row for one table on one shard."""

    table: str
    shard: str
    #: None where the table has no shard key.
    user_id: int | None
    moment: datetime
    id: int

    @property
    def name(self) -> str:
        """What the row says."""
        return f"event {self.id}"


class Arrivals:
    """Makes the rows of each day, with numbers that are never used again."""

    def __init__(self, promises: Sequence[Promise], users: Mapping[str, Sequence[int]], seed: int) -> None:
        """Nothing has arrived yet.

        Args:
            promises: of the tables.
            users: keys that each shard owns.
            seed: of what is left to chance.
        """
        self._promises = promises
        self._users = users
        self._chance = random.Random(seed)
        self._last = 0

    def of(self, day: datetime, first: datetime) -> Iterator[Arrival]:
        """The rows of one day, for every table and shard.

        Args:
            day: its beginning; the windows of then are there.
            first: when the tables were made: no row is older than the window of then.
        """
        for promise in self._promises:
            windows = promise.windows(first, day)
            oldest, newest = windows[0], windows[-1]
            for shard, users in self._users.items():
                at_random = _TICK * self._chance.randrange(_DAY // _TICK)
                for moment in (day, day - _TICK, day + at_random, oldest.lower, newest.upper - _TICK):
                    if moment < oldest.lower:
                        continue
                    self._last += 1
                    user = self._chance.choice(users) if promise.is_sharded else None
                    yield Arrival(promise.table, shard, user, moment, self._last)
