"""What was archived: one row a partition and shard, written after its file was read back and found right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from shardwright.catalog.windows import span_text


@dataclass(frozen=True)
class ArchiveRow:
    """One archived partition of one shard."""

    table_id: int
    shard: str
    #: The partition's name.
    name: str
    lower: int | None
    upper: int | None
    rows: int
    #: Directory or URI.
    place: str
    #: As `partition.manifest` wrote it.
    manifest: Mapping[str, Any]
    verified_at: datetime
    restored_at: datetime | None


_SELECT = (
    "SELECT table_id, shard, name, lower(span), upper(span), rows, place, manifest, verified_at, restored_at "
    "FROM shardwright.archives"
)


def record(
    catalog: psycopg.Connection,
    table_id: int,
    shard: str,
    name: str,
    *,
    lower: int | None,
    upper: int | None,
    rows: int,
    place: str,
    manifest: Mapping[str, Any],
) -> None:
    """Write that a partition was archived and verified; what is known of an older archive of that name is replaced.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        shard: whose rows.
        name: the partition.
        lower: microseconds of the policy's axis; None is its end.
        upper: as `lower`.
        rows: how many.
        place: directory or URI.
        manifest: as it is written beside the file.
    """
    catalog.execute(
        "INSERT INTO shardwright.archives (table_id, shard, name, span, rows, place, manifest) "
        "VALUES (%s, %s, %s, %s::int8range, %s, %s, %s) ON CONFLICT (table_id, shard, name) DO UPDATE "
        "SET span = excluded.span, rows = excluded.rows, place = excluded.place, manifest = excluded.manifest, "
        "verified_at = clock_timestamp(), restored_at = NULL",
        (table_id, shard, name, span_text(lower, upper), rows, place, json.dumps(manifest)),
    )


def list_archives(catalog: psycopg.Connection, table_id: int) -> list[ArchiveRow]:
    """What was archived of a table, by window and shard.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
    """
    rows = catalog.execute(
        _SELECT + " WHERE table_id = %s ORDER BY lower(span) NULLS FIRST, name, shard", (table_id,)
    ).fetchall()
    return [ArchiveRow(*row) for row in rows]


def find(catalog: psycopg.Connection, table_id: int, shard: str, name: str) -> ArchiveRow | None:
    """What was archived of one partition of one shard, or None.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        shard: whose rows.
        name: the partition.
    """
    row = catalog.execute(
        _SELECT + " WHERE table_id = %s AND shard = %s AND name = %s", (table_id, shard, name)
    ).fetchone()
    return ArchiveRow(*row) if row is not None else None


def restored(catalog: psycopg.Connection, table_id: int, shard: str, name: str) -> None:
    """Write that a partition was brought back.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        shard: where.
        name: the partition.
    """
    catalog.execute(
        "UPDATE shardwright.archives SET restored_at = clock_timestamp() "
        "WHERE table_id = %s AND shard = %s AND name = %s",
        (table_id, shard, name),
    )
