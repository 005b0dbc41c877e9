"""Snapshots that are older than rows which moved from one partition into others, and the barrier against writes from there.

A REPEATABLE READ transaction whose snapshot is older than such a move sees the rows in neither place: its UPDATE or DELETE
would change nothing, and the row that it was told to delete would live on. A move therefore raises a barrier in its own
transaction: a statement trigger by which such a write fails with serialization_failure, as it does whenever a row was
changed since the snapshot. It is lifted when nobody has such a snapshot any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from shardwright import errors

#: Name of the trigger on the partitioned table.
TRIGGER = "~shardwright_snapshot"

#: SQL of the number of the transaction that raised the barrier `t`, a row of pg_trigger.
RAISED_BY_SQL = r"split_part(encode(t.tgargs, 'escape'), '\000', 1)::xid8"


@dataclass(frozen=True)
class Older:
    """A transaction that has, or may have, an older snapshot."""

    #: Its virtual number: no other transaction has the same until the server is restarted.
    transaction: str
    #: Who it is, for people.
    who: str
    #: False where its snapshot is not ours to see.
    certain: bool


def older_sql(xid: str) -> str:
    """SQL of the transactions of this database that have, or may have, a snapshot which does not see a transaction.

    Args:
        xid: SQL of the number of a transaction that has ended, an xid8.
    """
    # virtualxid locks are seen by every role. Of a backend of another role one without pg_read_all_stats sees little else.
    return (
        "SELECT l.virtualtransaction, a.pid, coalesce(a.application_name, '') AS application_name, "
        "coalesce(a.state, '') AS state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, "
        "a.backend_type IS NOT NULL AS certain FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid "
        "AND l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock' "
        "WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() "
        "AND (a.backend_type IS NULL OR (a.backend_type NOT IN ('autovacuum worker', 'walsender') "
        f"AND age(a.backend_xmin) >= age(({xid})::xid)))"
    )


def older(connection: psycopg.Connection[Any], xid: str) -> list[Older]:
    """The transactions that have, or may have, a snapshot which does not see a transaction.

    Args:
        connection: to the shard.
        xid: number of a transaction that has ended, an xid8.
    """
    rows = connection.execute(f"{older_sql('%s::xid8')} ORDER BY a.xact_start".encode(), (xid,)).fetchall()
    return [
        Older(transaction, f"pid {pid} ({name}, {state or 'no right to see more'} for {seconds or 0:.1f} s)", certain)
        for transaction, pid, name, state, seconds, certain in rows
    ]


def wait_for_older(connection: psycopg.Connection[Any], xid: str, seconds: float) -> list[Older]:
    """Wait until no transaction has a snapshot which does not see another one.

    Args:
        connection: to the shard, in autocommit mode.
        xid: number of that other transaction, which has ended, an xid8.
        seconds: at most so long.

    Returns:
        Those that still have, or may have, one; none when all of them have ended.
    """
    deadline = time.monotonic() + seconds
    left = older(connection, xid)
    first = {one.transaction for one in left}
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        # Who began since has a younger one, also where that is not ours to see.
        left = [one for one in older(connection, xid) if one.certain or one.transaction in first]
    return left


def wait_for_older_than_now(connection: psycopg.Connection[Any], seconds: float) -> None:
    """Wait until no snapshot of this database is older than now: such a one may miss rows of a move that comes.

    Args:
        connection: to the shard, in autocommit mode.
        seconds: at most so long.

    Raises:
        NotDrained: somebody's is still there.
    """
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    if left := wait_for_older(connection, row[0], seconds):
        said = "; ".join(one.who for one in left)
        raise errors.NotDrained(
            f"snapshots older than the copied rows are still open after {seconds:g} s: {said}",
            fix="let those transactions end, then run this again; or leave --wait-for-snapshots out",
            blockers=[one.who for one in left],
        )


def raise_barrier(connection: psycopg.Connection[Any], schema: str, table: str) -> None:
    """Refuse UPDATE, DELETE and MERGE to transactions that do not see the present one. It replaces an older barrier.

    Args:
        connection: to the shard, in the transaction that moves rows, which holds ACCESS EXCLUSIVE on the table.
        schema: schema of the partitioned table.
        table: its name.
    """
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    names = {"trigger": sql.Identifier(TRIGGER), "table": sql.Identifier(schema, table)}
    connection.execute(
        sql.SQL(
            "CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE OR DELETE ON {table} FOR EACH STATEMENT "
            "EXECUTE FUNCTION shardwright.refuse_old_snapshot({xid})"
        ).format(xid=sql.Literal(row[0]), **names)
    )
    # Also to who writes with session_replication_role = replica.
    connection.execute(sql.SQL("ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {trigger}").format(**names))


def raised_by(connection: psycopg.Connection[Any], schema: str, table: str) -> str | None:
    """Number of the transaction that raised a table's barrier; None where there is none.

    Args:
        connection: to the shard.
        schema: schema of the partitioned table.
        table: its name.
    """
    row = connection.execute(
        f"SELECT {RAISED_BY_SQL}::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND t.tgname = %s".encode(),
        (schema, table, TRIGGER),
    ).fetchone()
    return row[0] if row is not None else None


def lift_barrier(connection: psycopg.Connection[Any], schema: str, table: str) -> None:
    """Drop a table's barrier if it has one; that takes ACCESS EXCLUSIVE.

    Args:
        connection: to the shard, in a transaction under a lock_timeout.
        schema: schema of the table.
        table: its name.
    """
    connection.execute(
        sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(TRIGGER), sql.Identifier(schema, table))
    )
