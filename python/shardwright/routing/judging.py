"""What a table must be like so that each shard can keep its rules alone. Pure; each rule is written here and nowhere else.

Who asks: registration, about tables as PostgreSQL has them (`catalog.fitness`); declarations, about models
(`routing.tables`); and `shardwright lint`, about models that may not declare anything yet (`routing.readiness`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: Column types that give the same points as the keyspace's own: PostgreSQL hashes small and large integers alike.
ACCEPTS = {
    "int2": {"int2"},
    "int4": {"int2", "int4"},
    "int8": {"int2", "int4", "int8"},
    "text": {"text", "varchar"},
    "varchar": {"text", "varchar"},
    "uuid": {"uuid"},
    "bytea": {"bytea"},
}


@dataclass(frozen=True)
class Reason:
    """Why a table cannot be what it is to be."""

    #: the rule, in kebab-case
    rule: str
    #: goes behind "table x"
    what: str
    fix: str


@dataclass(frozen=True)
class KeyColumn:
    """The column that rows are sharded by."""

    name: str
    #: PostgreSQL's name of its type: int8, text, ...
    type: str
    #: the type as people write it
    shown: str
    not_null: bool
    #: it is one of PostgreSQL's own types
    builtin: bool = True
    #: GENERATED ALWAYS AS (expression)
    computed: bool = False
    #: GENERATED ALWAYS AS IDENTITY
    always_identity: bool = False
    deterministic: bool = True


@dataclass(frozen=True)
class UniqueKey:
    """A key whose values may appear once."""

    #: as in "the unique constraint orders_number_key"
    called: str
    #: its plain columns
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """What the rules look at."""

    columns: Sequence[str]
    #: None where there is no such column
    key: KeyColumn | None
    #: the columns of the primary key; None where there is none
    primary: tuple[str, ...] | None
    #: the unique keys beside it
    uniques: Sequence[UniqueKey] = ()
    primary_deferrable: bool = False


@dataclass(frozen=True)
class Neighbour:
    """What is known of a table that foreign keys point to or come from."""

    kind: str
    keyspace: str | None
    key_column: str | None
    home: str | None


def lacking(keys: Iterable[UniqueKey], column: str) -> list[UniqueKey]:
    """The unique keys that do not contain a column: nobody who sees one part of the rows can keep them unique.

    Args:
        keys: the table's.
        column: by which its rows are dealt out.
    """
    return [key for key in keys if column not in key.columns]


def primary_reasons(shape: Shape) -> Iterator[Reason]:
    """Why rows of a table could not be replicated.

    Args:
        shape: the table's.
    """
    if shape.primary is None:
        yield Reason("no-primary-key", "has no primary key", "ALTER TABLE .. ADD PRIMARY KEY")
    elif shape.primary_deferrable:
        yield Reason(
            "primary-key-deferrable",
            "has a deferrable primary key: replication cannot use it",
            "make the primary key NOT DEFERRABLE",
        )


def sharding_reasons(shape: Shape, key: str, keyspace: str, key_type: str) -> Iterator[Reason]:
    """Why a table cannot be sharded by a column.

    Args:
        shape: the table's.
        key: the column's name.
        keyspace: its keyspace's name.
        key_type: its keyspace's type.
    """
    if shape.key is None:
        yield Reason("no-shard-key", f"has no column {key}", f"its columns are {', '.join(shape.columns)}")
        return
    yield from _key_reasons(shape.key, keyspace, key_type)
    yield from primary_reasons(shape)
    if shape.primary is not None and key not in shape.primary:
        columns = ", ".join((key, *shape.primary))
        yield Reason("primary-key-lacks-key", f"has a primary key without {key}", f"make it PRIMARY KEY ({columns})")
    for unique in lacking(shape.uniques, key):
        yield Reason(
            "unique-key-lacks-key",
            f"has {unique.called} without {key}: no shard can see another's rows",
            f"add {key} to it, or drop it",
        )


def _key_reasons(key: KeyColumn, keyspace: str, key_type: str) -> Iterator[Reason]:
    if not key.builtin:
        yield Reason(
            "key-type",
            f"has the key column {key.name} of the user-defined type {key.shown}",
            "use the built-in type behind it",
        )
    elif key.type not in ACCEPTS[key_type]:
        yield Reason(
            "key-type",
            f"has the key column {key.name} of type {key.shown}, and keyspace {keyspace} has keys of type {key_type}",
            "change the column's type, or make a keyspace of that type",
        )
    if not key.not_null:
        yield Reason(
            "key-nullable",
            f"allows NULL in the key column {key.name}",
            f"ALTER TABLE .. ALTER COLUMN {key.name} SET NOT NULL",
        )
    if key.computed:
        yield Reason("key-computed", f"computes the key column {key.name}", "make it a column that is written")
    if key.always_identity:
        yield Reason(
            "key-from-database",
            f"has the key column {key.name} GENERATED ALWAYS: the shard cannot be chosen by a key that is not known yet",
            f"ALTER TABLE .. ALTER COLUMN {key.name} SET GENERATED BY DEFAULT, and give the key on INSERT",
        )
    if not key.deterministic:
        yield Reason(
            "key-collation",
            f"has the key column {key.name} with a non-deterministic collation: equal keys could have different points",
            "give the column a deterministic collation",
        )


def crossing(pairs: Iterable[tuple[str, str]], me: Neighbour, there: Neighbour | None) -> str:
    """Why a foreign key cannot be enforced by one shard alone: what it points to; empty where it can.

    Args:
        pairs: its columns, each with the one that it points to.
        me: the table that it comes from.
        there: the table that it points to; None where that is none of ours.
    """
    if there is None:
        return "" if me.kind == "global" else "a table that is not registered, and so not on every shard"
    if there.kind == "reference":
        ok = me.kind in ("sharded", "reference", "local") or me.home == there.home
        return "" if ok else f"a reference table whose home is shard {there.home}"
    if there.kind == "global":
        return "" if me.kind == "global" and me.home == there.home else f"a table that is on shard {there.home} only"
    if there.kind == "local":
        return "" if me.kind in ("local", "global") else "a table of which every shard has rows of its own"
    if me.kind != "sharded" or me.keyspace != there.keyspace:
        return "a sharded table of which a shard has only its part"
    if (me.key_column, there.key_column) not in list(pairs):
        return f"it does not tie {me.key_column} to {there.key_column}, so the two rows may be on different shards"
    return ""
