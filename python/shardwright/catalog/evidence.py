"""What is kept of an operation as evidence: its hand-overs with their pauses, and its certificates."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright.routing.multirange import Multirange


@dataclass(frozen=True)
class Handover:
    """One hand-over of a batch, forward or back."""

    move: int
    batch: int
    direction: str
    attempts: int
    map_version: int | None
    pause_ms: float | None
    at: datetime.datetime


def record_handover(
    connection: psycopg.Connection,
    move: int,
    batch: int,
    direction: str,
    attempts: int,
    map_version: int | None,
    pause_ms: float | None,
) -> None:
    """Keep how long one hand-over paused writes, in milliseconds."""
    connection.execute(
        "INSERT INTO shardwright.handovers (move, batch, direction, attempts, map_version, pause_ms) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        (move, batch, direction, attempts, map_version, pause_ms),
    )


def list_handovers(connection: psycopg.Connection, operation: int) -> list[Handover]:
    """The hand-overs of an operation, oldest first."""
    rows = connection.execute(
        "SELECT h.move, h.batch, h.direction, h.attempts, h.map_version, h.pause_ms, h.at FROM shardwright.handovers h "
        "JOIN shardwright.moves m ON m.id = h.move WHERE m.operation = %s ORDER BY h.id",
        (operation,),
    ).fetchall()
    return [Handover(*row) for row in rows]


@dataclass(frozen=True)
class Certificate:
    """Proof that two sides agreed on a move's rows at one point in time."""

    move: int
    direction: str
    points: Multirange
    rows: int
    #: Sum of the rows' 64-bit hashes.
    checksum: int
    chunks: int
    differing: int
    detail: Mapping[str, Any]
    at: datetime.datetime | None = None
    #: Seconds since it was made, by the catalog's clock.
    age_seconds: float = 0.0


def record_certificate(connection: psycopg.Connection, made: Certificate) -> None:
    """Keep a certificate."""
    connection.execute(
        "INSERT INTO shardwright.certificates (move, direction, points, rows, checksum, chunks, differing, detail) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            made.move,
            made.direction,
            made.points.literal(),
            made.rows,
            made.checksum,
            made.chunks,
            made.differing,
            json.dumps(made.detail),
        ),
    )


def latest_certificate(connection: psycopg.Connection, move: int, direction: str) -> Certificate | None:
    """The newest certificate of a move in one direction, or None."""
    row = connection.execute(
        "SELECT move, direction, points::text, rows, checksum, chunks, differing, detail, at, "
        "extract(epoch FROM clock_timestamp() - at)::float8 FROM shardwright.certificates "
        "WHERE move = %s AND direction = %s ORDER BY id DESC LIMIT 1",
        (move, direction),
    ).fetchone()
    if row is None:
        return None
    return Certificate(
        row[0], row[1], Multirange.parse(row[2]), row[3], int(row[4]), row[5], row[6], row[7], row[8], row[9]
    )


def record_window(connection: psycopg.Connection, move: int, table: str, name: str, rows: int, checksum: int) -> None:
    """Keep that a window whose time was over was copied, and found equal on both sides right after its copy.

    Args:
        connection: to the catalog.
        move: the move's number.
        table: ``schema.table``.
        name: the leaf's name on the source.
        rows: how many rows of the move's points it had.
        checksum: the sum of their hashes.
    """
    connection.execute(
        "INSERT INTO shardwright.copied_windows (move, table_name, name, rows, checksum) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (move, table_name, name) DO UPDATE "
        "SET rows = excluded.rows, checksum = excluded.checksum, at = clock_timestamp()",
        (move, table, name, rows, checksum),
    )


def forget_windows(connection: psycopg.Connection, move: int) -> None:
    """Forget the windows of a copy that starts again."""
    connection.execute("DELETE FROM shardwright.copied_windows WHERE move = %s", (move,))


def count_windows(connection: psycopg.Connection, operation: int) -> dict[int, int]:
    """How many windows of each move were compared right after their copy, by the move's number."""
    rows = connection.execute(
        "SELECT w.move, count(*) FROM shardwright.copied_windows w JOIN shardwright.moves m ON m.id = w.move "
        "WHERE m.operation = %s GROUP BY w.move",
        (operation,),
    ).fetchall()
    return {row[0]: row[1] for row in rows}
