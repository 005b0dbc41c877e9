"""Which locks statements take: written down by the server itself while it holds them, so that no sampling can miss one.

Fixtures:
    lock_log (function)    (dsn) -> LockLog of that database

An event trigger runs at the end of each DDL statement, in its transaction, and writes what the transaction holds: locks
are kept until its end, so the last statement's entry has those of all before it. What is not DDL is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

#: From weak to strong.
MODES = (
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)
_BY_NAME = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}

_INSTALL = """
CREATE SCHEMA lock_log;
CREATE TABLE lock_log.entry (
    n bigint GENERATED ALWAYS AS IDENTITY, xact text NOT NULL, tag text NOT NULL, relation oid NOT NULL, name text,
    mode text NOT NULL);
CREATE TABLE lock_log.known (relation oid PRIMARY KEY, name text NOT NULL);
CREATE FUNCTION lock_log.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lock_log.entry (xact, tag, relation, name, mode)
    SELECT pg_current_xact_id()::text, tg_tag, l.relation, c.relname, l.mode
    FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (c.oid IS NULL OR (c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace));
END $$;
CREATE EVENT TRIGGER lock_log ON ddl_command_end EXECUTE FUNCTION lock_log.note();
ALTER EVENT TRIGGER lock_log ENABLE ALWAYS
"""


@dataclass(frozen=True)
class Transaction:
    """What one transaction held at the end of its last DDL statement, and which statements it ran."""

    tags: tuple[str, ...]
    #: The strongest mode on each table; under the name that it had before, where it had one.
    locks: dict[str, str]


class LockLog:
    """The log of one database."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(_INSTALL)
        self.clear()

    def clear(self) -> None:
        """Forget what was written, and learn the names that tables have now."""
        with self.connection.transaction():
            self.connection.execute("TRUNCATE lock_log.entry, lock_log.known")
            self.connection.execute(
                "INSERT INTO lock_log.known SELECT oid, relname FROM pg_class "
                "WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
            )

    def transactions(self) -> list[Transaction]:
        """What was written since `clear`, in the order of the transactions' first statements."""
        found: dict[str, tuple[list[str], dict[str, str]]] = {}
        for xact, tag, name, mode in self.connection.execute(
            "SELECT e.xact, e.tag, coalesce(k.name, e.name), e.mode FROM lock_log.entry e "
            "LEFT JOIN lock_log.known k USING (relation) ORDER BY e.n"
        ).fetchall():
            tags, locks = found.setdefault(xact, ([], {}))
            if not tags or tags[-1] != tag:
                tags.append(tag)
            if name is None:
                continue  # made and dropped again, or an index that is gone
            said = _BY_NAME[mode]
            if name not in locks or MODES.index(said) > MODES.index(locks[name]):
                locks[name] = said
        return [Transaction(tuple(tags), locks) for tags, locks in found.values()]

    def strongest(self) -> dict[str, str]:
        """The strongest lock on each table over all transactions since `clear`."""
        found: dict[str, str] = {}
        for transaction in self.transactions():
            for name, mode in transaction.locks.items():
                if name not in found or MODES.index(mode) > MODES.index(found[name]):
                    found[name] = mode
        return found


@pytest.fixture
def lock_log() -> Iterator[Callable[[str], LockLog]]:
    made: list[LockLog] = []

    def make(dsn: str) -> LockLog:
        made.append(LockLog(dsn))
        return made[-1]

    yield make
    for log in made:
        log.connection.close()
