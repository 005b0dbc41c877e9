"""Days go by on the platform's tables: rows arrive, the clock is set forward, a tick runs, and everything is looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from shardwright import engines, errors
from shardwright.catalog import maps, roster
from shardwright.demo.partitions import models, reading
from shardwright.demo.partitions.arrivals import Arrival, Arrivals
from shardwright.demo.partitions.judging import Judge, Seen, Tally
from shardwright.demo.partitions.promise import PROMISES, Promise, Window
from shardwright.partition import apply
from shardwright.partition.fleet import Fleet

TICK: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(days=1)
#: A tick that finds a lock taken, by autovacuum for one, is for the next tick to complete: this one is repeated at once.
_TRIES: Final = 3
#: Of each shard.
_USERS: Final = 5


class Days:
    """The platform's tables on every shard, from their first tick on. As a context manager it closes its connections.

    Attributes:
        tally: what went wrong.
        now: the simulated moment of the last tick.
        days: that went by.
        ticked: those of them at whose midnight there was a tick.
    """

    def __init__(
        self,
        catalog: psycopg.Connection[Any],
        catalog_dsn: str,
        first: datetime,
        grace: timedelta,
        *,
        seed: int = 1,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """The tables are registered; nothing has ticked.

        Args:
            catalog: connection to the catalog.
            catalog_dsn: its address.
            first: the simulated moment of the first tick, a midnight in UTC.
            grace: of the tables' policies.
            seed: of what is left to chance.
            on_progress: called often; it may raise to stop the work.
        """
        self.tally = Tally()
        self.now = self.first = first
        self.days = self.ticked = 0
        self._grace = grace
        self._on_progress = on_progress
        self._stack = ExitStack()
        #: (table, partition) -> the window that it was seen to be.
        self._named: dict[tuple[str, str], Window] = {}
        self._arrived: dict[tuple[str, str, Window], list[Arrival]] = defaultdict(list)
        shards = roster.list_shards(catalog)
        self._users = _users(catalog, [shard.name for shard in shards])
        self._judges = {
            (promise.table, shard.name): Judge(promise, shard.name, first, grace, self.tally)
            for promise in PROMISES
            for shard in shards
        }
        self._arrivals = Arrivals(PROMISES, self._users, seed)
        self._fleet = self._stack.enter_context(
            Fleet(catalog_dsn, [("public", promise.table) for promise in PROMISES], on_progress=on_progress)
        )
        self._connections = {
            shard.name: self._stack.enter_context(engines.connect_shard(shard, "shardwright demo days"))
            for shard in shards
        }
        self._pool = self._stack.enter_context(ThreadPoolExecutor(max(1, len(shards))))

    def __enter__(self) -> Days:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def rows(self) -> int:
        """Rows that were acknowledged and are in windows that are kept."""
        return sum(judge.rows.total() for judge in self._judges.values())

    @property
    def arrived(self) -> int:
        """Rows that were acknowledged, those of windows that have gone included."""
        return sum(len(rows) for rows in self._arrived.values())

    def begin(self) -> None:
        """The first tick makes the windows."""
        self._tick(self.first)
        self.look()

    def next_day(self, days: int = 1) -> None:
        """The clock goes to the next midnight: a microsecond before it nothing may change, at it all that is due must.

        Args:
            days: to a later midnight, as if nothing had ticked until then.
        """
        self._on_progress()
        self._write()
        if days == 1:
            self._almost()
        self.days += days
        self.ticked += 1
        if days > 1:
            # When all windows were over, the last of them stays until newer ones are there.
            self._tick(self.first + self.days * _DAY)
        self._tick(self.first + self.days * _DAY)
        self.look()

    def _almost(self) -> None:
        before = self.first + (self.days + 1) * _DAY - TICK
        early = apply.plan_of(self._fleet, before)
        if not early.is_empty:
            # Carry it out: what it does too early is seen, and counted.
            apply.execute(self._fleet, early)
            self.now = before
            self.look()

    def _write(self) -> None:
        """The rows of today, on all shards at the same time."""
        arrived = list(self._arrivals.of(self.now, self.first))
        promises = {promise.table: promise for promise in PROMISES}

        def insert(shard: str) -> None:
            reading.write(self._connections[shard], promises, [row for row in arrived if row.shard == shard])

        list(self._pool.map(insert, self._connections))
        for row in arrived:
            self._judges[row.table, row.shard].wrote(row.moment)
            self._arrived[row.table, row.shard, promises[row.table].at(row.moment)].append(row)

    def see_out(self, promise: Promise) -> None:
        """Let the first window of a table come to its end: the time until then in one leap, and then day by day.

        Args:
            promise: of the table.
        """
        over = promise.over(promise.at(self.first))
        left = -((self.first - over) // _DAY) - self.days
        if left > 2:
            self.next_day(left - 1)
        until = over + self._grace + _DAY
        while self.now < until:
            self.next_day()

    def _tick(self, now: datetime) -> None:
        for _ in range(_TRIES):
            done = apply.execute(self._fleet, apply.plan_of(self._fleet, now))
            if not done.deferred:
                break
        self.now = now
        wrong = [
            *(
                f"{one.table} on {one.shard}: {one.outcome}: {dict(one.reason)}"
                for one in (*done.failed, *done.deferred)
            )
        ]
        wrong += [f"{finding.kind}: {finding.message}" for finding in done.plan.findings]
        if wrong:
            raise errors.InvariantFailed(f"the tick of {now:%Y-%m-%d} did not succeed: {'; '.join(wrong[:5])}")

    def look(self) -> None:
        """Compare what every shard has with what is promised now."""
        for shard, seen in zip(self._connections, self._pool.map(self._see, self._connections), strict=True):
            for promise in PROMISES:
                self._judges[promise.table, shard].look(self.now, seen[promise.table])
                for window, leaf in seen[promise.table].windows.items():
                    self._named[promise.table, leaf.name] = window

    def _see(self, shard: str) -> dict[str, Seen]:
        return reading.see(self._connections[shard], PROMISES, self._users[shard])

    def brought_back(self, table: str, name: str) -> None:
        """A partition that was seen attached once, and has gone since, is to be there again.

        Args:
            table: its table.
            name: of the partition.
        """
        for shard in self._connections:
            self._judges[table, shard].brought_back(self._named[table, name])

    def vandalise(self, shard: str, statement: str) -> None:
        """Do what nobody should, to see that it is found out.

        Args:
            shard: where.
            statement: what.
        """
        self._connections[shard].execute(statement.encode())

    def acknowledged(self, table: str, shard: str, name: str) -> set[tuple[Any, ...]]:
        """The rows that were acknowledged for one partition, as `reading.rows_of` gives them.

        Args:
            table: its name.
            shard: where they were written.
            name: of the partition, which was seen attached once.
        """
        promise = next(one for one in PROMISES if one.table == table)
        return {
            (row.user_id, _day_of(row.moment) if promise.is_date else row.moment, row.id, row.name)
            for row in self._arrived[table, shard, self._named[table, name]]
        }

    def found(self, table: str, name: str) -> dict[str, set[tuple[Any, ...]] | None]:
        """The rows of one partition on each shard; None where it is not attached.

        Args:
            table: its name.
            name: of the partition.
        """
        promise = next(one for one in PROMISES if one.table == table)
        return {shard: reading.rows_of(connection, promise, name) for shard, connection in self._connections.items()}


def _day_of(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _users(catalog: psycopg.Connection[Any], shards: list[str]) -> dict[str, list[int]]:
    """Some keys that each shard owns."""
    shard_map = maps.load_map(catalog)
    found: dict[str, list[int]] = {shard: [] for shard in shards}
    key = 0
    while any(len(keys) < _USERS for keys in found.values()):
        key += 1
        keys = found[shard_map.route(models.USERS, key).shard]
        if len(keys) < _USERS:
            keys.append(key)
    return found
