"""Copying a snapshot: chunks of pages, binary COPY piped from source to target, several workers.

psycopg's Copy objects take one Python step a row; here the rows of libpq's buffers are joined into blocks before they are
sent on, which reaches nearly the rate of two psql processes in a pipe.
"""

from __future__ import annotations

import contextlib
import queue
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq

from shardwright import errors
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard.world import World
from shardwright.routing.predicates import GuardedTable, owned_sql, quote_identifier, quote_literal

#: Pages of 8 kB that one chunk covers: 32 MiB of table.
CHUNK_PAGES = 4096
_BLOCK_BYTES = 128 * 1024
#: A cancelled worker that has not ended after this long is left behind; the next one's token makes it harmless.
_ENDING_SECONDS = 2.0


@dataclass(frozen=True)
class Chunk:
    """A run of a table's pages, [first, last) in pages of 8 kB; `last` is None for the run that ends the table."""

    move: Move
    table: GuardedTable
    first: int
    last: int | None
    #: Bytes of table that it covers, for the order and for progress.
    size: int


@dataclass
class Progress:
    """What was copied of one move so far."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0


def copied_columns(connection: psycopg.Connection, table: GuardedTable) -> list[str]:
    """The columns that are stored, in order: generated ones are computed by the target itself."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
        "AND attgenerated = '' ORDER BY attnum",
        (table.qualified,),
    ).fetchall()
    return [row[0] for row in rows]


def cut_chunks(connection: psycopg.Connection, move: Move, tables: Sequence[GuardedTable]) -> list[Chunk]:
    """Cut the tables of a move into chunks; call it after the snapshot was taken, so that no page is missed."""
    chunks = []
    for table in tables:
        row = connection.execute(
            "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int8", (table.qualified,)
        ).fetchone()
        pages = int(row[0]) if row is not None else 0
        for first in range(0, max(pages, 1), CHUNK_PAGES):
            ends = first + CHUNK_PAGES >= pages
            size = (min(first + CHUNK_PAGES, pages) - first) * 8192
            chunks.append(Chunk(move, table, first, None if ends else first + CHUNK_PAGES, size))
    return sorted(chunks, key=lambda chunk: chunk.size, reverse=True)


def copy_chunks(
    world: World,
    chunks: Sequence[Chunk],
    snapshots: dict[int, str],
    workers: int,
    report: Callable[[dict[int, Progress]], None],
) -> dict[int, Progress]:
    """Copy chunks with several workers, each chunk in one transaction on the target.

    Args:
        world: the worker's world.
        chunks: largest first.
        snapshots: the exported snapshot of each move, by the move's number.
        workers: threads; each opens a connection a side.
        report: called about four times a second with the progress so far, by this thread; it may raise to stop all.

    Returns:
        The progress of each move, by its number.

    Raises:
        StreamStalled: a snapshot died, or a connection broke; the copy starts again on resume.
    """
    todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        todo.put(chunk)
    progress = {number: Progress() for number in snapshots}
    lock = threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []
    started = time.monotonic()

    workers_made: list[_Worker] = []

    def work() -> None:
        worker = _Worker(world, snapshots)
        workers_made.append(worker)
        try:
            while not stop.is_set():
                try:
                    chunk = todo.get_nowait()
                except queue.Empty:
                    return
                rows, size = worker.copy(chunk)
                with lock:
                    done = progress[chunk.move.id]
                    done.rows += rows
                    done.bytes += size
                    done.seconds = time.monotonic() - started
                reach("copy.half_copied")
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(error)
            stop.set()
        finally:
            worker.close()

    threads = [threading.Thread(target=work, name=f"copy-{n}", daemon=True) for n in range(max(1, workers))]
    for thread in threads:
        thread.start()
    try:
        while running := [thread for thread in threads if thread.is_alive()]:
            running[0].join(0.25)
            with lock:
                report(dict(progress))
    except BaseException:
        # a COPY that waits for a lock or a slow server does not look at an event
        stop.set()
        for worker in workers_made:
            worker.cancel()
        for thread in threads:
            thread.join(_ENDING_SECONDS)
        raise
    if failures:
        first = failures[0]
        if isinstance(first, psycopg.Error):
            raise errors.StreamStalled(
                f"the copy broke off: {' '.join(str(first).split())}",
                fix="the copy starts again when the operation is resumed",
            ) from first
        raise first
    return progress


class _Worker:
    """One thread's connections: one a source, in the move's snapshot, and one a target."""

    def __init__(self, world: World, snapshots: dict[int, str]) -> None:
        self.world = world
        self.snapshots = snapshots
        self.sources: dict[int, psycopg.Connection] = {}
        self.targets: dict[str, psycopg.Connection] = {}
        self.columns: dict[tuple[int, int], list[str]] = {}

    def copy(self, chunk: Chunk) -> tuple[int, int]:
        source, target = self._source(chunk.move), self._target(chunk.move.target)
        known = (chunk.move.id, chunk.table.table_id)
        if known not in self.columns:
            self.columns[known] = copied_columns(source, chunk.table)
        columns = ", ".join(quote_identifier(name) for name in self.columns[known])
        # the binary form is the fastest, and is the same on both sides where the major version is
        same_major = source.info.server_version // 10000 == target.info.server_version // 10000
        form = "(FORMAT binary)" if same_major else "(FORMAT text)"
        with target.transaction():
            target.execute("SELECT shardwright.hold(%s, %s)", (self.world.operation.id, self.world.operation.op_epoch))
            return pipe(
                source,
                f"COPY (SELECT {columns} FROM ONLY {chunk.table.qualified} WHERE {_pages_sql(chunk)} "
                f"AND {_moving_sql(chunk)}) TO STDOUT {form}",
                target,
                f"COPY {chunk.table.qualified} ({columns}) FROM STDIN {form}",
            )

    def _source(self, move: Move) -> psycopg.Connection:
        if move.id not in self.sources:
            connection = self.world.open(move.source)
            self.sources[move.id] = connection
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(self.snapshots[move.id])}".encode())
        return self.sources[move.id]

    def _target(self, name: str) -> psycopg.Connection:
        if name not in self.targets:
            self.targets[name] = self.world.open(name, replica_role=True)
        return self.targets[name]

    def cancel(self) -> None:
        """Break off what the connections are doing; for another thread than the worker's own."""
        for connection in (*self.sources.values(), *self.targets.values()):
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=_ENDING_SECONDS)

    def close(self) -> None:
        for connection in (*self.sources.values(), *self.targets.values()):
            connection.close()


def _pages_sql(chunk: Chunk) -> str:
    lower = f"ctid >= '({chunk.first},0)'::tid"
    return lower if chunk.last is None else f"{lower} AND ctid < '({chunk.last},0)'::tid"


def _moving_sql(chunk: Chunk) -> str:
    if chunk.table.keyspace is None or chunk.table.key_column is None:
        raise errors.InvariantFailed(f"{chunk.table.qualified} is not sharded and cannot move")
    return owned_sql(chunk.table.keyspace, chunk.move.points, quote_identifier(chunk.table.key_column))


def pipe(source: psycopg.Connection, copy_out: str, target: psycopg.Connection, copy_in: str) -> tuple[int, int]:
    """Pipe one COPY TO STDOUT into one COPY FROM STDIN.

    Args:
        source: where `copy_out` runs.
        copy_out: COPY .. TO STDOUT.
        target: where `copy_in` runs, in a transaction of the caller's.
        copy_in: COPY .. FROM STDIN of the same format.

    Returns:
        Rows and bytes that were copied.

    Raises:
        psycopg.Error: what either server said; the source's COPY is drained or its connection closed.
    """
    out, into = source.pgconn, target.pgconn
    was_nonblocking = (out.nonblocking, into.nonblocking)
    out.nonblocking, into.nonblocking = 0, 1
    size = 0
    try:
        _begin_copy(out, copy_out, pq.ExecStatus.COPY_OUT)
        _begin_copy(into, copy_in, pq.ExecStatus.COPY_IN)
        block: list[bytes] = []
        filled = 0
        get = out.get_copy_data
        while True:
            length, data = get(0)
            if length <= 0:
                break
            block.append(bytes(data))
            filled += length
            if filled >= _BLOCK_BYTES:
                _put(into, b"".join(block))
                size += filled
                block.clear()
                filled = 0
        if block:
            _put(into, b"".join(block))
            size += filled
        _end_copy(out)
        into.put_copy_end()
        _flush(into)
        return _end_copy(into), size
    except BaseException:
        # half a COPY cannot be taken up again: end both connections rather than drain them
        source.close()
        target.close()
        raise
    finally:
        if out.status == pq.ConnStatus.OK:
            out.nonblocking = was_nonblocking[0]
        if into.status == pq.ConnStatus.OK:
            into.nonblocking = was_nonblocking[1]


def _begin_copy(connection: pq.abc.PGconn, statement: str, wanted: pq.ExecStatus) -> None:
    result = connection.exec_(statement.encode())
    if result.status != wanted:
        raise psycopg.errors.error_from_result(result)


def _put(connection: pq.abc.PGconn, block: bytes) -> None:
    connection.put_copy_data(block)
    _flush(connection)


def _flush(connection: pq.abc.PGconn) -> None:
    while connection.flush() == 1:
        _wait(connection, select.POLLIN | select.POLLOUT)


def _wait(connection: pq.abc.PGconn, events: int) -> None:
    """Wait for the server without the GIL: libpq's own waiting would hold it, and with it every thread of the process."""
    ready = select.poll()
    ready.register(connection.socket, events)
    if any(event & ~select.POLLOUT for _, event in ready.poll()):
        connection.consume_input()


def _end_copy(connection: pq.abc.PGconn) -> int:
    rows = 0
    while True:
        while connection.is_busy():
            _wait(connection, select.POLLIN)
        result = connection.get_result()
        if result is None:
            return rows
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)
        rows = result.command_tuples or 0
