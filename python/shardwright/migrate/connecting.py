"""A SQLAlchemy connection to one shard, as a migration needs it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from shardwright import engines, errors
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.partition.site import LOCK_CLASS


@contextmanager
def connected(
    shard: Shard, *, lock_timeout_ms: int = 0, hold: Sequence[RegisteredTable] = (), patience: float = 60.0
) -> Iterator[sa.Connection]:
    """Open a connection whose unqualified names mean what they mean to the application's role.

    Args:
        shard: whom to call.
        lock_timeout_ms: how long a statement may wait for a lock; 0: for ever.
        hold: partitioned tables that nobody else may work on meanwhile.
        patience: seconds to wait for those who do.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary: as their names say.
        LockTimeout: somebody works on the partitions of one of `hold`.
    """
    raw = engines.connect_shard(shard, "shardwright migrate")
    try:
        # Ours is pg_catalog, for texts that do not depend on anybody. A migration's names are the application's.
        raw.execute("RESET search_path")
        raw.execute("SELECT set_config('lock_timeout', %s, false)", (f"{lock_timeout_ms}ms",))
        _hold(raw, shard, hold, patience)
        raw.autocommit = False
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: raw, poolclass=sa.StaticPool)
        with engine.connect() as connection:
            yield connection
    finally:
        raw.close()


def driver(connection: sa.Connection) -> psycopg.Connection:
    """The psycopg connection below.

    Args:
        connection: SQLAlchemy's.
    """
    found = connection.connection.driver_connection
    assert isinstance(found, psycopg.Connection)
    return found


def _hold(raw: psycopg.Connection, shard: Shard, tables: Sequence[RegisteredTable], patience: float) -> None:
    """A partition that is made while its parent changes would not fit it: ticks wait for us, and we for them."""
    deadline = time.monotonic() + patience
    for table in sorted(tables, key=lambda one: one.id):
        while True:
            row = raw.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, table.id)).fetchone()
            if row is not None and row[0]:
                break
            if time.monotonic() > deadline:
                raise errors.LockTimeout(
                    f"somebody works on the partitions of {table.name} on shard {shard.name}",
                    fix="wait for it, then run this again",
                    shard=shard.name,
                )
            time.sleep(0.1)


def release(raw: psycopg.Connection, table_id: int) -> None:
    """Let others work on a table's partitions.

    Args:
        raw: the connection that holds the lock.
        table_id: the table's number.
    """
    raw.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK_CLASS, table_id))
