"""One shard: revisions run on it one by one, each in a transaction, again after each time that a lock was not to be had."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from shardwright import errors
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.migrate import scripts
from shardwright.migrate.connecting import connected, driver
from shardwright.migrate.facts import RUNNING, Running
from shardwright.migrate.guarding import GUARD, Guard


@dataclass(frozen=True)
class Order:
    """What is to be done on a shard."""

    #: ``upgrade``, ``downgrade`` or ``stamp``.
    verb: str
    target: str
    config: Path
    catalog_dsn: str
    lock_timeout_ms: int = 500
    #: Seconds after which no new try is begun.
    patience: float = 60.0


def heads(shard: Shard, config_file: Path) -> tuple[str, ...]:
    """The revisions that a shard is at; none where no migration has run.

    Args:
        shard: whom to ask.
        config_file: alembic.ini.
    """
    with connected(shard) as connection:
        return scripts.heads_on(scripts.configuration(config_file), connection)


def run(
    order: Order,
    shard: Shard,
    registered: Sequence[RegisteredTable],
    still_ours: Callable[[], None] = lambda: None,
    on_event: Callable[[str], None] = lambda text: None,
) -> tuple[str, ...]:
    """Bring one shard to a revision.

    Args:
        order: what to do.
        shard: where.
        registered: the tables that the catalog says are there.
        still_ours: called before each commit; raises where we have lost the right to go on.
        on_event: told of tries that failed.

    Returns:
        The revisions that it is at now.

    Raises:
        MigrationRefused: a revision would drop, detach or rename what we manage; it was rolled back.
        MigrationFailed: a revision failed; it was rolled back.
        LockTimeout: a revision did not get its locks.
        BadOption: Alembic does not know such a revision.
    """
    if not _alone.acquire(blocking=False):
        raise errors.InvariantFailed(
            "two migrations at once in one process: Alembic's op and context are the process's"
        )
    try:
        return _patiently(order, shard, registered, still_ours, on_event)
    finally:
        _alone.release()


_alone = threading.Lock()


def _patiently(
    order: Order,
    shard: Shard,
    registered: Sequence[RegisteredTable],
    still_ours: Callable[[], None],
    on_event: Callable[[str], None],
) -> tuple[str, ...]:
    deadline = time.monotonic() + order.patience
    while True:
        try:
            return _try(order, shard, registered, still_ours)
        except _NoLock as missed:
            if time.monotonic() > deadline:
                raise errors.LockTimeout(
                    f"a revision did not get its locks on shard {shard.name} within {order.patience:g} s: {missed}; "
                    + ("; ".join(missed.blockers) or "others came first each time"),
                    fix="let those transactions end (or pg_terminate_backend them), then run this again",
                    durable_change=missed.durable,
                    shard=shard.name,
                    blockers=missed.blockers,
                ) from None
            on_event(f"{shard.name}: {missed}; rolled back, trying again")
        time.sleep(random.uniform(0.1, 0.5))


class _NoLock(Exception):
    """A statement did not get its lock."""

    def __init__(self, what: str, durable: bool) -> None:
        super().__init__(what)
        self.durable = durable
        self.blockers: list[str] = []


def _try(
    order: Order, shard: Shard, registered: Sequence[RegisteredTable], still_ours: Callable[[], None]
) -> tuple[str, ...]:
    config = scripts.configuration(order.config)
    config.attributes[RUNNING] = Running(shard.name, order.catalog_dsn, order.patience)
    partitioned = [table for table in registered if table.policy is not None]
    try:
        with connected(
            shard, lock_timeout_ms=order.lock_timeout_ms, hold=partitioned, patience=order.patience
        ) as connection:
            before = scripts.heads_on(config, connection)
            guard = Guard(connection, registered, still_ours)
            config.attributes |= {"connection": connection, GUARD: guard}
            with _explained(shard, connection, guard, config, before):
                getattr(command, order.verb)(config, order.target)
            return scripts.heads_on(scripts.configuration(order.config), connection)
    except _NoLock as missed:
        missed.blockers = _oldest(shard)
        raise


@contextmanager
def _explained(
    shard: Shard, connection: sa.Connection, guard: Guard, config: Config, before: tuple[str, ...]
) -> Iterator[None]:
    """What goes wrong in a revision, in our words."""
    try:
        with scripts.speaking():
            yield
        return
    except DBAPIError as error:
        original = error.orig
        said = " ".join(str(original).split())
        locked = isinstance(original, (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected))
        cause: Exception = error
    except errors.ShardwrightError as error:
        error.facts.setdefault("shard", shard.name)
        raise
    except Exception as error:  # noqa: BLE001  a revision is a program of the user's: it may raise anything
        said, locked, cause = f"{type(error).__name__}: {' '.join(str(error).split())}", False, error
    after = _after(connection, config)
    where = f"after revision {', '.join(after) or 'base'}" if after is not None else "at an unknown revision"
    if locked and not guard.committed_outside:
        raise _NoLock(f"a lock was not to be had {where}", after != before)
    more = "; statements outside its transaction (autocommit_block) stay done" if guard.committed_outside else ""
    raise errors.MigrationFailed(
        f"a revision failed on shard {shard.name}, {where}: {said}{more}",
        fix="mend the revision, then run the same command again",
        durable_change=after != before or guard.committed_outside,
        shard=shard.name,
        at=list(after) if after is not None else None,
    ) from cause


def _after(connection: sa.Connection, config: Config) -> tuple[str, ...] | None:
    """Where a shard was left; None where it cannot be asked."""
    try:
        connection.rollback()
        return scripts.heads_on(config, connection)
    except (DBAPIError, errors.ShardwrightError):
        return None


def _oldest(shard: Shard) -> list[str]:
    """Who has had a transaction open for longest: most likely the one in the way."""
    with connected(shard) as connection:
        rows = driver(connection).execute(
            "SELECT pid, application_name, state, extract(epoch FROM clock_timestamp() - xact_start)::float8 "
            "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND xact_start IS NOT NULL AND backend_type = 'client backend' ORDER BY xact_start LIMIT 3"
        )
        return [f"pid {pid} ({name or 'client'}, {state} for {age:.1f} s)" for pid, name, state, age in rows]
