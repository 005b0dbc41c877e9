"""Small questions to a shard: is this there, has it rows?"""

from __future__ import annotations

import psycopg
from psycopg import sql


def has_schema(connection: psycopg.Connection, schema: str) -> bool:
    """Whether there is a schema of that name.

    Args:
        connection: to the shard.
        schema: its name.
    """
    return connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is not None


def has_table(connection: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether there is a table (or a view) of that name.

    Args:
        connection: to the shard.
        schema: its schema.
        table: its name.
    """
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = %s AND relname = %s",
        (schema, table),
    ).fetchone()
    return row is not None


def has_type(connection: psycopg.Connection, schema: str, name: str) -> bool:
    """Whether there is a type of that name.

    Args:
        connection: to the shard.
        schema: its schema.
        name: its name.
    """
    row = connection.execute(
        "SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE nspname = %s AND typname = %s",
        (schema, name),
    ).fetchone()
    return row is not None


def has_extension(connection: psycopg.Connection, name: str) -> bool:
    """Whether an extension is installed in the database.

    Args:
        connection: to the shard.
        name: its name.
    """
    return connection.execute("SELECT FROM pg_extension WHERE extname = %s", (name,)).fetchone() is not None


def has_rows(connection: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether a table has any row.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: the table's name.
    """
    row = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(schema, table))).fetchone()
    return row is not None and bool(row[0])
