"""Keeps the directory of values that are unique over all shards, as objects are written; and looks values up in it.

A row and its value's row in the directory are written in one transaction, on two shards, committed in two phases. So
there is never the one without the other, and nothing to expire or to clean: what a crash leaves in doubt, `tx recover`
ends, for both. The old value is read from the row itself, under its lock, and not from what the object remembers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, object_session
from sqlalchemy.sql import dml, elements, operators

from shardwright import errors
from shardwright.routing.uniques import Unique, across_shards_of, owner_key, owner_text

if TYPE_CHECKING:
    from shardwright.session.session import ShardSession

_known: WeakKeyDictionary[sa.Table, tuple[Unique, ...]] = WeakKeyDictionary()


def refuse_past_objects(statement: Any, params: Any) -> None:
    """Refuse a statement that would write a unique value, or take its row away, without the directory.

    Args:
        statement: what is to be executed.
        params: what it is executed with.

    Raises:
        WriteRefused: it would.
    """
    if not isinstance(statement, dml.UpdateBase) or not isinstance(statement.table, sa.Table):
        return
    uniques = _of_table(statement.table)
    if not uniques:
        return
    if isinstance(statement, dml.Update):
        rows: Iterable[Mapping[str, Any]] = (params,) if isinstance(params, Mapping) else params or ()
        written = {_name(one) for row in rows for one in row}
        values: Mapping[Any, Any] = getattr(statement, "_values", None) or {}
        ordered: Iterable[tuple[Any, Any]] = getattr(statement, "_ordered_values", None) or ()
        written |= {_name(one) for one in values} | {_name(one) for one, _ in ordered}
        uniques = tuple(one for one in uniques if one.column.name in written or one.column.key in written)
    if uniques:
        raise past_objects(uniques[0])


def refuse_bulk(*entities: Any) -> None:
    """Refuse SQLAlchemy's older bulk methods, which tell nobody what they write.

    Args:
        entities: what they would write: mapped classes or mappers.

    Raises:
        WriteRefused: a table has values that are unique across shards.
    """
    for entity in entities:
        if uniques := _of_mapper(sa.inspect(entity).mapper):
            raise past_objects(uniques[0])


def past_objects(unique: Unique) -> errors.WriteRefused:
    """The error for a write that the directory would not get to know.

    Args:
        unique: the column.
    """
    return errors.WriteRefused(
        f"{unique.name} is unique across shards, and only objects that are flushed keep its directory",
        fix="session.add(), change or session.delete() the objects",
    )


def find(session: ShardSession, criterion: Any) -> Any:
    """The shard key of the row that has a value; None where no row has it.

    Args:
        session: where to ask; without a key.
        criterion: ``User.email == "a@example.org"``.

    Raises:
        BadOption: it is not the comparison of such a column with a value.
    """
    unique, value = _asked(criterion)
    text = unique.text(value)
    if text is None:
        return None
    columns = unique.directory.c
    found = session.scalar(sa.select(columns.owner).where(columns.value == text, columns.of_column == unique.name))
    assert isinstance(unique.column.table, sa.Table)
    declared = session.cluster.known.declaration(unique.column.table)
    if found is None or declared is None:
        return None
    return owner_key(found, session.cluster.map.keyspace(declared.keyspace or "").key_type)


# ---------------------------------------------------------------------- objects that are flushed


@sa.event.listens_for(Mapper, "before_insert")
def _before_insert(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    for unique, session in _kept(mapper, target):
        attribute = mapper.get_property_by_column(unique.column).key
        value = sa.inspect(target).dict.get(attribute)
        if value is None and (unique.column.default is not None or unique.column.server_default is not None):
            raise errors.WriteRefused(
                f"{unique.name} is unique across shards, and its value would come from a default",
                fix="set it before the object is flushed",
            )
        _claim(session, unique, value, mapper, target)


@sa.event.listens_for(Mapper, "before_update")
def _before_update(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    for unique, session in _kept(mapper, target):
        attribute = mapper.get_property_by_column(unique.column).key
        if not sa.inspect(target).attrs[attribute].history.has_changes():
            continue
        before = _stored(mapper, connection, target, unique)
        value = sa.inspect(target).dict.get(attribute)
        if unique.text(before) != unique.text(value):
            _release(session, unique, before, mapper, target)
            _claim(session, unique, value, mapper, target)


@sa.event.listens_for(Mapper, "before_delete")
def _before_delete(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    for unique, session in _kept(mapper, target):
        _release(session, unique, _stored(mapper, connection, target, unique), mapper, target)


def _kept(mapper: Mapper[Any], target: Any) -> list[tuple[Unique, ShardSession]]:
    """The unique columns of an object that is flushed by a session of ours, with the session."""
    uniques = _of_mapper(mapper)
    if not uniques:
        return []
    from shardwright.session.session import ShardSession

    session = object_session(target)
    return [(unique, session) for unique in uniques] if isinstance(session, ShardSession) else []


def _claim(session: ShardSession, unique: Unique, value: Any, mapper: Mapper[Any], target: Any) -> None:
    if (text := unique.text(value)) is not None:
        _beside(session, unique, text).execute(
            sa.insert(unique.directory).values(value=text, of_column=unique.name, owner=_owner(session, mapper, target))
        )


def _release(session: ShardSession, unique: Unique, value: Any, mapper: Mapper[Any], target: Any) -> None:
    if (text := unique.text(value)) is not None:
        columns = unique.directory.c
        _beside(session, unique, text).execute(
            sa.delete(unique.directory).where(
                columns.value == text,
                columns.of_column == unique.name,
                columns.owner == _owner(session, mapper, target),
            )
        )


def _beside(session: ShardSession, unique: Unique, text: str) -> Connection:
    """The connection of the shard whose directory has a value."""
    from shardwright.session.routed import Routed

    way = session._way
    if not isinstance(way, Routed) or not way.two_phase:
        raise errors.CrossShardTransaction(
            f"{unique.name} is unique across shards: its directory is written together with the row, on another shard",
            fix='write it in a session without a key that has cross_shard="two_phase"',
        )
    declared = session.cluster.known.declaration(unique.directory)
    assert declared is not None
    return way.connection_beside(declared.keyspace or "", text)


def _owner(session: ShardSession, mapper: Mapper[Any], target: Any) -> str:
    return owner_text(session.cluster.known.mapped_key(mapper).of(sa.inspect(target)))


def _stored(mapper: Mapper[Any], connection: Connection, target: Any, unique: Unique) -> Any:
    """The value that the row has now; nobody else changes it until the transaction ends."""
    identity = sa.inspect(target).key
    assert identity is not None
    where = [column == value for column, value in zip(mapper.primary_key, identity[1], strict=True)]
    return connection.scalar(sa.select(unique.column).where(*where).with_for_update())


def _of_mapper(mapper: Mapper[Any]) -> tuple[Unique, ...]:
    return tuple(one for table in mapper.tables if isinstance(table, sa.Table) for one in _of_table(table))


def _of_table(table: sa.Table) -> tuple[Unique, ...]:
    found = _known.get(table)
    if found is None:
        found = _known[table] = across_shards_of(table)
    return found


def _name(column: Any) -> str:
    return str(getattr(column, "name", None) or getattr(column, "key", None) or column)


def _asked(criterion: Any) -> tuple[Unique, Any]:
    """The unique column and the value of a comparison."""
    if isinstance(criterion, elements.BinaryExpression) and criterion.operator is operators.eq:
        column, bound = criterion.left, criterion.right
        table = getattr(column, "table", None)
        table = getattr(table, "_deannotate", lambda: table)()
        if isinstance(table, sa.Table) and isinstance(bound, elements.BindParameter):
            for unique in _of_table(table):
                if unique.column.name == getattr(column, "name", None):
                    return unique, bound.effective_value
    raise errors.BadOption(
        "it is not the comparison of a column that is unique across shards with a value",
        fix='find(User.email == "a@example.org")',
    )
