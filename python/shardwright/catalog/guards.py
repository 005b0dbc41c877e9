"""Guards: the row triggers by which a shard refuses rows that it does not own, whoever sends them.

A guard is a plain plpgsql row trigger without WHEN whose function holds the owned points as a literal. Changing what is
owned is therefore CREATE OR REPLACE FUNCTION; done under the tables' SHARE ROW EXCLUSIVE lock, nobody can have a write
in flight that the old function let through. The triggers are in the default mode: they stop applications, not the
apply workers of logical replication.

PostgreSQL gives the row triggers of a partitioned table to each of its partitions, those that come later too. Statement
triggers it does not: each partition has one of its own, which refuses TRUNCATE with the table's, and by which who writes to
the partition itself locks the table like who writes through it. So the lock on the table alone, whatever the number of
partitions, holds off every writer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import psycopg
from psycopg import sql

from shardwright.catalog import snapshots
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
    """Make the guards of one table, or bring them up to date. Takes SHARE ROW EXCLUSIVE on it and its partitions.

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
    cover(connection, [table.table_id])


def cover(connection: psycopg.Connection, table_ids: Sequence[int]) -> int:
    """Give partitions of guarded tables the statement trigger where it is missing; those that have it are not locked.

    Args:
        connection: to the shard, in a transaction under a lock_timeout.
        table_ids: the tables; those without guards here, or without partitions, are passed over.

    Returns:
        How many partitions lacked it.
    """
    row = connection.execute("SELECT shardwright.cover_leaves(%s)", (list(table_ids),)).fetchone()
    return int(row[0]) if row is not None else 0


def cover_one(connection: psycopg.Connection, schema: str, parent: str, leaf: str) -> None:
    """Give a table that is about to become a partition of a guarded table the statement trigger.

    Args:
        connection: to the shard.
        schema: schema of both.
        parent: the partitioned table; nothing is done where it has no guards here.
        leaf: the table that is to be attached. From now on who writes to it locks the parent like its writers do.
    """
    row = connection.execute(
        "SELECT table_id FROM shardwright.guards WHERE schema_name = %s AND table_name = %s", (schema, parent)
    ).fetchone()
    if row is not None:
        connection.execute(
            sql.SQL(
                'CREATE OR REPLACE TRIGGER "~shardwright_leaf" BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} '
                "FOR EACH STATEMENT EXECUTE FUNCTION {}()"
            ).format(sql.Identifier(schema, leaf), sql.Identifier("shardwright", f"guard_truncate_{row[0]}"))
        )


def steady(connection: psycopg.Connection, tables: Sequence[GuardedTable]) -> None:
    """Keep the partitions of these tables as they are until the transaction ends, each with its trigger, for `lock`.

    Waits for whoever attaches or detaches partitions; readers and writers do not wait for it.

    Args:
        connection: to the shard, in a transaction with a lock_timeout.
        tables: what is about to be locked.
    """
    connection.execute("SELECT shardwright.steady(%s)", ([table.table_id for table in tables],)).fetchone()


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
    """LOCK the tables IN SHARE ROW EXCLUSIVE MODE: waits for every writer, lets readers be. Call `steady` before.

    Partitions are not locked: who writes to one has locked its table. The order is another one each time: a busy application
    that writes the tables in the opposite order would deadlock with every try of a fixed one.

    Args:
        connection: to the shard, in a transaction, with a lock_timeout.
        tables: what to lock.
    """
    names = ", ".join(f"ONLY {table.qualified}" for table in random.sample(tables, len(tables)))
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
        # triggers of partitions, those that were detached since included
        connection.execute(f"DROP FUNCTION IF EXISTS shardwright.guard_{what}_{table.table_id}() CASCADE".encode())
    snapshots.lift_barrier(connection, table.schema_name, table.table_name)
    connection.execute("DELETE FROM shardwright.guards WHERE table_id = %s", (table.table_id,))
