"""Our mark on partitions: a row of the shard's own ``shardwright.partitions``, by name and relid.

Nothing is detached or dropped without it. Another table under an old name has another relid and so is not ours.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import psycopg

from shardwright.catalog.windows import span_text


@dataclass(frozen=True)
class Mark:
    """One partition that we made or took over."""

    schema: str
    name: str
    relid: int
    #: Name of the parent, in the same schema.
    parent: str
    lower: int | None
    upper: int | None
    #: ``window``, ``whole``, ``before``, ``after``.
    role: str
    #: ``made``, ``attached``, ``detached``, ``archived``.
    state: str
    detached_at: datetime | None = None


_COLUMNS = "schema_name, name, relid::int8, parent, lower(span), upper(span), role, state, detached_at"


def read(connection: psycopg.Connection, schema: str, parent: str) -> dict[str, Mark]:
    """The marks of one table's partitions, by name; also those whose table is gone or has another relid.

    Args:
        connection: to the shard.
        schema: of parent and partitions.
        parent: the table.
    """
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM shardwright.partitions WHERE schema_name = %s AND parent = %s".encode(),
        (schema, parent),
    ).fetchall()
    return {row[1]: Mark(*row) for row in rows}


def write(
    connection: psycopg.Connection,
    schema: str,
    name: str,
    *,
    parent: str,
    lower: int | None,
    upper: int | None,
    role: str,
    state: str,
    detached_at: datetime | None = None,
) -> None:
    """Mark a table that is there, under its present relid; a mark that it has is replaced.

    Args:
        connection: to the shard.
        schema: its schema.
        name: its name.
        parent: the partitioned table, in the same schema.
        lower: as in the catalog's window.
        upper: as in the catalog's window.
        role: ``window``, ``whole``, ``before`` or ``after``.
        state: ``made``, ``attached``, ``detached`` or ``archived``.
        detached_at: when it left its parent.
    """
    connection.execute(
        "INSERT INTO shardwright.partitions AS p (schema_name, name, relid, parent, span, role, state, detached_at) "
        "SELECT n.nspname, c.relname, c.oid, %(parent)s, %(span)s::int8range, %(role)s, %(state)s, %(detached_at)s "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %(schema)s AND c.relname = %(name)s "
        "ON CONFLICT (schema_name, name) DO UPDATE SET relid = excluded.relid, parent = excluded.parent, "
        "span = excluded.span, role = excluded.role, state = excluded.state, detached_at = excluded.detached_at, "
        "at = clock_timestamp()",
        {
            "schema": schema,
            "name": name,
            "parent": parent,
            "span": span_text(lower, upper),
            "role": role,
            "state": state,
            "detached_at": detached_at,
        },
    )


def set_state(
    connection: psycopg.Connection,
    schema: str,
    names: Collection[str],
    state: str,
    *,
    detached_at: datetime | None = None,
) -> None:
    """Change what marks say of partitions' state.

    Args:
        connection: to the shard.
        schema: their schema.
        names: the partitions.
        state: ``made``, ``attached``, ``detached`` or ``archived``.
        detached_at: when they left their parent; what was known stays where None is given, and it goes with
            ``attached``.
    """
    connection.execute(
        "UPDATE shardwright.partitions SET state = %(state)s, at = clock_timestamp(), detached_at = "
        "CASE WHEN %(state)s IN ('made', 'attached') THEN NULL "
        "ELSE coalesce(%(at)s::timestamptz, detached_at) END "
        "WHERE schema_name = %(schema)s AND name = ANY(%(names)s)",
        {"schema": schema, "names": list(names), "state": state, "at": detached_at},
    )


def forget(connection: psycopg.Connection, schema: str, name: str) -> None:
    """Delete a mark: its table is gone.

    Args:
        connection: to the shard.
        schema: the table's schema.
        name: its name.
    """
    connection.execute("DELETE FROM shardwright.partitions WHERE schema_name = %s AND name = %s", (schema, name))


def is_ours(connection: psycopg.Connection, schema: str, name: str) -> bool:
    """Whether a table that is there now carries our mark: name and relid agree.

    Args:
        connection: to the shard.
        schema: its schema.
        name: its name.
    """
    row = connection.execute(
        "SELECT FROM shardwright.partitions p JOIN pg_class c ON c.oid = p.relid AND c.relname = p.name "
        "JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schema_name "
        "WHERE p.schema_name = %s AND p.name = %s",
        (schema, name),
    ).fetchone()
    return row is not None
