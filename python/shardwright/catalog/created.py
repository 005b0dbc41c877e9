"""What we made on a shard besides our own schema: remembered there, so that it and nothing else is dropped again."""

from __future__ import annotations

import psycopg
from psycopg import sql

from shardwright.catalog import probe


def note(connection: psycopg.Connection, kind: str, schema: str, name: str) -> None:
    """Remember that something was made by us.

    Args:
        connection: to the shard, in the transaction that made it.
        kind: ``schema``, ``extension``, ``type`` or ``table``.
        schema: its schema; a schema's own name.
        name: its name; empty for a schema.
    """
    connection.execute(
        "INSERT INTO shardwright.created (kind, schema_name, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (kind, schema, name),
    )


def is_created(connection: psycopg.Connection, schema: str, table: str) -> bool:
    """Whether we made a table on a shard, and did not find it there.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: its name.
    """
    row = connection.execute(
        "SELECT FROM shardwright.created WHERE kind = 'table' AND schema_name = %s AND name = %s", (schema, table)
    ).fetchone()
    return row is not None


def make_schema(connection: psycopg.Connection, schema: str) -> None:
    """Make a schema where it is missing.

    Args:
        connection: to the shard, in a transaction.
        schema: its name.
    """
    if not probe.has_schema(connection, schema):
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        note(connection, "schema", schema, "")


def drop_table(connection: psycopg.Connection, schema: str, table: str, *, even_with_rows: bool = False) -> bool:
    """Drop a table that we made, where it has no rows.

    Args:
        connection: to the shard.
        schema: its schema.
        table: its name.
        even_with_rows: True where the rows are known to be copies.

    Returns:
        Whether it is gone.
    """
    if not is_created(connection, schema, table):
        return False
    if not _drop_leaves(connection, schema, table, even_with_rows):
        return False
    with connection.transaction():
        if probe.has_table(connection, schema, table):
            name = sql.Identifier(schema, table)
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name))
            if not even_with_rows and probe.has_rows(connection, schema, table):
                return False
            if not _drop(connection, sql.SQL("DROP TABLE {}").format(name)):
                return False
        connection.execute(
            "DELETE FROM shardwright.created WHERE kind = 'table' AND schema_name = %s AND name = %s", (schema, table)
        )
        return True


def _drop_leaves(connection: psycopg.Connection, schema: str, table: str, even_with_rows: bool) -> bool:
    """Drop a table's partitions one by one, as one statement for a thousand would run out of locks."""
    leaves = partitions_of(connection, schema, table)
    if leaves and not even_with_rows and probe.has_rows(connection, schema, table):
        return False
    for in_schema, leaf in leaves:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '5s'")
            # Its parent first, as everybody locks them.
            connection.execute(
                sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(schema, table))
            )
            if not even_with_rows and probe.has_rows(connection, in_schema, leaf):
                return False
            if not _drop(connection, sql.SQL("DROP TABLE {}").format(sql.Identifier(in_schema, leaf))):
                return False
            connection.execute(
                "DELETE FROM shardwright.partitions WHERE schema_name = %s AND name = %s", (in_schema, leaf)
            )
    return True


def partitions_of(connection: psycopg.Connection, schema: str, table: str) -> list[tuple[str, str]]:
    """Schema and name of a table's partitions.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: its name.
    """
    return connection.execute(
        "SELECT ln.nspname, l.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_inherits i ON i.inhparent = c.oid JOIN pg_class l ON l.oid = i.inhrelid "
        "JOIN pg_namespace ln ON ln.oid = l.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'p' ORDER BY 2",
        (schema, table),
    ).fetchall()


def drop_all(connection: psycopg.Connection) -> list[str]:
    """Drop everything that we made, as far as nothing of the application's is in it or needs it.

    Args:
        connection: to the shard.

    Returns:
        The tables that were dropped.
    """
    dropped: list[str] = []
    tables = _listed(connection, "table")
    while True:
        # Those that others point to can go only after the others.
        gone = [(schema, table) for schema, table in tables if drop_table(connection, schema, table)]
        if not gone:
            break
        dropped += [f"{schema}.{table}" for schema, table in gone]
        tables = [one for one in tables if one not in gone]
    for schema, name in _listed(connection, "type"):
        _drop(connection, sql.SQL("DROP TYPE IF EXISTS {}").format(sql.Identifier(schema, name)))
    for _, name in _listed(connection, "extension"):
        _drop(connection, sql.SQL("DROP EXTENSION IF EXISTS {}").format(sql.Identifier(name)))
    for schema, _ in _listed(connection, "schema"):
        _drop(connection, sql.SQL("DROP SCHEMA IF EXISTS {}").format(sql.Identifier(schema)))
    return dropped


def _listed(connection: psycopg.Connection, kind: str) -> list[tuple[str, str]]:
    return connection.execute(
        "SELECT schema_name, name FROM shardwright.created WHERE kind = %s ORDER BY at DESC", (kind,)
    ).fetchall()


def _drop(connection: psycopg.Connection, statement: sql.Composed) -> bool:
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.DependentObjectsStillExist:
        return False
    return True
