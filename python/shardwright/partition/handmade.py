"""A partitioned table that others made, as one shard has it: read from the catalogs, as values.

Bounds are what PostgreSQL says of each partition; no name is read. Only partitions that may have to become guards, and
the DEFAULT one, are looked into, and counted up to a bound.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Final

import psycopg
from psycopg import sql

from shardwright.partition.site import MOST_MOVED

#: Rows of a DEFAULT partition, or of one without an end, are counted up to here; so many can be moved under lock.
COUNTED: Final = MOST_MOVED

_PARENT = """
SELECT c.oid::int8, c.relkind, c.relispartition, coalesce(p.partstrat, ''), coalesce(pg_get_partkeydef(c.oid), ''),
       ARRAY(SELECT coalesce(a.attname, '') FROM unnest(p.partattrs::int2[]) WITH ORDINALITY k(num, at)
               LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num ORDER BY k.at),
       EXISTS (SELECT FROM unnest(p.partattrs::int2[]) num JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = num
                WHERE NOT a.attnotnull),
       ARRAY(SELECT format('%%I.%%I (%%I)', fn.nspname, f.relname, o.conname) FROM pg_constraint o
               JOIN pg_class f ON f.oid = o.conrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace
              WHERE o.confrelid = c.oid AND o.contype = 'f' AND o.conparentid = 0 ORDER BY 1)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
 WHERE n.nspname = %s AND c.relname = %s
"""

_LEAVES = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind, c.relpersistence, coalesce(pg_get_expr(c.relpartbound, 0), ''),
       i.inhdetachpending, pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE'),
       coalesce(p.role, ''), coalesce(p.state, ''),
       ARRAY(SELECT DISTINCT v.oid::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
               JOIN pg_class v ON v.oid = r.ev_class
              WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
                AND v.oid <> c.oid ORDER BY 1)
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN shardwright.partitions p ON p.schema_name = n.nspname AND p.name = c.relname AND p.relid = c.oid
 WHERE i.inhparent = %s::int8::oid ORDER BY c.relname
"""

# Those that the table itself has are attached to its own, and new partitions get them.
_INDEXES = """
SELECT i.indrelid::int8, ic.relname, o.conname, i.indisunique, i.indisexclusion,
       ARRAY(SELECT coalesce(a.attname, '') FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(num, at)
               LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
              WHERE k.at <= i.indnkeyatts ORDER BY k.at)
  FROM pg_inherits h JOIN pg_index i ON i.indrelid = h.inhrelid JOIN pg_class ic ON ic.oid = i.indexrelid
  LEFT JOIN pg_constraint o ON o.conindid = i.indexrelid AND o.contype IN ('p', 'u', 'x')
 WHERE h.inhparent = %s::int8::oid AND NOT EXISTS (SELECT FROM pg_inherits up WHERE up.inhrelid = i.indexrelid)
 ORDER BY ic.relname
"""


@dataclass(frozen=True)
class OwnIndex:
    """An index of one partition that the table does not have."""

    name: str
    #: The constraint that it serves; None without one.
    constraint: str | None
    unique: bool
    exclusion: bool
    #: Empty names stand for expressions.
    columns: tuple[str, ...]


@dataclass(frozen=True)
class FoundLeaf:
    """One partition."""

    relid: int
    schema: str
    name: str
    #: ``r`` table, ``p`` partitioned itself, ``f`` foreign.
    relkind: str
    #: ``p`` permanent, ``u`` unlogged, ``t`` temporary.
    persistence: str
    #: As PostgreSQL prints them in UTC; ``DEFAULT``; empty while it is being detached.
    bounds: str
    pending: bool
    owner: str
    #: Whether our role may act as its owner.
    ours_to_change: bool
    #: Of our mark, where it has one; else empty.
    role: str
    state: str
    #: Views that read it by its own name.
    views: tuple[str, ...] = ()
    indexes: tuple[OwnIndex, ...] = ()
    #: Rows, up to one more than `COUNTED`; None where it was not looked into.
    rows: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether it takes what no other takes."""
        return self.bounds == "DEFAULT"

    @property
    def has_many(self) -> bool:
        """Whether it has more rows than can be moved while the table is locked."""
        return self.rows is not None and self.rows > COUNTED

    @property
    def is_open(self) -> bool:
        """Whether it has no end on one side."""
        return "MINVALUE" in self.bounds or "MAXVALUE" in self.bounds


@dataclass(frozen=True)
class FoundTable:
    """The table and its partitions on one shard."""

    relid: int
    relkind: str
    #: Whether it is a partition of another one.
    leaf: bool
    #: ``r`` range, ``l`` list, ``h`` hash; empty where it is not partitioned.
    strategy: str
    #: As pg_get_partkeydef prints it.
    partition_by: str
    #: Columns of the partition key; an empty name stands for an expression.
    columns: tuple[str, ...]
    nullable: bool
    #: Foreign keys that point here: table (constraint).
    inbound: tuple[str, ...]
    leaves: tuple[FoundLeaf, ...] = ()

    @property
    def default(self) -> FoundLeaf | None:
        """Its DEFAULT partition."""
        return next((leaf for leaf in self.leaves if leaf.is_default), None)


def find(connection: psycopg.Connection, schema: str, table: str) -> FoundTable | None:
    """Read a table and its partitions.

    Args:
        connection: to the shard, with TimeZone and DateStyle pinned (as `engines` makes it).
        schema: its schema.
        table: its name.

    Returns:
        What there is, or None where there is no such relation.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = connection.execute(_PARENT, (schema, table)).fetchone()
        if row is None:
            return None
        oid, relkind, is_leaf, strategy, key, columns, nullable, inbound = row
        found = FoundTable(oid, relkind, is_leaf, strategy, key, tuple(columns), nullable, tuple(inbound))
        indexes: dict[int, list[OwnIndex]] = defaultdict(list)
        for relid, name, constraint, unique, exclusion, keys in connection.execute(_INDEXES, (oid,)).fetchall():
            indexes[relid].append(OwnIndex(name, constraint, unique, exclusion, tuple(keys)))
        leaves = []
        for *said, views in connection.execute(_LEAVES, (oid,)).fetchall():
            leaf = FoundLeaf(*said)
            leaves.append(replace(leaf, views=tuple(views), indexes=tuple(indexes[leaf.relid])))
        return replace(found, leaves=tuple(_counted(connection, leaf) for leaf in leaves))


def _counted(connection: psycopg.Connection, leaf: FoundLeaf) -> FoundLeaf:
    if not (leaf.is_default or leaf.is_open) or leaf.relkind != "r" or leaf.role in ("before", "after"):
        return leaf
    return replace(leaf, rows=count(connection, leaf.schema, leaf.name))


def count(connection: psycopg.Connection, schema: str, name: str) -> int:
    """Rows of one partition, up to one more than `COUNTED`.

    Args:
        connection: to the shard.
        schema: its schema.
        name: its name.
    """
    row = connection.execute(
        sql.SQL("SELECT count(*) FROM (SELECT FROM ONLY {} LIMIT {}) AS found").format(
            sql.Identifier(schema, name), sql.Literal(COUNTED + 1)
        )
    ).fetchone()
    assert row is not None
    return int(row[0])
