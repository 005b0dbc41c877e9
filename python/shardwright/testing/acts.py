"""What one operation of the workload does: an intent for the history, and a way to do it and to say what was seen.

The same operations exist twice: through a SQLAlchemy Session, as applications of the library work, and through a bare
psycopg connection, as a client works that knows nothing of shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shardwright.testing.history import Intent, Seen
from shardwright.testing.spec import Spec, counter_key, list_key, row_key

Context = TypeVar("Context")


@dataclass(frozen=True)
class Act(Generic[Context]):
    """One operation: what it is going to do, and the doing, which returns what was seen."""

    intent: Intent
    do: Callable[[Context], Seen | int | bool | None]


class SessionActs:
    """The operations through a Session; every statement names its shard key, so that routed sessions find it."""

    def __init__(self, spec: Spec) -> None:
        """Find the models that the spec names."""
        self._spec = spec
        models = spec.models()
        self._models = models
        self._lists, self._rows = models[spec.lists.table], models[spec.rows.table]

    def append(self, key: Any, page: int, element: int) -> Act[Session]:
        """Append an element to a page of a list, beginning the page if need be."""
        names, model = self._spec.lists, self._lists
        column = getattr(model, names.elements)
        fresh = insert(model).values({names.key: key, names.page: page, names.elements: [element]})
        statement = fresh.on_conflict_do_update(
            index_elements=[names.key, names.page],
            set_={names.elements: func.array_cat(column, fresh.excluded[names.elements])},
        ).returning(column)
        intent = Intent("append", list_key(self._spec, key, page), element)
        return Act(intent, lambda session: Seen.of(session.execute(statement).scalar_one()))

    def read(self, key: Any, page: int) -> Act[Session]:
        """Read a page of a list; one that is not there is empty."""
        names, model = self._spec.lists, self._lists
        statement = select(getattr(model, names.elements)).where(
            getattr(model, names.key) == key, getattr(model, names.page) == page
        )
        intent = Intent("read", list_key(self._spec, key, page))
        return Act(intent, lambda session: Seen.of(session.execute(statement).scalar_one_or_none() or ()))

    def add(self, key: Any, number: int) -> Act[Session]:
        """Add one to a counter that is there."""
        names = self._spec.counters
        assert names is not None
        model = self._models[names.table]
        column = getattr(model, names.value)
        statement = (
            update(model)
            .where(getattr(model, names.key) == key, getattr(model, names.id) == number)
            .values({names.value: column + 1})
            .returning(column)
            .execution_options(synchronize_session=False)
        )
        intent = Intent("add", counter_key(self._spec, key, number))
        # A counter that is not there is a finding, and not an end of the work: no addition can have made it 0.
        return Act(intent, lambda session: int(session.execute(statement).scalar_one_or_none() or 0))

    def look(self, key: Any, number: int) -> Act[Session]:
        """Read a counter; one that is not there is 0."""
        names = self._spec.counters
        assert names is not None
        model = self._models[names.table]
        statement = select(getattr(model, names.value)).where(
            getattr(model, names.key) == key, getattr(model, names.id) == number
        )
        intent = Intent("look", counter_key(self._spec, key, number))
        return Act(intent, lambda session: int(session.execute(statement).scalar_one_or_none() or 0))

    def insert(self, key: Any, number: int) -> Act[Session]:
        """Insert a row as an object of its class."""
        names, model = self._spec.rows, self._rows

        def do(session: Session) -> None:
            session.add(model(**{names.key: key, names.id: number}))
            session.flush()

        return Act(Intent("insert", row_key(self._spec, key), number), do)

    def delete(self, key: Any, number: int) -> Act[Session]:
        """Delete a row."""
        names, model = self._spec.rows, self._rows
        statement = (
            delete(model)
            .where(getattr(model, names.key) == key, getattr(model, names.id) == number)
            .execution_options(synchronize_session=False)
        )

        def do(session: Session) -> None:
            session.execute(statement)

        return Act(Intent("delete", row_key(self._spec, key), number), do)

    def find(self, key: Any, number: int) -> Act[Session]:
        """Ask for a row."""
        names, model = self._spec.rows, self._rows
        statement = select(getattr(model, names.id)).where(
            getattr(model, names.key) == key, getattr(model, names.id) == number
        )
        intent = Intent("find", row_key(self._spec, key), number)
        return Act(intent, lambda session: session.execute(statement).scalar_one_or_none() is not None)

    def count(self, table: str) -> Act[Session]:
        """Count the rows of a table on all shards (routed sessions only)."""
        statement = select(func.count()).select_from(self._models[table])
        return Act(Intent("count", table), lambda session: int(session.execute(statement).scalar_one()))


class DirectActs:
    """The operations of a client without the library: plain SQL on whatever server it is connected to."""

    def __init__(self, spec: Spec) -> None:
        """Compose the statements for the spec's tables."""
        self._spec = spec
        lists = spec.lists
        names = {
            "table": sql.Identifier(lists.table),
            "key": sql.Identifier(lists.key),
            "page": sql.Identifier(lists.page),
            "elements": sql.Identifier(lists.elements),
        }
        self._append = sql.SQL(
            "INSERT INTO {table} AS t ({key}, {page}, {elements}) VALUES (%s, %s, ARRAY[%s::int8]) "
            "ON CONFLICT ({key}, {page}) DO UPDATE SET {elements} = t.{elements} || excluded.{elements} "
            "RETURNING {elements}"
        ).format(**names)

    def append(self, key: Any, page: int, element: int) -> Act[psycopg.Connection[Any]]:
        """Append an element to a page of a list, beginning the page if need be."""

        def do(connection: psycopg.Connection[Any]) -> Seen:
            row = connection.execute(self._append, (key, page, element)).fetchone()
            return Seen.of(row[0] if row is not None else ())

        return Act(Intent("append", list_key(self._spec, key, page), element), do)
