"""Values that are unique over all shards: how a column says so, and the directory that makes it true.

A shard can only see its own rows. So each value has one row in the directory, a sharded table whose key is the value
itself: it lives on the shard of its hash, whose primary key refuses a second one, and it moves like any other row.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shardwright import errors
from shardwright.routing.stored import as_stored
from shardwright.routing.tables import sharded_by

_UNIQUE = "shardwright.unique_across_shards"
_DIRECTORY = "shardwright.unique_directory"


def unique_across_shards() -> dict[str, Any]:
    """Declare that no two rows of a sharded table, on whatever shards, have one value in a column; NULL is no value.

    The table's metadata needs a `unique_directory`.

    Returns:
        An entry for ``Column.info``: ``mapped_column(info=unique_across_shards())``.
    """
    return {_UNIQUE: True}


def unique_directory(metadata: sa.MetaData, keyspace: str, *, name: str = "unique_values") -> sa.Table:
    """Declare the table that knows which row has which value; it is registered like any other.

    Args:
        metadata: of the tables whose columns are unique over all shards.
        keyspace: a hash keyspace of text: ``shardwright keyspace create values --type text``.
        name: the table's name in the database.

    Returns:
        The table: value, the column that it is a value of, and the shard key of the row that has it, as text.
    """
    table = sa.Table(
        name,
        metadata,
        sa.Column("value", sa.Text(collation="C"), primary_key=True),
        sa.Column("of_column", sa.Text(collation="C"), primary_key=True),
        sa.Column("owner", sa.Text(collation="C"), nullable=False),
        info=sharded_by("value", keyspace=keyspace),
    )
    metadata.info[_DIRECTORY] = table
    return table


@dataclass(frozen=True)
class Unique:
    """A column whose values are unique over all shards."""

    column: sa.Column[Any]
    directory: sa.Table

    @property
    def name(self) -> str:
        """How the directory calls it."""
        return f"{self.column.table}.{self.column.name}"

    def text(self, value: Any) -> str | None:
        """A value as the directory has it; None for NULL.

        Args:
            value: as an object's attribute has it.

        Raises:
            BadKey: it is none that can be looked up: an SQL expression, or of a type that has several spellings.
        """
        value = as_stored(value, self.column)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, (int, uuid.UUID)) and not isinstance(value, bool):
            return str(value)
        raise errors.BadKey(
            f"{self.name} is unique across shards, and {value!r} is no text, integer or UUID",
            fix="give a value of one of these types",
        )


def across_shards_of(table: sa.Table) -> tuple[Unique, ...]:
    """The columns of a table whose values are unique over all shards.

    Args:
        table: the table.

    Raises:
        BadDeclaration: it has some, and its metadata has no directory.
    """
    columns = [column for column in table.columns if _UNIQUE in column.info]
    if not columns:
        return ()
    directory = table.metadata.info.get(_DIRECTORY)
    if not isinstance(directory, sa.Table):
        raise errors.BadDeclaration(
            f"{table.fullname}.{columns[0].name} is unique across shards, and nothing says where its values are kept",
            fix='shardwright.unique_directory(Base.metadata, keyspace="values"), then: shardwright table register',
            table=table.fullname,
        )
    return tuple(Unique(column, directory) for column in columns)


def owner_text(key: Any) -> str:
    """A shard key as the directory has it.

    Args:
        key: the key.
    """
    return key.hex() if isinstance(key, bytes) else str(key)


def owner_key(text: str, key_type: str) -> Any:
    """The shard key that the directory has as text.

    Args:
        text: from the directory.
        key_type: the type of the keyspace's keys.
    """
    if key_type in ("int2", "int4", "int8"):
        return int(text)
    if key_type == "uuid":
        return uuid.UUID(text)
    return bytes.fromhex(text) if key_type == "bytea" else text
