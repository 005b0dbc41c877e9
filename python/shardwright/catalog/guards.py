"""Guards: the row triggers by which a shard refuses rows that it does not own, whoever sends them.

A guard is a plain plpgsql row trigger without WHEN whose function holds the owned points as a literal. Changing what is
owned is therefore CREATE OR REPLACE FUNCTION; done under the tables' SHARE ROW EXCLUSIVE lock, nobody can have a write
in flight that the old function let through. The triggers are in the default mode: they stop applications, not the
apply workers of logical replication.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import psycopg

from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import GuardedTable, guard_functions_sql, quote_literal

# '~' sorts behind letters: other BEFORE triggers have had their say when a guard looks at the row.
_TRIGGERS = {
    "insert": "BEFORE INSERT ON {table} FOR EACH ROW",
    "write": "BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW",
    "truncate": "BEFORE TRUNCATE ON {table} FOR EACH STATEMENT",
}


def install(
    connection: psycopg.Connection, table: GuardedTable, owned: Multirange, *, refuse_truncate: bool = False
) -> None:
    """Make the guards of one table, or bring them up to date. Takes SHARE ROW EXCLUSIVE on the table.

    Call it in a transaction, under a lock_timeout of your own.

    Args:
        connection: to the shard.
        table: whose guards.
        owned: the points that may be written here; ignored for a reference table.
        refuse_truncate: True while the table's rows move.
    """
    replace(connection, [table], owned, refuse_truncate=refuse_truncate)
    for what, clause in _TRIGGERS.items():
        connection.execute(
            f'CREATE OR REPLACE TRIGGER "~shardwright_{what}" {clause.format(table=table.qualified)} '
            f"EXECUTE FUNCTION shardwright.guard_{what}_{table.table_id}()".encode()
        )


def replace(
    connection: psycopg.Connection, tables: Sequence[GuardedTable], owned: Multirange, *, refuse_truncate: bool
) -> None:
    """Replace the guard functions of tables; their triggers stay. The caller holds the tables' locks where it fences.

    Their bodies are not compiled now: they are made in one place, and a fence must be short.

    Args:
        connection: to the shard, in a transaction.
        tables: whose guards; all of one keyspace.
        owned: the points that may be written here from now on.
        refuse_truncate: True while the tables' rows move.
    """
    connection.execute("SET LOCAL check_function_bodies = off")
    for table in tables:
        sharded = table.keyspace is not None
        for text in guard_functions_sql(table, owned, refuse_truncate=refuse_truncate):
            connection.execute(text.encode())
        connection.execute(
            "INSERT INTO shardwright.guards (table_id, schema_name, table_name, kind, keyspace, key_column, owned) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (table_id) DO UPDATE SET owned = excluded.owned",
            (
                table.table_id,
                table.schema_name,
                table.table_name,
                "sharded" if sharded else "reference",
                table.keyspace.name if table.keyspace is not None else None,
                table.key_column,
                owned.literal() if sharded else None,
            ),
        )


def set_owned(connection: psycopg.Connection, tables: Sequence[GuardedTable], owned: Multirange) -> None:
    """Change the points that the guards of tables let through, and nothing else of them, in two statements.

    For a hand-over, while writers wait: each statement costs as much as what it does.

    Args:
        connection: to the shard, in a transaction that holds the tables' locks where it fences.
        tables: whose guards, which are there; all of one keyspace.
        owned: the points that may be written here from now on.
    """
    texts = [
        text for table in tables for text in guard_functions_sql(table, owned, refuse_truncate=True, truncate=False)
    ]
    steps = " ".join(f"EXECUTE {quote_literal(text)};" for text in texts)
    body = f"BEGIN PERFORM set_config('check_function_bodies', 'off', true); {steps} END"
    connection.execute(f"DO {quote_literal(body)}".encode())
    connection.execute(
        "UPDATE shardwright.guards SET owned = %s WHERE table_id = ANY(%s)",
        (owned.literal(), [table.table_id for table in tables]),
    )


def lock(connection: psycopg.Connection, tables: Sequence[GuardedTable]) -> None:
    """LOCK the tables IN SHARE ROW EXCLUSIVE MODE: waits for every writer, lets readers be.

    The order is another one each time: a busy application that writes the tables in the opposite order would deadlock
    with every try of a fixed one.

    Args:
        connection: to the shard, in a transaction, with a lock_timeout.
        tables: what to lock.
    """
    names = ", ".join(table.qualified for table in random.sample(tables, len(tables)))
    if names:
        connection.execute(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE".encode())


def remove(connection: psycopg.Connection, table: GuardedTable) -> None:
    """Take the guards off one table. DROP TRIGGER needs ACCESS EXCLUSIVE for a moment: set a lock_timeout.

    Args:
        connection: to the shard, in a transaction.
        table: whose guards.
    """
    for what in _TRIGGERS:
        connection.execute(f'DROP TRIGGER IF EXISTS "~shardwright_{what}" ON {table.qualified}'.encode())
        connection.execute(f"DROP FUNCTION IF EXISTS shardwright.guard_{what}_{table.table_id}()".encode())
    connection.execute("DELETE FROM shardwright.guards WHERE table_id = %s", (table.table_id,))
