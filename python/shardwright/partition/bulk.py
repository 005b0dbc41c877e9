"""The bulk copy of a fat partition's rows into its pieces: by runs of pages, each its own transaction.

A run and the note that it was copied are committed together, so whoever comes after a crash goes on where it stopped,
and no snapshot is held for long. Runs see different moments: what changed between them is in the log of touched keys,
and the first replay puts it right, duplicates of moved rows included, before any key is built.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.failpoints import reach
from shardwright.partition.touched import Cutting


@dataclass(frozen=True)
class Source:
    """What was found of the fat partition once its log was open: rows beyond these pages are logged."""

    filenode: int
    pages: int
    #: Pages of one run.
    run: int


@dataclass(frozen=True)
class Progress:
    """How far the copy is."""

    rows: int
    pages: int
    pages_total: int
    seconds: float
    #: Rows that were copied before this process began.
    rows_before: int = 0

    @property
    def rows_per_s(self) -> float:
        """Of this process."""
        return (self.rows - self.rows_before) / self.seconds if self.seconds > 0 else 0.0


class Restart(Exception):
    """The fat partition was rewritten or emptied as a whole: what was copied is worth nothing."""


def measure(connection: psycopg.Connection, work: Cutting) -> Source:
    """Look at the fat partition; its log is open already.

    Args:
        connection: to the shard.
        work: the names.
    """
    row = connection.execute(
        "SELECT pg_relation_filenode(%(relid)s::oid)::int8, "
        "pg_relation_size(%(relid)s::oid) / current_setting('block_size')::int8",
        {"relid": work.relid},
    ).fetchone()
    assert row is not None
    return Source(row[0], row[1], min(max(row[1] // 400, 128), 8192))


def check_unmoved(connection: psycopg.Connection, work: Cutting, source: Source) -> None:
    """Check that the fat partition's rows are where they were: call it under a lock on it.

    Args:
        connection: to the shard.
        work: the names.
        source: as `measure` found it.

    Raises:
        Restart: it was truncated, or rewritten by VACUUM FULL, CLUSTER or ALTER TABLE.
    """
    row = connection.execute("SELECT pg_relation_filenode(%s::oid)::int8", (work.relid,)).fetchone()
    if row is None or row[0] != source.filenode:
        raise Restart


def copy(
    connect: Callable[[], psycopg.Connection],
    work: Cutting,
    source: Source,
    *,
    workers: int,
    rows_per_s: float | None,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Copy what is not copied yet.

    Args:
        connect: opens one more connection to the shard.
        work: the names.
        source: what there is to copy.
        workers: how many connections copy.
        rows_per_s: no more than these; None: as fast as it goes.
        on_progress: told after each run, in this thread; it may raise.

    Returns:
        What was copied in all.

    Raises:
        Restart: the rows moved away.
    """
    desk = _Desk(work, source, rows_per_s)
    with _connections(connect, workers) as connections:
        desk.load(connections[0])
        threads = [
            threading.Thread(target=desk.serve, args=(one,), name="split-copy", daemon=True) for one in connections[1:]
        ]
        for thread in threads:
            thread.start()
        try:
            while desk.step(connections[0]):
                on_progress(desk.progress())
                reach("partition.split_half_copied")
        except BaseException as error:  # noqa: BLE001 - raised below, once the other threads have ended
            desk.fail(error)
        finally:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    if desk.failure is None:
                        on_progress(desk.progress())
    if desk.failure is not None:
        raise desk.failure
    on_progress(desk.progress())
    return desk.progress()


class _Desk:
    """Hands out runs of pages and counts what was done; shared by threads."""

    def __init__(self, work: Cutting, source: Source, rows_per_s: float | None) -> None:
        self._work, self._source, self._limit = work, source, rows_per_s
        self._lock = threading.Lock()
        self._left: list[int] = []
        self._rows = self._before = self._pages = 0
        self._started = time.monotonic()
        self.failure: BaseException | None = None

    def load(self, connection: psycopg.Connection) -> None:
        done: dict[int, int] = dict(
            connection.execute(f"SELECT first_page, rows FROM {self._work.copied}".encode()).fetchall()
        )
        runs = range(0, self._source.pages, self._source.run)
        self._left = [first for first in reversed(runs) if first not in done]
        self._rows = self._before = sum(done.values())
        self._pages = sum(min(self._source.run, self._source.pages - first) for first in done)
        self._started = time.monotonic()

    def progress(self) -> Progress:
        with self._lock:
            seconds = time.monotonic() - self._started
            return Progress(self._rows, self._pages, self._source.pages, seconds, self._before)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or error
            self._left.clear()

    def serve(self, connection: psycopg.Connection) -> None:
        try:
            while self.step(connection):
                pass
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.fail(error)

    def step(self, connection: psycopg.Connection) -> bool:
        """Copy one run; False when there is none left."""
        with self._lock:
            if not self._left:
                return False
            first = self._left.pop()
        last = min(first + self._source.run, self._source.pages)
        rows = _copy_run(connection, self._work, self._source, first, last)
        with self._lock:
            self._rows += rows
            self._pages += last - first
            ahead = (self._rows - self._before) / self._limit if self._limit else 0.0
            pause = self._started + ahead - time.monotonic()
        while pause > 0 and self.failure is None:
            time.sleep(min(pause, 0.2))
            pause -= 0.2
        return True


def _copy_run(connection: psycopg.Connection, work: Cutting, source: Source, first: int, last: int) -> int:
    columns = work.list_sql(work.columns)
    with connection.transaction():
        # A crash of the server that loses this commit loses the note of it too.
        connection.execute("SET LOCAL synchronous_commit = off")
        rows = connection.execute(
            f"INSERT INTO {work.staging} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM ONLY {work.source} "
            f"WHERE ctid >= '({first},0)'::tid AND ctid < '({last},0)'::tid".encode()
        ).rowcount
        check_unmoved(connection, work, source)
        connection.execute(
            f"INSERT INTO {work.copied} (first_page, rows) VALUES (%s, %s)".encode(),
            (first, rows),
        )
    return rows


@contextmanager
def _connections(connect: Callable[[], psycopg.Connection], count: int) -> Iterator[list[psycopg.Connection]]:
    opened: list[psycopg.Connection] = []
    try:
        for _ in range(max(count, 1)):
            opened.append(connect())
        yield opened
    except psycopg.errors.UndefinedTable as error:
        raise errors.OperationConflict(
            f"what this split had made is gone: {error.diag.message_primary}", fix="run the command again"
        ) from error
    finally:
        for one in opened:
            one.close()
