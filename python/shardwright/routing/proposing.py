"""What tables are, or could be: by their declarations, and for the rest by the column that they would be sharded by. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from shardwright.routing.tables import Declaration, declaration_of


def propose_key(metadata: sa.MetaData) -> str | None:
    """The column that most tables could be sharded by: one that they share, and that foreign keys go by.

    Args:
        metadata: the tables.

    Returns:
        Its name, or None where no two tables share a column that could be one.
    """
    shared: Counter[str] = Counter()
    tied: Counter[str] = Counter()
    for table in metadata.tables.values():
        for column in table.columns:
            if key_type_of(column.type) is None or (column.primary_key and len(table.primary_key.columns) == 1):
                continue
            shared[column.name] += 1
            tied[column.name] += bool(column.foreign_keys)
    best = max(shared, key=lambda name: (shared[name] + tied[name], tied[name], name), default=None)
    return best if best is not None and (shared[best] > 1 or tied[best]) else None


def propose(metadata: sa.MetaData, key: str | None, keyspace: str) -> dict[sa.Table, Declaration]:
    """What each table is, by its declaration or by the proposal of a key.

    Args:
        metadata: the tables.
        key: the column to propose.
        keyspace: the name of its keyspace.

    Raises:
        BadDeclaration: a declaration contradicts itself.
    """
    declared = {table: declaration_of(table) for table in metadata.tables.values()}
    found = {table: one for table, one in declared.items() if one is not None}
    if key is None:
        return found
    rest = [table for table, one in declared.items() if one is None]
    for table in rest:
        if key in {column.name for column in table.columns}:
            found[table] = Declaration("sharded", key, keyspace)
    owners = {
        foreign.column.table: foreign.column.name
        for table in rest
        for column in table.columns
        if column.name == key
        for foreign in column.foreign_keys
    }
    for table, name in owners.items():
        found.setdefault(table, Declaration("sharded", name, keyspace))
    for table in rest:
        if table not in found and not any(is_sharded(found, one) for one in above(table)):
            found[table] = Declaration("reference")
    return found


def key_type_of(type_: sa.types.TypeEngine[Any]) -> str | None:
    """PostgreSQL's name of a column's type where it can be a shard key, else None.

    Args:
        type_: the column's type.
    """
    plain = type_.impl_instance if isinstance(type_, sa.types.TypeDecorator) else type_
    if isinstance(plain, sa.Enum):
        return None
    for kind, name in (
        (sa.SmallInteger, "int2"),
        (sa.BigInteger, "int8"),
        (sa.Integer, "int4"),
        (sa.Uuid, "uuid"),
        (sa.LargeBinary, "bytea"),
        (sa.Text, "text"),
        (sa.String, "varchar"),
    ):
        if isinstance(plain, kind):
            return name
    return None


def keyspace_type_of(key_type: str) -> str:
    """The type of a keyspace that takes keys of a column's type: the widest of its family.

    Args:
        key_type: the column's.
    """
    return {"int2": "int8", "int4": "int8", "varchar": "text"}.get(key_type, key_type)


def keyspace_types(kinds: Mapping[sa.Table, Declaration]) -> dict[str, str]:
    """The type of each keyspace: what most of its key columns ask for.

    Args:
        kinds: what each table is.
    """
    asked: dict[str, Counter[str]] = {}
    for table, declared in kinds.items():
        if declared.keyspace is not None and (column := column_of(table, declared.key_column)) is not None:
            found = key_type_of(column.type)
            if found is not None:
                asked.setdefault(declared.keyspace, Counter())[keyspace_type_of(found)] += 1
    return {keyspace: types.most_common(1)[0][0] for keyspace, types in asked.items()}


def above(table: sa.Table) -> set[sa.Table]:
    """The tables that one depends on by foreign keys, however far.

    Args:
        table: that one.
    """
    found: set[sa.Table] = set()
    rest = [table]
    while rest:
        for constraint in rest.pop().foreign_key_constraints:
            there = constraint.referred_table
            if there is not table and there not in found:
                found.add(there)
                rest.append(there)
    return found


def is_sharded(kinds: Mapping[sa.Table, Declaration], table: sa.Table) -> bool:
    """Whether a table is known to be sharded.

    Args:
        kinds: what each table is.
        table: that one.
    """
    return table in kinds and kinds[table].kind == "sharded"


def column_of(table: sa.Table, name: str | None) -> sa.Column[Any] | None:
    """A table's column by its name in the database.

    Args:
        table: the table.
        name: the column's name.
    """
    return next((column for column in table.columns if column.name == name), None)
