"""The shard key of a mapped object: read from its attributes or its identity, before it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.sql import selectable

from shardwright import errors
from shardwright.routing.stored import as_stored
from shardwright.routing.tables import Declaration

Lookup = Callable[[selectable.TableClause], "Declaration | None"]


@dataclass(frozen=True)
class MappedKey:
    """Where the objects of one mapper carry what decides about their shard."""

    declaration: Declaration
    #: schema and name of the table
    table: tuple[str | None, str]
    #: attribute with the shard key; empty unless sharded
    attribute: str = ""
    column: sa.Column[Any] | None = None
    #: position of the key in the primary key, and so in an object's identity
    position: int = 0

    def of(self, state: InstanceState[Any]) -> Any:
        """The shard key of one object.

        Args:
            state: the object's state.

        Raises:
            NoShardKey: it is not set, and only the database would give it.
            WriteRefused: it was changed after the object was stored.
        """
        if state.key is not None:
            key = state.key[1][self.position]
            if self.attribute in state.committed_state and state.dict.get(self.attribute) != key:
                raise errors.WriteRefused(
                    f"{state.mapper.class_.__name__}.{self.attribute} is the shard key and cannot be changed: "
                    f"it was {key!r}",
                    fix="delete the object and add a new one",
                )
        else:
            key = state.dict.get(self.attribute)
            if key is None:
                key = self._default(state)
        return self.bound(key)

    def bound(self, key: Any) -> Any:
        """A shard key as the database has it, where the column's type is one of the application's.

        Args:
            key: as the attribute has it.
        """
        return key if self.column is None else as_stored(key, self.column)

    def _default(self, state: InstanceState[Any]) -> Any:
        """The value of a default that is Python's; it is set, so that the same one is stored."""
        default = self.column.default if self.column is not None else None
        if default is not None and (default.is_scalar or default.is_callable):
            key = default.arg(None) if default.is_callable else default.arg  # type: ignore[attr-defined]
            setattr(state.obj(), self.attribute, key)
            return key
        raise errors.NoShardKey(
            f"{state.mapper.class_.__name__}.{self.attribute} is not set, so no shard can be chosen",
            fix="set it before the object is flushed; the shard key cannot come from the database",
        )


def mapped_key(mapper: Mapper[Any], lookup: Lookup) -> MappedKey:
    """Find where a mapper's objects carry their shard key.

    Args:
        mapper: the mapper.
        lookup: what is declared of a table.

    Raises:
        UnknownTable: its table is neither declared nor registered.
        BadDeclaration: its primary key lacks the shard key.
    """
    table = mapper.local_table
    while mapper.inherits is not None and mapper.inherits.local_table is not None:
        mapper = mapper.inherits
        table = mapper.local_table
    if not isinstance(table, sa.Table):
        raise errors.UnknownTable(f"{mapper.class_.__name__} is mapped to no table", fix="map it to one")
    declared = lookup(table)
    if declared is None:
        raise unknown_table(table.fullname)
    name = (table.schema, table.name)
    if declared.kind != "sharded":
        return MappedKey(declared, name)
    for position, column in enumerate(mapper.primary_key):
        if isinstance(column, sa.Column) and column.name == declared.key_column and column.table is table:
            return MappedKey(declared, name, mapper.get_property_by_column(column).key, column, position)
    raise errors.BadDeclaration(
        f"the primary key of {mapper.class_.__name__} lacks its shard key {declared.key_column}",
        fix="make the shard key a part of the primary key",
    )


def unknown_table(name: str) -> errors.UnknownTable:
    """The error for a table that nobody declared.

    Args:
        name: the table's name.
    """
    return errors.UnknownTable(
        f"table {name} is neither declared nor registered, so nobody knows where its rows live",
        fix="declare it in Table.info and run `shardwright table register`",
        table=name,
    )
