"""Short locks on tables that an application is using: tried under a small lock_timeout, again and again, within a bound.

Whoever waits for a table's lock makes everybody behind it wait too. A wait is therefore cut short, and the next try
comes after a pause of random length.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from shardwright import errors

_Result = TypeVar("_Result")

#: What a lock for CREATE TRIGGER (SHARE ROW EXCLUSIVE) waits for; DROP TRIGGER waits for readers too.
_WRITERS = ("RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock",
            "AccessExclusiveLock")  # fmt: skip
_READERS = ("AccessShareLock", "RowShareLock")

#: String and number literals; a string may be cut off at its end.
_VALUES = re.compile(
    r"""\$(\w*)\$.*?(?:\$\1\$|$) | [eE]'(?:[^'\\]|\\.|'')*(?:'|$) | '(?:[^']|'')*(?:'|$)
    | (?<![\w$])\d+(?:\.\d+)?\b""",
    re.DOTALL | re.VERBOSE,
)


def patiently(
    connection: psycopg.Connection,
    tables: Sequence[tuple[str, str]],
    work: Callable[[], _Result],
    *,
    lock_timeout_ms: int = 200,
    patience: float = 30.0,
    readers: bool = False,
) -> _Result:
    """Run `work` in a transaction with a short lock_timeout, again after each time that it did not get its locks.

    Args:
        connection: to the shard, in autocommit mode.
        tables: schema and name of the tables that `work` locks, for naming who is in the way.
        work: takes locks and does something short; it is rolled back before each new try.
        lock_timeout_ms: how long one try may wait, and so make others wait.
        patience: seconds after which no new try is begun.
        readers: True when `work` takes ACCESS EXCLUSIVE locks.

    Returns:
        What `work` returned.

    Raises:
        LockTimeout: no try got its locks; the message names who was in the way. Nothing was changed.
    """
    deadline = time.monotonic() + patience
    blockers: list[str] = []
    timeout = lock_timeout_ms
    while True:
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{timeout}ms",))
                _hasten_autovacuum(connection, timeout)
                return work()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            pass
        seen, only_autovacuum = _blockers(connection, tables, readers)
        blockers = seen or blockers
        if time.monotonic() > deadline:
            names = ", ".join(f"{schema}.{table}" for schema, table in tables)
            raise errors.LockTimeout(
                f"no lock on {names} within {patience:g} s: " + ("; ".join(blockers) or "others came first each time"),
                fix="let those transactions end (or pg_terminate_backend them), then run this again",
                blockers=blockers,
            )
        # Where deadlock_timeout is not ours to lower, only a wait beyond it makes autovacuum step aside.
        timeout = 1500 if only_autovacuum else lock_timeout_ms
        time.sleep(random.uniform(0.05, 0.25))


def _hasten_autovacuum(connection: psycopg.Connection, timeout_ms: int) -> None:
    """Autovacuum steps aside once somebody has waited for deadlock_timeout: make that less than our lock_timeout."""
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('deadlock_timeout', %s, true)", (f"{max(timeout_ms // 2, 1)}ms",))
    except psycopg.errors.InsufficientPrivilege:
        pass


def _blockers(
    connection: psycopg.Connection, tables: Sequence[tuple[str, str]], readers: bool
) -> tuple[list[str], bool]:
    rows = connection.execute(
        "SELECT DISTINCT l.pid, coalesce(a.application_name, ''), coalesce(a.backend_type, ''), coalesce(a.state, ''), "
        "coalesce(extract(epoch FROM statement_timestamp() - a.xact_start), 0)::float8, coalesce(a.query, '') "
        "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace "
        "LEFT JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[])) AND l.mode = ANY (%s) ORDER BY 1",
        (
            [schema for schema, _ in tables],
            [table for _, table in tables],
            list(_WRITERS + _READERS if readers else _WRITERS),
        ),
    ).fetchall()
    said = [
        f"pid {pid} ({application or kind}, {state or 'running'} for {age:.1f} s){_query(query)}"
        if pid
        else "a prepared transaction"
        for pid, application, kind, state, age, query in rows
    ]
    return said, bool(rows) and all(kind == "autovacuum worker" for _, _, kind, _, _, _ in rows)


def _query(text: str) -> str:
    """The beginning of a statement, its values left out: they are the application's."""
    text = _VALUES.sub("?", " ".join(text[:2000].split()))
    return f": {text[:80]}{'...' if len(text) > 80 else ''}" if text else ""
