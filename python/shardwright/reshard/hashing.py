"""SQL of a row's 64-bit hash, the same on both sides of a move: PostgreSQL's own `hash_record_extended` of its columns."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.routing.predicates import GuardedTable, quote_identifier


@dataclass(frozen=True)
class RowHash:
    """SQL expressions over one row of a table."""

    #: Of all columns.
    row: str
    #: Of the primary key.
    key: str
    #: The primary key as text.
    key_text: str


def of_rows(connection: psycopg.Connection, table: GuardedTable) -> RowHash:
    """The expressions for a table; its partitions have the same columns by name.

    Types without an extended hash function (json, xml, point ...) are hashed by their text.

    Args:
        connection: to a shard that has the table.
        table: the table.

    Raises:
        UnfitTable: it has no primary key.
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
    return RowHash(
        row=f"hash_record_extended(ROW({whole}), 0)",
        key=f"hash_record_extended(ROW({key}), 0)",
        key_text=f"ROW({', '.join(quote_identifier(name) for name in keys)})::text",
    )
