"""Exact verification: two shards' rows of some points compared at one point in time, inside the servers.

Each side computes, in one scan and one snapshot, the number of its rows and the sum of their 64-bit hashes
(`hash_record_extended`) for each of 1,024 chunks of the primary key's hash. A chunk that differs is opened row by row.
The two snapshots stand for one moment: writers of the tables are held off while both are taken, a few milliseconds, and
a marker proves that everything before it has arrived.

Sums add up, so each side reads its own parts, some leaves a transaction under the one snapshot; a table of a thousand
leaves would else need more locks than a server has. On which leaf a row is does not matter, that both have it does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import psycopg

from shardwright import errors
from shardwright.catalog import evidence, guards
from shardwright.catalog.evidence import Certificate
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard import hashing, parts, streams
from shardwright.reshard.hashing import RowHash
from shardwright.reshard.parts import Part
from shardwright.reshard.world import World
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import GuardedTable, owned_sql, quote_identifier, quote_literal

_Row = tuple[Any, ...]
_T = TypeVar("_T")
#: Makes SQL for some parts of a table, whose qualified names it is given.
_Question = Callable[[Sequence[str]], str]

CHUNKS = 1024
#: How many differing keys are reported by name.
MOST_KEYS = 20


@dataclass
class TableComparison:
    """What the comparison of one table found."""

    table: str
    rows: int = 0
    checksum: int = 0
    chunks: int = 0
    differing_chunks: int = 0
    #: Primary keys that differ, as text, with what is wrong: ``missing``, ``extra`` or ``different`` on the other side.
    differences: list[tuple[str, str]] = field(default_factory=list)


def certify(world: World, move: Move, direction: str, points: Multirange) -> None:
    """Compare one move in one direction and keep the certificate.

    Raises:
        VerificationDiffers: the sides differ.
    """
    made = compare(world, move, direction, points)
    evidence.record_certificate(world.catalog, made)
    if made.differing:
        keys = [
            f"{table} {key} {what}"
            for table, found in made.detail["tables"].items()
            for key, what in found["differences"]
        ]
        giver, taker = (move.source, move.target) if direction == "forward" else (move.target, move.source)
        raise errors.VerificationDiffers(
            f"{taker} differs from {giver} in {made.differing} chunks: {'; '.join(keys[:5])}",
            fix=f"find out who wrote there, then: shardwright reshard abort {world.operation.id}, and start again",
            differences=keys,
        )


def compare(world: World, move: Move, direction: str, points: Multirange) -> Certificate:
    """Compare the serving side's rows of `points` with the other side's.

    Args:
        world: the worker's world.
        move: whose tables.
        direction: ``forward``: the source serves and the target is compared with it; ``back``: the other way round.
        points: what is compared.

    Returns:
        The certificate, not yet recorded; `differing` is 0 when the sides agree.

    Raises:
        StreamStalled: the marker did not arrive while the writers could be held off, or a table was rewritten meanwhile.
        LockTimeout: the writers could not be held off.
        VerificationDiffers: the partitions are not the same.
    """
    world.require_same_windows(move, errors.VerificationDiffers)
    giver, taker = (move.source, move.target) if direction == "forward" else (move.target, move.source)
    stream = streams.name_of(world.cluster, move, direction)
    tables = world.guarded(move.keyspace)
    mine, theirs, held_ms = _snapshots(world, giver, taker, stream, tables)
    with mine, theirs:
        reach("verify.snapshots_taken")
        found = [_compare_table(mine, theirs, table, points) for table in tables]
    reach("verify.compared")
    return Certificate(
        move=move.id,
        direction=direction,
        points=points,
        rows=sum(table.rows for table in found),
        checksum=sum(table.checksum for table in found),
        chunks=sum(table.chunks for table in found),
        differing=sum(table.differing_chunks for table in found),
        detail={
            "writers_held_ms": round(held_ms, 3),
            "tables": {table.table: {"rows": table.rows, "differences": table.differences} for table in found},
        },
    )


def _snapshots(
    world: World, giver: str, taker: str, stream: str, tables: Sequence[GuardedTable]
) -> tuple[_Side, _Side, float]:
    """Two sides whose snapshots stand for the same moment, and how long writers were held (ms)."""
    attempts = int(world.operation.settings.get("fence_attempts", 40))
    timeout_ms = int(world.operation.settings.get("fence_lock_timeout_ms", 100))
    last: errors.ShardwrightError | psycopg.Error | None = None
    for _ in range(attempts):
        streams.round_trip(world, giver, taker, stream, 600)
        here, there = _Side(world, giver), _Side(world, taker)
        marking = world.open(giver)
        try:
            with world.change(giver, lock_timeout_ms=timeout_ms) as locking:
                guards.steady(locking, tables)
                started = time.monotonic()
                guards.lock(locking, tables)
                here.take_snapshot()
                value = streams.beat(marking, stream)
                if not streams.wait_for_marker(there.holder, stream, value, 0.5):
                    raise errors.StreamStalled("the marker did not arrive in 500 ms while writers were held off")
                there.take_snapshot()
            return here, there, (time.monotonic() - started) * 1000
        except (errors.LockTimeout, errors.StreamStalled, psycopg.errors.DeadlockDetected) as error:
            # A writer that takes two tables in another order deadlocks with the locks; we are the one to try again.
            last = error
            here.close()
            there.close()
            world.on_progress()
            time.sleep(timeout_ms / 1000)
        except BaseException:
            here.close()
            there.close()
            raise
        finally:
            marking.close()
    raise last or errors.InvariantFailed("no attempt was made to verify")


class _Side:
    """One shard at one moment: a connection that holds the snapshot, and one that reads under it."""

    def __init__(self, world: World, shard: str) -> None:
        self.shard = shard
        self.holder = world.open(shard)
        self.reader = world.open(shard)
        self._snapshot = ""

    def take_snapshot(self) -> None:
        self.holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = self.holder.execute("SELECT pg_export_snapshot()").fetchone()
        self._snapshot = row[0] if row is not None else ""

    def ask(self, table: GuardedTable, question: _Question) -> list[_Row]:
        """What a question gives, asked about one run of the table's parts after the other."""
        found: list[_Row] = []
        for some in parts.groups(self._within(partial(parts.of_table, self.reader, table))):
            found.extend(self._within(partial(self._read, some, question)))
        return found

    def _read(self, some: Sequence[Part], question: _Question) -> list[_Row]:
        rows: list[_Row] = self.reader.execute(question([part.qualified for part in some]).encode()).fetchall()
        parts.check_same(self.reader, some, self.shard)
        return rows

    def _within(self, work: Callable[[], list[_T]]) -> list[_T]:
        self.reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self.reader.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(self._snapshot)}".encode())
        done = work()
        self.reader.execute("COMMIT")
        return done

    def close(self) -> None:
        self.reader.close()
        self.holder.close()

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compare_table(here: _Side, there: _Side, table: GuardedTable, points: Multirange) -> TableComparison:
    hashes = hashing.of_rows(here.reader, table)
    mine, theirs = _both(here, there, table, partial(_chunks_sql, table, hashes, points))
    found = TableComparison(f"{table.schema_name}.{table.table_name}")
    ours, other = _summed(mine), _summed(theirs)
    found.rows = sum(rows for rows, _ in ours.values())
    found.checksum = sum(checksum for _, checksum in ours.values())
    found.chunks = len(ours.keys() | other.keys())
    wrong = sorted(chunk for chunk in ours.keys() | other.keys() if ours.get(chunk) != other.get(chunk))
    found.differing_chunks = len(wrong)
    if wrong:
        found.differences = _open_chunks(here, there, table, partial(_rows_sql, table, hashes, points, wrong))
    return found


def _summed(rows: Sequence[_Row]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for chunk, count, checksum in rows:
        before = found.get(chunk, (0, 0))
        found[chunk] = before[0] + count, before[1] + int(checksum)
    return found


def _both(here: _Side, there: _Side, table: GuardedTable, question: _Question) -> tuple[list[_Row], list[_Row]]:
    """Ask both sides at the same time."""
    theirs: list[list[_Row] | BaseException] = []

    def ask() -> None:
        try:
            theirs.append(there.ask(table, question))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            theirs.append(error)

    other = threading.Thread(target=ask, name="compare", daemon=True)
    other.start()
    try:
        mine = here.ask(table, question)
        other.join()
    except BaseException:
        # the other side must be idle before anybody closes its connection, and that may be hours from now
        with contextlib.suppress(psycopg.Error):
            there.reader.cancel_safe(timeout=2)
        other.join(5)  # a server that does not answer at all is left to its thread
        raise
    if isinstance(theirs[0], BaseException):
        raise theirs[0]
    return mine, theirs[0]


def _open_chunks(here: _Side, there: _Side, table: GuardedTable, question: _Question) -> list[tuple[str, str]]:
    mine, theirs = _both(here, there, table, question)
    ours: dict[str, int] = dict(mine)
    other: dict[str, int] = dict(theirs)
    differences = []
    for key in sorted(ours.keys() | other.keys()):
        if key not in other:
            differences.append((key, "missing"))
        elif key not in ours:
            differences.append((key, "extra"))
        elif ours[key] != other[key]:
            differences.append((key, "different"))
        if len(differences) >= MOST_KEYS:
            break
    return differences


def _chunks_sql(table: GuardedTable, hashes: RowHash, points: Multirange, names: Sequence[str]) -> str:
    each = (
        f"SELECT ({hashes.key} & {CHUNKS - 1})::int4 AS chunk, {hashes.row} AS hashed FROM ONLY {name} "
        f"WHERE {_points_sql(table, points)}"
        for name in names
    )
    return f"SELECT chunk, count(*), sum(hashed) FROM ({' UNION ALL '.join(each)}) AS hashes GROUP BY 1"


def _rows_sql(table: GuardedTable, hashes: RowHash, points: Multirange, chunks: list[int], names: Sequence[str]) -> str:
    listed = ", ".join(str(chunk) for chunk in chunks)
    return " UNION ALL ".join(
        f"SELECT {hashes.key_text}, {hashes.row} FROM ONLY {name} "
        f"WHERE {_points_sql(table, points)} AND ({hashes.key} & {CHUNKS - 1}) IN ({listed})"
        for name in names
    )


def _points_sql(table: GuardedTable, points: Multirange) -> str:
    if table.keyspace is None or table.key_column is None:
        raise errors.InvariantFailed(f"{table.qualified} is not sharded and has no points")
    return owned_sql(table.keyspace, points, quote_identifier(table.key_column))
