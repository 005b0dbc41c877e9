"""A fat partition gives way to its pieces, in one short transaction; and the proof before it that they hold the same."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.catalog import snapshots
from shardwright.failpoints import reach
from shardwright.partition import archived_columns, bulk, leaves, marks, ordinary, shells, touched
from shardwright.partition.bulk import Source
from shardwright.partition.carried import qualified, without_not_valid
from shardwright.partition.ordinary import Facts
from shardwright.partition.site import PartitionSite
from shardwright.partition.touched import Cutting
from shardwright.routing.predicates import quote_identifier as ident

#: Logged keys that the transaction of the exchange may have to replay, while everybody waits.
MOST_KEYS = 300

#: A statement of the exchange that takes longer does what it must not: it reads rows. Then all is rolled back.
_STATEMENT_TIMEOUT = "5s"


@dataclass(frozen=True)
class Exchanged:
    """What the exchange cost those who use the table."""

    #: Milliseconds from the first lock to the commit, in the try that succeeded.
    lock_ms: float
    tries: int
    #: Keys that were replayed under the lock.
    keys: int
    #: Foreign keys that point here and are to be validated again: schema, table, name.
    unvalidated: tuple[tuple[str, str, str], ...] = ()


class TooMany(Exception):
    """More was logged than may be replayed while everybody waits."""


def compare(connection: psycopg.Connection, work: Cutting) -> list[tuple[str, int, int]]:
    """Compare the fat partition with its pieces, in one snapshot, without disturbing anybody.

    Whatever differs in that snapshot is in the log: keys are taken from it in the transaction that brings the pieces up to
    date. So all rows whose keys are not in it must agree, in number and in the sum of their hashes.

    Args:
        connection: to the shard, in autocommit mode.
        work: the names.

    Returns:
        Piece by piece its name, and rows in the fat partition and in the piece.

    Raises:
        VerificationDiffers: they differ.
    """
    columns = archived_columns.columns_of(connection, qualified(work.schema, work.parent))
    sums = archived_columns.sums_sql(columns)
    not_logged = f"NOT EXISTS (SELECT FROM {work.log} l WHERE {work.same_key_sql('l', 'r')})"
    number = work.number_sql(f"r.{ident(work.column)}")
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows = connection.execute(
            f"SELECT {number}, {sums} FROM ONLY {work.source} r WHERE {not_logged} GROUP BY 1".encode()
        ).fetchall()
        theirs = {row[0]: (row[1], int(row[2])) for row in rows}
        found: list[tuple[str, int, int]] = []
        wrong: list[str] = []
        for index, piece in enumerate(work.pieces):
            row = connection.execute(
                f"SELECT {sums} FROM ONLY {work.piece(index)} r WHERE {not_logged}".encode()
            ).fetchone()
            assert row is not None
            there = theirs.get(index, (0, 0))
            found.append((piece.name, there[0], row[0]))
            if there != (row[0], int(row[1])):
                wrong.append(f"{piece.name}: {row[0]} rows, and {there[0]} in {work.fat}, or other values")
    if wrong:
        raise errors.VerificationDiffers(
            f"{len(wrong)} pieces differ from {work.fat}; nothing was exchanged: {'; '.join(wrong[:5])}",
            fix=f"shardwright partition split {work.schema}.{work.parent} --abort, and report it",
            differences=wrong,
        )
    return found


def exchange(site: PartitionSite, work: Cutting, source: Source) -> Exchanged:
    """Replay what is left, DETACH the fat partition and ATTACH its pieces, in one transaction under ACCESS EXCLUSIVE.

    Args:
        site: the table and shard.
        work: the names.
        source: the fat partition as it was measured.

    Returns:
        What it cost.

    Raises:
        LockTimeout: the locks could not be had. Nothing was changed.
        TooMany: too much is logged; replay, then try again. Nothing was changed.
        bulk.Restart: the fat partition was emptied or rewritten. Nothing was changed.
        UnfitTable: the table was altered meanwhile. Nothing was changed.
    """
    connection, parent = site.connection, site.parent.as_string(site.connection)
    table = ordinary.read(connection, work.schema, work.parent)
    started, tries = 0.0, 0
    touched.ready(connection, work)

    def work_() -> int:
        nonlocal started, tries
        tries += 1
        connection.execute(f"LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE".encode())
        started = time.monotonic()
        connection.execute(f"LOCK TABLE ONLY {work.source} IN ACCESS EXCLUSIVE MODE".encode())
        connection.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'".encode())
        bulk.check_unmoved(connection, work, source)
        if touched.waiting(connection, work, MOST_KEYS + 1) > MOST_KEYS:
            raise TooMany
        keys = touched.replay(connection, work)
        _give_way(site, work, table.inbound)
        reach("partition.split_exchanging")
        return keys

    try:
        keys = site.patiently(work_, also=[work.fat, *(one["table"] for one in table.inbound)], readers=True)
    except (psycopg.errors.DatatypeMismatch, psycopg.errors.UndefinedColumn, psycopg.errors.QueryCanceled) as error:
        raise errors.UnfitTable(
            f"{work.fat} cannot give way to its pieces, and nothing was changed: {error.diag.message_primary}",
            fix=f"was the table altered meanwhile? shardwright partition split {site.table.name} --abort, then begin anew",
            table=site.table.name,
        ) from error
    held = (time.monotonic() - started) * 1000
    again = tuple((one["schema"], one["table"], one["name"]) for one in table.inbound if one["validated"])
    return Exchanged(held, tries, keys, again)


def _give_way(site: PartitionSite, work: Cutting, inbound: tuple[Facts, ...]) -> None:
    connection, parent = site.connection, site.parent.as_string(site.connection)
    indexes = _count_indexes(connection, work)
    texts = [
        # DETACH would look for rows that refer to the fat partition, and there are.
        *(f"ALTER TABLE {qualified(k['schema'], k['table'])} DROP CONSTRAINT {ident(k['name'])}" for k in inbound),
        f"DROP TRIGGER {ident(touched.TRIGGER)} ON {work.source}",
        f"ALTER TABLE {parent} DETACH PARTITION {work.source}",
        # Left behind, its rows would keep those that they refer to from being deleted.
        *(f"ALTER TABLE {work.source} DROP CONSTRAINT {ident(name)}" for name in _foreign_keys(connection, work)),
    ]
    connection.execute(";\n".join(texts).encode())
    shells.cover(site, work.pieces)
    texts = []
    for number, piece in enumerate(work.pieces):
        bounds = site.bounds(piece.lower, piece.upper).as_string(connection)
        texts.append(f"ALTER TABLE {parent} ATTACH PARTITION {work.piece(number)} {bounds}")
    for one in inbound:
        there, definition = qualified(one["schema"], one["table"]), without_not_valid(one["definition"])
        texts.append(f"ALTER TABLE {there} ADD CONSTRAINT {ident(one['name'])} {definition} NOT VALID")
    connection.execute(";\n".join(texts).encode())
    if _count_indexes(connection, work) != indexes:
        raise errors.InvariantFailed(f"attaching the pieces of {work.fat} built an index; it was rolled back")
    shells.set_identities(site, work)
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    snapshots.raise_barrier(connection, work.schema, work.parent)
    marks.set_state(connection, work.schema, [work.fat], "replaced", detached_at=row[0] if row else None)
    for piece in work.pieces:
        site.mark(piece, "attached")


def _foreign_keys(connection: psycopg.Connection, work: Cutting) -> list[str]:
    rows = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::text::regclass AND contype = 'f' ORDER BY 1",
        (work.source,),
    ).fetchall()
    return [row[0] for row in rows]


def _count_indexes(connection: psycopg.Connection, work: Cutting) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_index WHERE indrelid = ANY (%s::text[]::regclass[])",
        ([work.piece(number) for number in range(len(work.pieces))],),
    ).fetchone()
    return int(row[0]) if row is not None else 0


def drop_checks(site: PartitionSite, work: Cutting) -> None:
    """Drop the CHECKs of the pieces' bounds: they say what the bounds say. Each piece in a transaction of its own.

    Args:
        site: the table and shard.
        work: the names.
    """
    for number, piece in enumerate(work.pieces):
        text = f"ALTER TABLE {work.piece(number)} DROP CONSTRAINT IF EXISTS {leaves.BOUNDS_CHECK}"
        site.patiently(lambda text=text: site.connection.execute(text.encode()), also=[piece.name], readers=True)  # type: ignore[misc]
