"""What a migration may not do to a shard, whoever wrote it and in whatever words: drop, detach or rename what we manage.

A statement is looked at before it runs, for a message that names it; and before each commit the shard's own catalog
tells whether everything is still in its place, which no choice of words gets around.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from shardwright import errors, failpoints
from shardwright.catalog.tables import RegisteredTable
from shardwright.migrate.connecting import driver
from shardwright.migrate.declared import Name

#: Where a `Guard` is left for ``env.py`` in ``config.attributes``.
GUARD = "shardwright.guard"

_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_QUALIFIED = rf"{_NAME}(?:\s*\.\s*{_NAME})?"
_DROP = re.compile(rf"\bDROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?({_QUALIFIED}(?:\s*,\s*{_QUALIFIED})*)", re.IGNORECASE)
_DETACH = re.compile(rf"\bDETACH\s+PARTITION\s+({_QUALIFIED})", re.IGNORECASE)
#: Comments and texts: what only mentions a statement does not do it.
_MENTIONS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)

_PLACES = """
SELECT p.schema_name, p.name, p.relid::int8, p.parent, (SELECT i.inhparent::int8 FROM pg_inherits i WHERE i.inhrelid = c.oid)
  FROM shardwright.partitions p JOIN pg_class c ON c.oid = p.relid AND c.relname = p.name
  JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schema_name
"""
_TABLES = """
SELECT n.nspname, c.relname, c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""


class Guard:
    """Watches one connection to one shard while revisions run on it."""

    def __init__(
        self, connection: sa.Connection, registered: Sequence[RegisteredTable], still_ours: Callable[[], None]
    ) -> None:
        """Look at what is there, and watch from now on.

        Args:
            connection: to the shard, with no transaction open.
            registered: the tables that the catalog says are there.
            still_ours: called before each commit; raises where the run has lost its right to go on.
        """
        self._raw = driver(connection)
        self._still_ours = still_ours
        self._registered = {(table.schema_name, table.table_name): table for table in registered}
        #: a revision has run and is about to be committed
        self.in_revision = False
        #: something was committed on its own (autocommit_block): the revision cannot simply be run again
        self.committed_outside = False
        # Asked on the driver's own connection: these questions are none of the migration's.
        self.refresh()
        self._raw.rollback()
        event.listen(connection.engine, "before_cursor_execute", self._before)
        event.listen(connection.engine, "commit", self._commit)

    def refresh(self) -> None:
        """Look again: what is there now is what must stay."""
        self._partitions = self._places()
        self._tables = self._find(list(self._registered))

    def has_registered(self, place: Name) -> bool:
        """Whether the catalog knows a table.

        Args:
            place: its schema and name.
        """
        return place in self._registered

    def revision_has_run(self, **_: Any) -> None:
        """Alembic calls this between a revision and its commit."""
        self.in_revision = True

    def _places(self) -> dict[Name, tuple[int, str, int | None]]:
        rows = self._raw.execute(_PLACES.encode()).fetchall()
        return {(schema, name): (relid, parent, above) for schema, name, relid, parent, above in rows}

    def _find(self, names: Sequence[Name]) -> dict[Name, int]:
        values = ([schema for schema, _ in names], [table for _, table in names])
        return {(schema, name): oid for schema, name, oid in self._raw.execute(_TABLES.encode(), values).fetchall()}

    def _before(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self._raw.autocommit and not _reads(statement):
            self.committed_outside = True
        bare = _MENTIONS.sub(" ", statement)
        for verb, pattern in (("drops", _DROP), ("detaches", _DETACH)):
            for found in pattern.finditer(bare):
                for name in re.findall(_QUALIFIED, found[1]):
                    self._refuse_if_ours(verb, name)

    def _refuse_if_ours(self, verb: str, name: str) -> None:
        row = self._raw.execute("SELECT to_regclass(%s)::oid::int8", (name,)).fetchone()
        oid = row[0] if row is not None else None
        if oid is None:
            return
        for (schema, partition), (relid, parent, _) in self._partitions.items():
            if relid == oid:
                raise _refuse_partition(verb, (schema, partition), parent)
        for place, table_oid in self._tables.items():
            if table_oid == oid:
                raise _refuse_table(verb, place, self._registered[place])

    def _commit(self, _connection: Any) -> None:
        self._still_ours()
        now = self._places()
        for place, (relid, parent, above) in self._partitions.items():
            if place not in now or now[place][0] != relid:
                raise _refuse_partition("drops or renames", place, parent)
            if now[place][2] != above:
                raise _refuse_partition("attaches or detaches", place, parent)
        there = self._find(list(self._tables))
        for name, oid in self._tables.items():
            if there.get(name) != oid:
                raise _refuse_table("drops or renames", name, self._registered[name])
        if self.in_revision:
            failpoints.reach("migrate.before_commit")
            self.in_revision = False


def _reads(statement: str) -> bool:
    return statement.lstrip()[:6].upper() in ("SELECT", "SHOW")


def _refuse_partition(verb: str, place: Name, parent: str) -> errors.MigrationRefused:
    name = ".".join(place)
    return errors.MigrationRefused(
        f"the migration {verb} {name}, a partition of {parent} that shardwright manages",
        fix="take that out of the revision: the policy's keep, grace and archive decide what becomes of a partition",
        table=name,
    )


def _refuse_table(verb: str, place: Name, table: RegisteredTable) -> errors.MigrationRefused:
    name = ".".join(place)
    what = "partitioned by time" if table.policy is not None else table.kind
    return errors.MigrationRefused(
        f"the migration {verb} {name}, which is registered ({what})",
        fix=f"take that out of the revision, or give the table back first: shardwright table forget {name}",
        table=name,
    )
