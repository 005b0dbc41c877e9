"""Sequences: replication does not carry them, so the side that takes rows over has its own raised past the other's."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from shardwright.routing.predicates import GuardedTable


def owned_by(connection: psycopg.Connection, tables: Sequence[GuardedTable]) -> list[str]:
    """The sequences that columns of these tables own, as quoted names."""
    rows = connection.execute(
        "SELECT DISTINCT format('%%I.%%I', sn.nspname, s.relname) FROM pg_depend d "
        "JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace "
        "JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') "
        "AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[])) ORDER BY 1",
        ([table.schema_name for table in tables], [table.table_name for table in tables]),
    ).fetchall()
    return [row[0] for row in rows]


def next_values(connection: psycopg.Connection, sequences: Sequence[str]) -> dict[str, int]:
    """For each sequence that was used, a value that it has not given out yet, what sessions cached included."""
    values = {}
    for name in sequences:
        row = connection.execute(
            "SELECT pg_sequence_last_value(%s::regclass) + s.seqincrement * s.seqcache "
            "FROM pg_sequence s WHERE s.seqrelid = %s::regclass",
            (name, name),
        ).fetchone()
        if row is not None and row[0] is not None:
            values[name] = int(row[0])
    return values


def raise_to(connection: psycopg.Connection, values: dict[str, int]) -> None:
    """Raise ascending sequences to these values; those that are further already stay."""
    for name, value in values.items():
        connection.execute(
            "SELECT setval(%s::regclass, %s) FROM pg_sequence s WHERE s.seqrelid = %s::regclass "
            "AND s.seqincrement > 0 AND coalesce(pg_sequence_last_value(%s::regclass), 0) < %s",
            (name, value, name, name, value),
        )
