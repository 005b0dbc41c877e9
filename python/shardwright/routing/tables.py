"""How a table says where its rows live: entries of ``Table.info``, and reading them back.

::

    class Order(Base):
        __tablename__ = "orders"
        __table_args__ = {"info": sharded_by("user_id") | time_partitioned("created_at", every="1 month")}

Each function returns a plain dict, so entries combine with ``|``: ``sharded_by("user_id") | {"owner": "billing"}``.
Each kind has a key of its own, so that a table which was given two kinds is noticed instead of the last one winning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardwright import errors
from shardwright.routing.judging import UniqueKey, lacking
from shardwright.routing.policy import Policy

if TYPE_CHECKING:
    from sqlalchemy import Table

_PREFIX = "shardwright."
_PARTITIONED = _PREFIX + "partitioned"
_FIELDS = {
    "sharded": {"key_column", "keyspace"},
    "reference": {"home"},
    "global": {"home"},
    "local": set[str](),
}


@dataclass(frozen=True)
class Declaration:
    """What a table declares: its kind, and what that kind needs."""

    #: ``sharded``, ``reference``, ``global`` or ``local``.
    kind: str
    #: Name of the key's column in the database; None unless sharded.
    key_column: str | None = None
    #: Name of the keyspace; None unless sharded.
    keyspace: str | None = None
    #: The shard where a reference table is written (None: the cluster's choice) or where a global table lives.
    home: str | None = None
    #: Its windows of time; None unless it is partitioned.
    policy: Policy | None = None


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


def local() -> dict[str, Any]:
    """Declare that every shard has a table with rows of its own: a row stays on the shard where it was written.

    Returns:
        An entry for ``Table.info``.
    """
    return {_PREFIX + "local": {}}


def time_partitioned(
    column: str,
    every: str,
    *,
    keep: str | None = None,
    ahead: int = 3,
    key: str | None = None,
    zone: str = "UTC",
    anchor: str | None = None,
    grace: str | None = "7 days",
    archive: str | None = None,
    guards: bool = True,
    snowflake_epoch: int = 0,
    snowflake_bits: int = 22,
) -> dict[str, Any]:
    """Declare that a table is partitioned by time, the same on every shard that has it.

    Alone it makes the table `local`; combine it with another kind: ``sharded_by("user_id") | time_partitioned(...)``.

    Args:
        column: name of the column in the database.
        every: length of a window: ``"6 hours"``, ``"1 day"``, ``"1 week"`` (ISO), ``"1 month"``, ``"1 quarter"``, ``"1 year"``.
        keep: how long a window is kept after its end; for ever unless given.
        ahead: how many whole windows exist ahead of the one of now.
        key: what the column holds, where its type does not say it: ``epoch_s``, ``epoch_ms``, ``epoch_us``, ``uuid7``,
            ``snowflake``.
        zone: IANA zone in which days and longer units begin.
        anchor: a moment at which some window begins, ISO 8601 in `zone`; the unit's own beginning unless given.
        grace: between detaching and dropping a window; None: dropped in the next run.
        archive: directory or URI that a window is archived to before it is dropped.
        guards: guard partitions at both ends, for rows that no window takes.
        snowflake_epoch: Unix milliseconds of a snowflake key's year zero.
        snowflake_bits: bits below the milliseconds of a snowflake key.

    Returns:
        An entry for ``Table.info``.

    Raises:
        BadDeclaration: the policy contradicts itself.
    """
    policy = Policy(
        column, every, keep, ahead, key, zone, anchor, grace, archive, guards, snowflake_epoch, snowflake_bits
    )
    return {_PARTITIONED: policy.to_json()}


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
    policy = _policy_of(table)
    kinds = [key.removeprefix(_PREFIX) for key in found if key != _PARTITIONED]
    if not kinds:
        return Declaration("local", policy=policy)
    if len(kinds) > 1:
        raise errors.BadDeclaration(
            f"table {table.fullname} is declared {' and '.join(sorted(kinds))}",
            fix="declare one of them",
            table=table.fullname,
        )
    kind, fields = kinds[0], table.info[_PREFIX + kinds[0]]
    if kind not in _FIELDS or not isinstance(fields, dict) or set(fields) != _FIELDS[kind]:
        raise errors.BadDeclaration(
            f"table {table.fullname} has an entry {_PREFIX}{kind} that no function of shardwright made",
            fix="use sharded_by(), reference(), global_on() or local()",
            table=table.fullname,
        )
    declaration = Declaration(kind, **fields, policy=policy)
    if declaration.key_column is not None and not any(
        column.name == declaration.key_column for column in table.columns
    ):
        raise errors.BadDeclaration(
            f"table {table.fullname} is sharded by {declaration.key_column}, a column that it does not have",
            fix=f"its columns are {', '.join(column.name for column in table.columns)}",
            table=table.fullname,
        )
    return declaration


def _policy_of(table: Table) -> Policy | None:
    fields = table.info.get(_PARTITIONED)
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise errors.BadDeclaration(
            f"table {table.fullname} has an entry {_PARTITIONED} that no function of shardwright made",
            fix="use time_partitioned()",
            table=table.fullname,
        )
    policy = Policy.from_json(fields)
    if not any(column.name == policy.column for column in table.columns):
        raise errors.BadDeclaration(
            f"table {table.fullname} is partitioned by {policy.column}, a column that it does not have",
            fix=f"its columns are {', '.join(column.name for column in table.columns)}",
            table=table.fullname,
        )
    return policy


def check_declared(table: Table, declaration: Declaration) -> None:
    """Check what a model can tell before any database is asked; PostgreSQL's own view is checked when it is registered.

    Args:
        table: a SQLAlchemy table.
        declaration: what it declares.

    Raises:
        BadDeclaration: the key column is nullable, or the primary key or a unique constraint lacks it.
    """
    if declaration.kind == "sharded" and declaration.key_column is not None:
        _check_unique(table, declaration.key_column, "sharded", "no shard can see another's rows")
    if declaration.policy is not None:
        _check_unique(table, declaration.policy.column, "partitioned", "no partition can see another's rows")


def _check_unique(table: Table, key: str, how: str, why: str) -> None:
    def refuse(what: str, fix: str) -> errors.BadDeclaration:
        return errors.BadDeclaration(
            f"table {table.fullname} is {how} by {key}, but {what}", fix=fix, table=table.fullname
        )

    if (how == "sharded" or table.primary_key.columns) and not any(
        column.name == key for column in table.primary_key.columns
    ):
        raise refuse("its primary key lacks that column", f"make it PRIMARY KEY ({key}, ...)")
    for unique in lacking(uniques_of(table), key):
        raise refuse(f"{unique.called} lacks that column", f"{why}: add the column to it")


def uniques_of(table: Table) -> list[UniqueKey]:
    """The unique keys that a model declares beside the primary key.

    Args:
        table: a SQLAlchemy table.
    """
    # Here and not above: whoever only reads declarations, such as most commands, is spared SQLAlchemy, half of their start.
    from sqlalchemy import Column, UniqueConstraint

    found = [
        UniqueKey(f"UNIQUE ({', '.join(names)})", names)
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
        for names in [tuple(column.name for column in constraint.columns)]
    ]
    for index in table.indexes:
        if index.unique:
            # What is an expression is no plain column.
            columns = tuple(part.name for part in index.expressions if isinstance(part, Column))
            found.append(UniqueKey(f"unique index {index.name}", columns))
    return found
