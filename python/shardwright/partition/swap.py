"""An ordinary table becomes the first partition of a partitioned table of its name: on one shard, without copying.

Two short transactions and one that is long and disturbs nobody: a CHECK that all rows lie before the cut is added, it is
validated while everybody reads and writes, and then names are changed and the old table is attached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psycopg

from shardwright import errors
from shardwright.catalog import locking
from shardwright.partition import carried, convertible, ordinary
from shardwright.partition.carried import CHECK_NAME, Conversion, qualified
from shardwright.partition.names import leaf_name
from shardwright.partition.ordinary import OrdinaryTable
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier as ident

#: How long one try for the swap's locks may wait, and so make others wait.
LOCK_TIMEOUT_MS = 100


@dataclass(frozen=True)
class Held:
    """What a swap cost those who use the table."""

    #: Milliseconds from the first lock to the commit, in the try that succeeded.
    lock_ms: float
    tries: int


def extended_index(table: OrdinaryTable, column: str) -> tuple[str, str]:
    """Name and statement of the unique index that is to become the primary key, with the partition column in it.

    Args:
        table: whose.
        column: the partition column.
    """
    primary = next(one for one in table.indexes if one["primary"])
    name = leaf_name(primary["name"], "_next")
    columns = ", ".join(ident(one) for one in (*primary["columns"], column))
    own = qualified(table.schema, table.table)
    return name, f"CREATE UNIQUE INDEX CONCURRENTLY {ident(name)} ON {own} ({columns})"


def build_key(connection: psycopg.Connection, table: OrdinaryTable, column: str) -> str:
    """Build the index of `extended_index`, unless it is there; one that an interrupted try left invalid is built anew.

    Args:
        connection: to the shard, in autocommit mode.
        table: whose.
        column: the partition column.

    Returns:
        Its name.
    """
    name, statement = extended_index(table, column)
    there = next((one for one in table.indexes if one["name"] == name), None)
    if there is not None and there["valid"]:
        return name
    if there is not None:
        drop_key(connection, table, column)
    connection.execute(statement.encode())
    return name


def drop_key(connection: psycopg.Connection, table: OrdinaryTable, column: str) -> None:
    """Drop the index of `extended_index`, where it is there.

    Args:
        connection: to the shard, in autocommit mode.
        table: whose.
        column: the partition column.
    """
    name, _ = extended_index(table, column)
    connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(table.schema, name)}".encode())


def add_check(connection: psycopg.Connection, schema: str, table: str, body: str, patience: float) -> None:
    """Add the CHECK that all rows lie before the cut; rows that are written from then on are held to it.

    Args:
        connection: to the shard, in autocommit mode.
        schema: the table's schema.
        table: its name.
        body: SQL of the check.
        patience: seconds of tries for the lock.

    Raises:
        LockTimeout: it could not be had.
    """
    own = qualified(schema, table)

    def add() -> None:
        connection.execute(f"ALTER TABLE {own} DROP CONSTRAINT IF EXISTS {CHECK_NAME}".encode())
        connection.execute(f"ALTER TABLE {own} ADD CONSTRAINT {CHECK_NAME} CHECK ({body}) NOT VALID".encode())

    locking.patiently(
        connection, [(schema, table)], add, lock_timeout_ms=LOCK_TIMEOUT_MS, patience=patience, readers=True
    )


def drop_check(connection: psycopg.Connection, schema: str, table: str, patience: float) -> None:
    """Take the CHECK off again.

    Args:
        connection: to the shard, in autocommit mode.
        schema: the table's schema.
        table: its name.
        patience: seconds of tries for the lock.
    """
    text = f"ALTER TABLE {qualified(schema, table)} DROP CONSTRAINT IF EXISTS {CHECK_NAME}"
    locking.patiently(
        connection,
        [(schema, table)],
        lambda: connection.execute(text.encode()),
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        patience=patience,
        readers=True,
    )


def validate(connection: psycopg.Connection, schema: str, table: str, constraint: str, patience: float) -> None:
    """Validate a constraint: a scan, during which everybody reads and writes (SHARE UPDATE EXCLUSIVE).

    Args:
        connection: to the shard, in autocommit mode.
        schema: the table's schema.
        table: its name.
        constraint: its name.
        patience: seconds of tries for the lock.

    Raises:
        psycopg.errors.CheckViolation, psycopg.errors.ForeignKeyViolation: a row breaks it.
    """
    text = f"ALTER TABLE {qualified(schema, table)} VALIDATE CONSTRAINT {ident(constraint)}"
    locking.patiently(
        connection,
        [(schema, table)],
        lambda: connection.execute(text.encode()),
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        patience=patience,
    )


def offenders(connection: psycopg.Connection, schema: str, table: str, column: str, body: str) -> tuple[int, list[str]]:
    """How many rows break the CHECK (1,000 at most), and some of their values.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: its name.
        column: the partition column.
        body: SQL of the check.
    """
    rows = connection.execute(
        f"SELECT {ident(column)}::pg_catalog.text FROM {qualified(schema, table)} "
        f"WHERE NOT ({body}) LIMIT 1000".encode()
    ).fetchall()
    return len(rows), [row[0] for row in rows[:3]]


def swap(
    connection: psycopg.Connection,
    schema: str,
    table: str,
    to: Conversion,
    policy: Policy,
    *,
    done: Callable[[OrdinaryTable], None],
    patience: float,
) -> tuple[Held, OrdinaryTable]:
    """Make the partitioned table and attach the old one, in one transaction under ACCESS EXCLUSIVE.

    Everything is read again under the lock: what was altered since the preflight is carried over as it is now, or refused.

    Args:
        connection: to the shard, in autocommit mode.
        schema: the table's schema.
        table: its name.
        to: what it is turned into; names of indexes are chosen here.
        policy: what it is partitioned by.
        done: called in the transaction at its end with the table as it was, for guards and marks.
        patience: seconds of tries for the locks.

    Returns:
        How long the lock was held, and the table as it was.

    Raises:
        LockTimeout: the locks could not be had. Nothing was changed.
        UnfitTable: the table was altered since the preflight, so that it cannot be converted any more.
    """
    started, tries = 0.0, 0
    first = ordinary.read(connection, schema, table)
    taken = names_in(connection, schema)

    def work() -> OrdinaryTable:
        nonlocal started, tries
        tries += 1
        table_lock, *others = carried.locks(first)
        connection.execute(table_lock.encode())
        started = time.monotonic()
        for statement in others:
            connection.execute(statement.encode())
        now = ordinary.read(connection, schema, table)
        found = convertible.reasons(now, policy, connection.info.server_version, extend_key=to.new_key is not None)
        if found:
            raise convertible.explain(now.name, connection.info.dbname, found)
        named = replace(to, renamed=carried.new_names(now, taken))
        _run(connection, carried.statements(now, named))
        done(now)
        return now

    before = locking.patiently(
        connection,
        [(schema, table), *((one["schema"], one["table"]) for one in first.inbound)],
        work,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        patience=patience,
        readers=True,
    )
    return Held((time.monotonic() - started) * 1000, tries), before


def names_in(connection: psycopg.Connection, schema: str) -> set[str]:
    """Names that relations and statistics objects have in a schema.

    Args:
        connection: to the shard.
        schema: the schema.
    """
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) UNION ALL "
        "SELECT stxname FROM pg_statistic_ext WHERE stxnamespace = to_regnamespace(quote_ident(%(schema)s))",
        {"schema": schema},
    ).fetchall()
    return {row[0] for row in rows}


def _run(connection: psycopg.Connection, statements: Sequence[str]) -> None:
    """All in one message: the lock is held while they run."""
    try:
        connection.execute(";\n".join(statements).encode())
    except (
        psycopg.errors.InvalidObjectDefinition,
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.InvalidTableDefinition,
        psycopg.errors.WrongObjectType,
        psycopg.errors.DependentObjectsStillExist,
        psycopg.errors.InsufficientPrivilege,
    ) as error:
        said = error.diag.message_primary or str(error)
        raise errors.UnfitTable(
            f"PostgreSQL refused a part of the conversion, and nothing was changed: {said}",
            fix=error.diag.message_hint or "change what it names, then run this again",
            detail=error.diag.message_detail,
        ) from error
