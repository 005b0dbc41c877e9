"""How a table says where its rows live: entries of ``Table.info``, and reading them back.

::

    class Order(Base):
        __tablename__ = "orders"
        __table_args__ = {"info": sharded_by("user_id", keyspace="users")}

Each function returns a plain dict, so entries combine with ``|``: ``sharded_by("user_id") | {"owner": "billing"}``.
Each kind has a key of its own, so that a table which was given two kinds is noticed instead of the last one winning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table
from sqlalchemy.schema import UniqueConstraint

from shardwright import errors

_PREFIX = "shardwright."
_FIELDS = {
    "sharded": {"key_column", "keyspace"},
    "reference": {"home"},
    "global": {"home"},
}


@dataclass(frozen=True)
class Declaration:
    """What a table declares: its kind, and what that kind needs."""

    #: ``sharded``, ``reference`` or ``global``.
    kind: str
    #: Name of the key's column in the database; None unless sharded.
    key_column: str | None = None
    #: Name of the keyspace; None unless sharded.
    keyspace: str | None = None
    #: The shard where a reference table is written (None: the cluster's choice) or where a global table lives.
    home: str | None = None


def sharded_by(column: str, keyspace: str = "users") -> dict[str, Any]:
    """Declare that a table's rows live where the value of one column says.

    Args:
        column: name of the column in the database.
        keyspace: name of the keyspace; tables of one keyspace are colocated.

    Returns:
        An entry for ``Table.info``.
    """
    return {_PREFIX + "sharded": {"key_column": column, "keyspace": keyspace}}


def reference(home: str | None = None) -> dict[str, Any]:
    """Declare that every shard has a full copy of a table, written on one of them.

    Args:
        home: the shard where it is written; by default the one that the cluster's other reference tables have, or the
            first shard by name.

    Returns:
        An entry for ``Table.info``.
    """
    return {_PREFIX + "reference": {"home": home}}


def global_on(shard: str) -> dict[str, Any]:
    """Declare that a table lives on one shard only.

    Args:
        shard: the shard's name.

    Returns:
        An entry for ``Table.info``.
    """
    return {_PREFIX + "global": {"home": shard}}


def declaration_of(table: Table) -> Declaration | None:
    """What a table declares about where its rows live, or None when it declares nothing.

    Args:
        table: a SQLAlchemy table.

    Raises:
        BadDeclaration: it declares two kinds, an unknown one, or a key column that it does not have.
    """
    found = [key for key in table.info if isinstance(key, str) and key.startswith(_PREFIX)]
    if not found:
        return None
    kinds = [key.removeprefix(_PREFIX) for key in found]
    if len(found) > 1:
        raise errors.BadDeclaration(
            f"table {table.fullname} is declared {' and '.join(sorted(kinds))}",
            fix="declare one of them",
            table=table.fullname,
        )
    kind, fields = kinds[0], table.info[found[0]]
    if kind not in _FIELDS or not isinstance(fields, dict) or set(fields) != _FIELDS[kind]:
        raise errors.BadDeclaration(
            f"table {table.fullname} has an entry {found[0]} that no function of shardwright made",
            fix="use sharded_by(), reference() or global_on()",
            table=table.fullname,
        )
    declaration = Declaration(kind, **fields)
    if declaration.key_column is not None and not any(
        column.name == declaration.key_column for column in table.columns
    ):
        raise errors.BadDeclaration(
            f"table {table.fullname} is sharded by {declaration.key_column}, a column that it does not have",
            fix=f"its columns are {', '.join(column.name for column in table.columns)}",
            table=table.fullname,
        )
    return declaration


def check_declared(table: Table, declaration: Declaration) -> None:
    """Check what a model can tell before any database is asked; PostgreSQL's own view is checked when it is registered.

    Args:
        table: a SQLAlchemy table.
        declaration: what it declares.

    Raises:
        BadDeclaration: the key column is nullable, or the primary key or a unique constraint lacks it.
    """
    if declaration.kind != "sharded":
        return
    key = declaration.key_column

    def refuse(what: str, fix: str) -> errors.BadDeclaration:
        return errors.BadDeclaration(
            f"table {table.fullname} is sharded by {key}, but {what}", fix=fix, table=table.fullname
        )

    if not any(column.name == key for column in table.primary_key.columns):
        raise refuse("its primary key lacks that column", f"make it PRIMARY KEY ({key}, ...)")
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint) and not any(column.name == key for column in constraint.columns):
            named = ", ".join(column.name for column in constraint.columns)
            raise refuse(
                f"UNIQUE ({named}) lacks that column", "no shard can see another's rows: add the key column to it"
            )
    for index in table.indexes:
        if index.unique and not any(getattr(part, "name", None) == key for part in index.expressions):
            raise refuse(f"unique index {index.name} lacks that column", "add the key column to it")
