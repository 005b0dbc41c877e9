"""What a client of the table of flights does (`shardwright.demo.partitions.traffic` says which there are)."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg
from psycopg.errors import Diagnostic
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from shardwright import errors
from shardwright.demo.partitions import models
from shardwright.session import Cluster

if TYPE_CHECKING:
    from shardwright.demo.partitions.traffic import Spec

#: Ids of rows that replace others are higher by this each time.
ROUND: Final = 1_000_000
#: So often a row may be replaced: its id is an int4.
_ROUNDS: Final = 2000
#: Milliseconds from which a bystander's read is written down.
LONG_MS: Final = 2.0
#: Seconds between two of its reads.
READ_S: Final = 0.008
#: Seconds between two looks at the locks.
LOOK_S: Final = 0.008
#: Seconds between two counts of the whole table, at least.
_COUNT_S: Final = 0.25

_COLUMNS = (
    "year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier, flight, origin, "
    "dest, air_time, distance, hour, minute, checked_in"
)
_ROWS = "SELECT id, time_hour::text, checked_in FROM public.flights WHERE tailnum = :key ORDER BY id"
_ADD = "UPDATE public.flights SET checked_in = checked_in + :more WHERE tailnum = :key AND id = :id AND time_hour = :at"
_MOVE = "UPDATE public.flights SET time_hour = :there WHERE tailnum = :key AND id = :id"
_TAKE = "DELETE FROM public.flights WHERE tailnum = :key AND id = :id"
_REPLACE = (
    f"WITH gone AS ({_TAKE} RETURNING *) INSERT INTO public.flights (tailnum, id, time_hour, {_COLUMNS}) "
    f"SELECT tailnum, id + {ROUND}, time_hour, {_COLUMNS} FROM gone"
)

#: Whoever writes to the table, or reads it, waits for one of these.
_STOPPING = """
    SELECT l.virtualtransaction, l.pid::text || ' ' || coalesce(a.application_name, '?')
      FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'relation' AND l.granted AND a.backend_type = 'client backend'
       AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (l.relation = to_regclass('public.flights')
            OR l.relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('public.flights')))
     GROUP BY 1, 2
"""

#: A server says how long this session waited for a lock, from a millisecond on, and says it to the session itself.
_TELL_WAITS = "-c log_lock_waits=on -c deadlock_timeout=1ms -c client_min_messages=log -c lc_messages=C"
_WAITED = re.compile(r"process \d+ acquired \w+ on .* after ([\d.]+) ms")


class RowMissing(Exception):
    """A row that only we write was not there, or was there twice."""


def work(spec: Spec, role: str, number: int) -> dict[str, Any]:
    """Do a role's work until stdin is closed.

    Args:
        spec: of the traffic.
        role: which.
        number: of the process.

    Returns:
        What was recorded, JSON-ready.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    if role in ("writer", "reader"):
        # An application has machines of its own: here it must not take the processors from the servers.
        os.nice(5)
    if role == "writer":
        return _Writer(spec, number).work(stop)
    if role == "reader":
        return _count(spec, stop)
    if role == "bystander":
        return _stand_by(spec, number, stop)
    return _watch_locks(spec, stop)


def _ready() -> None:
    print("ready", flush=True)


def _paced(stop: threading.Event, rate: float) -> Iterator[None]:
    tick = time.monotonic()
    while not stop.is_set():
        yield
        tick = max(tick + 1 / rate, time.monotonic() - 1 / rate)
        stop.wait(max(0.0, tick - time.monotonic()))


class _Writer:
    """Knows what each of its rows must be, since nobody else writes them."""

    def __init__(self, spec: Spec, number: int) -> None:
        self._spec = spec
        self._planes = spec.planes[number - 1]
        self._chance = random.Random(f"{spec.seed}/{number}")
        self._isolation: Literal["READ COMMITTED", "REPEATABLE READ"] = (
            "READ COMMITTED" if number % 2 else "REPEATABLE READ"
        )
        #: key -> id at first -> [id now, time_hour, checked in]
        self._rows: dict[str, dict[int, list[Any]]] = {}
        self._writes: list[tuple[float, float]] = []
        self._failures: list[tuple[float, str]] = []

    def work(self, stop: threading.Event) -> dict[str, Any]:
        with Cluster.connect(self._spec.catalog, application="writer", refresh="listen") as cluster:
            for key in self._planes:
                with cluster.sessionmaker()(key=key, keyspace=models.PLANES) as session:
                    found = session.execute(text(_ROWS), {"key": key}).all()
                self._rows[key] = {number: [number, at, checked] for number, at, checked in found}
            _ready()
            for _ in _paced(stop, self._spec.rate):
                self._one(cluster)
        return {
            "writes": self._writes,
            "failures": self._failures,
            "rows": [(key, first, *row) for key, rows in self._rows.items() for first, row in rows.items()],
        }

    def _one(self, cluster: Cluster) -> None:
        """One transaction; what it changed is believed when it was acknowledged."""
        key = self._chance.choice(self._planes)
        rows = self._rows[key]
        one, other = self._chance.sample(sorted(rows), 2)
        statements, after = self._choose(rows, one, other)

        def perform(session: Any) -> None:
            for statement, values in statements:
                done = session.execute(text(statement), {"key": key, **values}).rowcount
                if done != 1:
                    raise RowMissing(f"{key} {values.get('id')}: {done} rows of one")

        started = time.monotonic()
        try:
            cluster.run(key, perform, keyspace=models.PLANES, isolation_level=self._isolation)
        except (errors.ShardwrightError, DBAPIError, RowMissing) as error:
            self._failures.append((started, f"{self._isolation}: {_said(error)}"))
        else:
            rows.update(after)
            self._writes.append((started, (time.monotonic() - started) * 1000))

    def _choose(
        self, rows: dict[int, list[Any]], one: int, other: int
    ) -> tuple[list[tuple[str, dict[str, Any]]], dict[int, list[Any]]]:
        """Statements of one kind, and the rows as they are afterwards. The sum and the number of rows stay."""
        (id_one, at_one, in_one), (id_other, at_other, in_other) = rows[one], rows[other]
        pick = self._chance.random()
        if pick < 0.4:
            return [
                (_ADD, {"id": id_one, "at": at_one, "more": 1}),
                (_ADD, {"id": id_other, "at": at_other, "more": -1}),
            ], {one: [id_one, at_one, in_one + 1], other: [id_other, at_other, in_other - 1]}
        if pick < 0.7 and id_one < _ROUNDS * ROUND:
            return [(_REPLACE, {"id": id_one})], {one: [id_one + ROUND, at_one, in_one]}
        # Two rows change their times, and so their months: no month has more or fewer rows afterwards.
        return [(_MOVE, {"id": id_one, "there": at_other}), (_MOVE, {"id": id_other, "there": at_one})], {
            one: [id_one, at_other, in_one],
            other: [id_other, at_one, in_other],
        }


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _count(spec: Spec, stop: threading.Event) -> dict[str, Any]:
    found: list[tuple[float, float, int, int, int]] = []
    failures: list[tuple[float, str]] = []
    table = models.flights().tables["flights"]
    question = select(func.count(), func.sum(table.c.distance), func.sum(table.c.checked_in)).select_from(table)
    with Cluster.connect(spec.catalog, application="reader", refresh="listen") as cluster:
        sessions = cluster.sessionmaker()
        _ready()
        while not stop.is_set():
            started = time.monotonic()
            try:
                with sessions() as session:
                    rows, miles, checked = session.execute(question).one()
            except (errors.ShardwrightError, DBAPIError) as error:
                failures.append((started, f"reader: {_said(error)}"))
            else:
                took = (time.monotonic() - started) * 1000
                found.append((started, took, int(rows), int(miles or 0), int(checked or 0)))
            # On a busy machine too the table is without this reader for half of the time.
            stop.wait(max(_COUNT_S, time.monotonic() - started))
    return {"snapshots": found, "failures": failures}


def _stand_by(spec: Spec, number: int, stop: threading.Event) -> dict[str, Any]:
    shard, key, row = spec.looked_at[number - 1]
    reads: list[tuple[float, float]] = []
    waits: list[tuple[float, float]] = []

    def told(notice: Diagnostic) -> None:
        found = _WAITED.match(notice.message_primary or "")
        if found is not None:
            took = float(found[1])
            waits.append((time.monotonic() - took / 1000, took))

    with psycopg.connect(
        spec.shards[shard], autocommit=True, application_name="bystander", options=_TELL_WAITS
    ) as connection:
        connection.add_notice_handler(told)
        _ready()
        while not stop.is_set():
            started = time.monotonic()
            connection.execute(
                "SELECT carrier FROM public.flights WHERE tailnum = %s AND id = %s", (key, row)
            ).fetchone()
            took = (time.monotonic() - started) * 1000
            if took >= LONG_MS:
                reads.append((started, took))
            stop.wait(READ_S)
    return {"reads": reads, "waits": waits}


def _watch_locks(spec: Spec, stop: threading.Event) -> dict[str, Any]:
    """A lock counts from the last look that did not see it to the first one that did not see it any more."""
    held: dict[tuple[str, str, str], float] = {}
    found: list[tuple[float, float, str]] = []
    connections = {
        shard: psycopg.connect(dsn, autocommit=True, application_name="lockwatch", prepare_threshold=0)
        for shard, dsn in spec.shards.items()
    }
    looked = dict.fromkeys(connections, time.monotonic())
    _ready()
    while not stop.is_set():
        for shard, connection in connections.items():
            began = time.monotonic()
            now = {(shard, *row) for row in connection.execute(_STOPPING).fetchall()}
            ended = time.monotonic()
            for one in now - held.keys():
                held[one] = looked[shard]
            for one in [one for one in held if one[0] == shard and one not in now]:
                first = held.pop(one)
                found.append((first, (ended - first) * 1000, f"{one[0]}: {one[2]}"))
            looked[shard] = began
        stop.wait(LOOK_S)
    for connection in connections.values():
        connection.close()
    return {"locks": found}
