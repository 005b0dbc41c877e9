"""Days go by on the platform's tables: rows arrive, the clock is set forward, a tick runs, and everything is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from shardwright import engines, errors
from shardwright.catalog import maps, roster
from shardwright.demo.partitions import models, reading
from shardwright.demo.partitions.arrivals import Arrivals
from shardwright.demo.partitions.judging import Judge, Seen, Tally
from shardwright.demo.partitions.promise import PROMISES
from shardwright.partition import apply
from shardwright.partition.fleet import Fleet

TICK: Final = timedelta(microseconds=1)
_DAY: Final = timedelta(days=1)
#: Of each shard.
_USERS: Final = 5


@dataclass(frozen=True)
class Reserved:
    """What is to be compared after a window was archived, dropped and brought back."""

    table: str
    name: str
    #: Shard -> its rows as text, sorted.
    rows: Mapping[str, list[str]]


class Days:
    """The platform's tables on every shard, from their first tick on. As a context manager it closes its connections.

    Attributes:
        tally: what went wrong.
        now: the simulated moment of the last tick.
        days: that went by.
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
        self.days = 0
        self._on_progress = on_progress
        self._stack = ExitStack()
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

    def _tick(self, now: datetime) -> None:
        done = apply.execute(self._fleet, apply.plan_of(self._fleet, now))
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

    def _see(self, shard: str) -> dict[str, Seen]:
        return reading.see(self._connections[shard], PROMISES, self._users[shard])

    def vandalise(self, shard: str, statement: str) -> None:
        """Do what nobody should, to see that it is found out.

        Args:
            shard: where.
            statement: what.
        """
        self._connections[shard].execute(statement.encode())

    def reserve(self, table: str) -> Reserved:
        """Remember the rows of the oldest window of a table that is still kept.

        Args:
            table: its name.
        """
        windows = next(iter(judge.names for (name, _), judge in self._judges.items() if name == table))
        name = windows[min(window for window in windows)]
        return Reserved(table, name, dict(self.rows_of(name)))

    def rows_of(self, name: str) -> Iterator[tuple[str, list[str]]]:
        """The rows of one partition as text, sorted, shard by shard; none where it is not there.

        Args:
            name: of the partition.
        """
        for shard, connection in self._connections.items():
            there = connection.execute(
                "SELECT to_regclass(quote_ident('public') || '.' || quote_ident(%s))", (name,)
            ).fetchone()
            if there is None or there[0] is None:
                yield shard, []
                continue
            found = connection.execute(f'SELECT t::text FROM public."{name}" t ORDER BY 1'.encode()).fetchall()
            yield shard, [row for (row,) in found]


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
