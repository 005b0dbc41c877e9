"""Exact verification: two shards' rows of some points compared at one point in time, inside the servers.

Each side computes, in one scan and one snapshot, the number of its rows and the sum of their 64-bit hashes
(`hash_record_extended`) for each of 1,024 chunks of the primary key's hash. A chunk that differs is opened row by row.
The two snapshots stand for one moment: writers of the tables are held off while both are taken, a few milliseconds, and
a marker proves that everything before it has arrived.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from shardwright import errors
from shardwright.catalog import evidence, guards
from shardwright.catalog.evidence import Certificate
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard import streams
from shardwright.reshard.world import World
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import GuardedTable, owned_sql, quote_identifier

_Row = tuple[Any, ...]

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
        StreamStalled: the marker did not arrive while the writers could be held off.
        LockTimeout: the writers could not be held off.
    """
    giver, taker = (move.source, move.target) if direction == "forward" else (move.target, move.source)
    stream = streams.name_of(world.cluster, move, direction)
    tables = world.guarded(move.keyspace)
    here, there, held_ms = _snapshots(world, giver, taker, stream, tables)
    try:
        reach("verify.snapshots_taken")
        found = [_compare_table(here, there, table, points) for table in tables]
    finally:
        here.close()
        there.close()
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
) -> tuple[psycopg.Connection, psycopg.Connection, float]:
    """Two connections in transactions whose snapshots stand for the same moment, and how long writers were held (ms)."""
    attempts = int(world.operation.settings.get("fence_attempts", 40))
    timeout_ms = int(world.operation.settings.get("fence_lock_timeout_ms", 100))
    last: errors.ShardwrightError | psycopg.Error | None = None
    for _ in range(attempts):
        streams.round_trip(world, giver, taker, stream, 600)
        here, there = world.open(giver), world.open(taker)
        marking = world.open(giver)
        try:
            started = time.monotonic()
            with world.change(giver, lock_timeout_ms=timeout_ms) as locking:
                guards.lock(locking, tables)
                _take_snapshot(here)
                value = streams.beat(marking, stream)
                if not streams.wait_for_marker(there, stream, value, 0.5):
                    raise errors.StreamStalled("the marker did not arrive in 500 ms while writers were held off")
                _take_snapshot(there)
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


def _take_snapshot(connection: psycopg.Connection) -> None:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.execute("SELECT pg_current_snapshot()")


def _compare_table(
    here: psycopg.Connection, there: psycopg.Connection, table: GuardedTable, points: Multirange
) -> TableComparison:
    text = _chunks_sql(here, table, points)
    mine, theirs = _both(here, there, text)
    found = TableComparison(f"{table.schema_name}.{table.table_name}")
    found.rows = sum(row[1] for row in mine)
    found.checksum = sum(int(row[2]) for row in mine)
    ours = {row[0]: (row[1], int(row[2])) for row in mine}
    other = {row[0]: (row[1], int(row[2])) for row in theirs}
    found.chunks = len(ours.keys() | other.keys())
    wrong = sorted(chunk for chunk in ours.keys() | other.keys() if ours.get(chunk) != other.get(chunk))
    found.differing_chunks = len(wrong)
    if wrong:
        found.differences = _open_chunks(here, there, table, points, wrong)
    return found


def _both(here: psycopg.Connection, there: psycopg.Connection, text: str) -> tuple[list[_Row], list[_Row]]:
    """Run one query on both sides at the same time."""
    theirs: list[list[_Row] | BaseException] = []

    def ask() -> None:
        try:
            theirs.append(there.execute(text.encode()).fetchall())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            theirs.append(error)

    other = threading.Thread(target=ask, name="compare", daemon=True)
    other.start()
    try:
        mine: list[_Row] = here.execute(text.encode()).fetchall()
        other.join()
    except BaseException:
        # the other side must be idle before anybody closes its connection, and that may be hours from now
        with contextlib.suppress(psycopg.Error):
            there.cancel_safe(timeout=2)
        other.join(5)  # a server that does not answer at all is left to its thread
        raise
    if isinstance(theirs[0], BaseException):
        raise theirs[0]
    return mine, theirs[0]


def _open_chunks(
    here: psycopg.Connection, there: psycopg.Connection, table: GuardedTable, points: Multirange, chunks: list[int]
) -> list[tuple[str, str]]:
    mine, theirs = _both(here, there, _rows_sql(here, table, points, chunks))
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


def _chunks_sql(connection: psycopg.Connection, table: GuardedTable, points: Multirange) -> str:
    row_hash, key_hash, _ = _expressions(connection, table)
    return (
        f"SELECT ({key_hash} & {CHUNKS - 1})::int4, count(*), sum({row_hash}) FROM {table.qualified} "
        f"WHERE {_points_sql(table, points)} GROUP BY 1"
    )


def _rows_sql(connection: psycopg.Connection, table: GuardedTable, points: Multirange, chunks: list[int]) -> str:
    row_hash, key_hash, key_text = _expressions(connection, table)
    listed = ", ".join(str(chunk) for chunk in chunks)
    return (
        f"SELECT {key_text}, {row_hash} FROM {table.qualified} "
        f"WHERE {_points_sql(table, points)} AND ({key_hash} & {CHUNKS - 1}) IN ({listed})"
    )


def _points_sql(table: GuardedTable, points: Multirange) -> str:
    if table.keyspace is None or table.key_column is None:
        raise errors.InvariantFailed(f"{table.qualified} is not sharded and has no points")
    return owned_sql(table.keyspace, points, quote_identifier(table.key_column))


def _expressions(connection: psycopg.Connection, table: GuardedTable) -> tuple[str, str, str]:
    """SQL of a row's hash, of its primary key's hash, and of its primary key as text.

    Types without an extended hash function (json, xml, point ...) are hashed by their text.
    """
    rows = connection.execute(
        "SELECT a.attname, a.attnum = ANY(coalesce(i.indkey::int2[], '{}')), "
        "NOT EXISTS (SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash' "
        "  JOIN pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amprocnum = 2 "
        "  WHERE o.opcdefault AND (o.opcintype = coalesce(nullif(t.typbasetype, 0), t.oid) "
        "    OR EXISTS (SELECT FROM pg_cast c WHERE c.castsource = coalesce(nullif(t.typbasetype, 0), t.oid) "
        "      AND c.casttarget = o.opcintype AND c.castmethod = 'b' AND c.castcontext = 'i'))) "
        "  OR t.typcategory IN ('A', 'C') "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary "
        "WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        (table.qualified,),
    ).fetchall()
    as_hashed = {
        name: f"{quote_identifier(name)}::pg_catalog.text" if by_text else quote_identifier(name)
        for name, _, by_text in rows
    }
    keys = [name for name, in_key, _ in rows if in_key]
    if not keys:
        raise errors.UnfitTable(f"{table.qualified} has no primary key", fix="give it one that contains the shard key")
    whole = ", ".join(as_hashed.values())
    key = ", ".join(as_hashed[name] for name in keys)
    return (
        f"hash_record_extended(ROW({whole}), 0)",
        f"hash_record_extended(ROW({key}), 0)",
        f"ROW({', '.join(quote_identifier(name) for name in keys)})::text",
    )
