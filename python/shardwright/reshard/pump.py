"""Copying a snapshot: chunks of pages, binary COPY piped from source to target, several workers.

A partitioned table is copied leaf by leaf, each into the target's leaf of the same bounds: pages are a leaf's, and no row
needs to be routed. Every chunk is read in a transaction of its own under the shared snapshot, so that a table of a thousand
leaves is not held with all its locks. A leaf whose time is over is compared as soon as it is copied.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg

from shardwright import errors
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard import hashing, parts
from shardwright.reshard.parts import Part
from shardwright.reshard.piping import pipe
from shardwright.reshard.world import World
from shardwright.routing.predicates import GuardedTable, owned_sql, quote_identifier, quote_literal

#: Pages of 8 kB that one chunk covers: 32 MiB of table.
CHUNK_PAGES = 4096
#: A cancelled worker that has not ended after this long is left behind; the next one's token makes it harmless.
_ENDING_SECONDS = 2.0


@dataclass(frozen=True)
class Chunk:
    """A run of a part's pages, [first, last) in pages of 8 kB; `last` is None for the run that ends the part."""

    move: Move
    table: GuardedTable
    #: Where the rows are, as of the snapshot.
    part: Part
    #: The target's part, quoted and qualified.
    into: str
    first: int
    last: int | None
    #: Bytes of table that it covers, for the order and for progress.
    size: int
    #: Whether its window was over when the copy began: both sides are compared once all its chunks are there.
    closed: bool = False


@dataclass(frozen=True)
class CopiedWindow:
    """A window that was over when it was copied, and found equal on both sides right afterwards."""

    move: int
    #: ``schema.table``, and the leaf's name on the source.
    table: str
    name: str
    rows: int
    checksum: int


@dataclass
class Progress:
    """What was copied of one move so far."""

    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    windows: list[CopiedWindow] = field(default_factory=list)


def copied_columns(connection: psycopg.Connection, table: GuardedTable) -> list[str]:
    """The columns that are stored, in order: generated ones are computed by the target itself."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
        "AND attgenerated = '' ORDER BY attnum",
        (table.qualified,),
    ).fetchall()
    return [row[0] for row in rows]


def cut_chunks(
    source: psycopg.Connection,
    target: psycopg.Connection,
    move: Move,
    tables: Sequence[GuardedTable],
    is_closed: Callable[[GuardedTable, Part], bool] = lambda table, part: False,
) -> list[Chunk]:
    """Cut the tables of a move into chunks; call it after the snapshot was taken, so that no page is missed.

    Args:
        source: in a transaction under the snapshot: the parts are those that the snapshot sees.
        target: to the other side.
        move: whose rows.
        tables: the keyspace's tables.
        is_closed: whether a part's window is over.

    Raises:
        PreflightFailed: the target has no part of a part's bounds.
    """
    chunks = []
    for table in tables:
        some = parts.of_table(source, table)
        there = {part.bounds: part.qualified for part in parts.of_table(target, table)}
        for part, pages in zip(some, parts.pages_of(source, some), strict=True):
            if part.bounds not in there:
                raise errors.PreflightFailed(
                    f"{move.target} has no partition {part.bounds} of {table.schema_name}.{table.table_name}",
                    fix=f"shardwright partition apply {table.schema_name}.{table.table_name}, then resume",
                )
            closed = is_closed(table, part)
            for first in range(0, max(pages, 1), CHUNK_PAGES):
                ends = first + CHUNK_PAGES >= pages
                size = (min(first + CHUNK_PAGES, pages) - first) * 8192
                last = None if ends else first + CHUNK_PAGES
                chunks.append(Chunk(move, table, part, there[part.bounds], first, last, size, closed))
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
        StreamStalled: a snapshot died, a connection broke or a table was rewritten; the copy starts again on resume.
        VerificationDiffers: a window that is over did not arrive as it is.
    """
    todo: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    for chunk in chunks:
        todo.put(chunk)
    progress = {number: Progress() for number in snapshots}
    left = Counter((chunk.move.id, chunk.part.relid) for chunk in chunks)
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
                    left[chunk.move.id, chunk.part.relid] -= 1
                    complete = left[chunk.move.id, chunk.part.relid] == 0
                if chunk.closed and complete:
                    window = worker.compare(chunk)
                    with lock:
                        done.windows.append(window)
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
    """One thread's connections: one a source and one a target."""

    def __init__(self, world: World, snapshots: dict[int, str]) -> None:
        self.world = world
        self.snapshots = snapshots
        self.sources: dict[int, psycopg.Connection] = {}
        self.targets: dict[str, psycopg.Connection] = {}
        self.columns: dict[tuple[int, int], list[str]] = {}
        self.hashes: dict[int, str] = {}

    def copy(self, chunk: Chunk) -> tuple[int, int]:
        source, target = self._source(chunk.move), self._target(chunk.move.target)
        known = (chunk.move.id, chunk.table.table_id)
        if known not in self.columns:
            self.columns[known] = copied_columns(source, chunk.table)
        columns = ", ".join(quote_identifier(name) for name in self.columns[known])
        # the binary form is the fastest, and is the same on both sides where the major version is
        same_major = source.info.server_version // 10000 == target.info.server_version // 10000
        form = "(FORMAT binary)" if same_major else "(FORMAT text)"
        with target.transaction(), self._snapshot(chunk.move):
            target.execute("SELECT shardwright.hold(%s, %s)", (self.world.operation.id, self.world.operation.op_epoch))
            done = pipe(
                source,
                f"COPY (SELECT {columns} FROM ONLY {chunk.part.qualified} WHERE {_pages_sql(chunk)} "
                f"AND {_moving_sql(chunk)}) TO STDOUT {form}",
                target,
                f"COPY {chunk.into} ({columns}) FROM STDIN {form}",
            )
            parts.check_same(source, [chunk.part], chunk.move.source)
            return done

    def compare(self, chunk: Chunk) -> CopiedWindow:
        """Compare a part, all of whose chunks are copied, with what has arrived. Nothing else writes there yet.

        Raises:
            VerificationDiffers: they differ.
        """
        source, target = self._source(chunk.move), self._target(chunk.move.target)
        if chunk.table.table_id not in self.hashes:
            self.hashes[chunk.table.table_id] = hashing.of_rows(source, chunk.table).row
        hashed = self.hashes[chunk.table.table_id]

        def question(part: str) -> bytes:
            return f"SELECT count(*), coalesce(sum({hashed}), 0) FROM ONLY {part} WHERE {_moving_sql(chunk)}".encode()

        with self._snapshot(chunk.move):
            here = source.execute(question(chunk.part.qualified)).fetchone()
            parts.check_same(source, [chunk.part], chunk.move.source)
        there = target.execute(question(chunk.into)).fetchone()
        name = f"{chunk.table.schema_name}.{chunk.table.table_name}"
        if here is None or here != there:
            raise errors.VerificationDiffers(
                f"{chunk.into} on {chunk.move.target} has rows and checksum {there} right after the copy of "
                f"{chunk.part.qualified} of {name}, which has {here} on {chunk.move.source}",
                fix=f"find out who wrote there, then: shardwright reshard resume {self.world.operation.id}",
            )
        return CopiedWindow(chunk.move.id, name, chunk.part.name, int(here[0]), int(here[1]))

    @contextlib.contextmanager
    def _snapshot(self, move: Move) -> Iterator[None]:
        """A transaction on the source under the move's snapshot; its locks end with it."""
        connection = self._source(move)
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(self.snapshots[move.id])}".encode())
        yield
        connection.execute("COMMIT")

    def _source(self, move: Move) -> psycopg.Connection:
        if move.id not in self.sources:
            self.sources[move.id] = self.world.open(move.source)
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
