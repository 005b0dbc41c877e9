"""What a shard has of all partitioned tables, read in one round trip.

From pg_inherits and not by pg_partition_tree, which leaves out pending detaches and locks every member. No leaf is
locked or opened, so a leaf that somebody works on does not make this wait. The server's TimeZone and DateStyle were
pinned when the connection was made: bounds are printed in UTC whatever its configuration says.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog import snapshots
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.partition import codecs
from shardwright.partition.shapes import (
    ForeignKey,
    GuardRows,
    Leaf,
    Needed,
    PartitionedTable,
    ShardShape,
    TableShape,
)
from shardwright.partition.site import MOST_MOVED

#: How long looking may wait for a lock: it only takes the weakest ones, on guards.
_LOCK_TIMEOUT = "2s"

_WANTED = "unnest(%(ids)s::int[], %(schemas)s::text[], %(names)s::text[]) AS w(id, schema, name)"

_PARENTS = f"""
SELECT w.id, c.oid::int8, c.relkind, pg_get_partkeydef(c.oid), clock_timestamp(), pg_is_in_recovery()
  FROM {_WANTED}
  LEFT JOIN pg_namespace n ON n.nspname = w.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
"""

# Partitions and marks are joined here and not by the server: of tables that were just made it knows so little that it
# would look through all marks for each partition.
_LEAVES = f"""
SELECT w.id, c.oid::int8, c.relname, c.relkind, pg_get_expr(c.relpartbound, 0), coalesce(i.inhdetachpending, false),
       c.relpages, c.reltuples::float8
  FROM {_WANTED}
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = w.name
  JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
"""

# The table that has a mark's name now, if there is one, need not be the one that was marked.
_MARKS = f"""
SELECT w.id, p.name, p.relid::int8, c.oid::int8, c.relkind, lower(p.span), upper(p.span), p.role, p.state, p.detached_at,
       c.relpages, c.reltuples::float8,
       CASE WHEN p.role IN ('before', 'after') AND p.relid = c.oid THEN pg_relation_size(c.oid) ELSE 0 END
  FROM {_WANTED}
  JOIN shardwright.partitions p ON p.schema_name = w.schema AND p.parent = w.name
  LEFT JOIN pg_namespace n ON n.nspname = w.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.name::name
"""

# Names that a new partition cannot have; those of partitions and of their indexes are known or never wanted.
_TAKEN = f"""
SELECT w.id, c.relname FROM {_WANTED}
  JOIN pg_namespace n ON n.nspname = w.schema
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname >= w.name::name COLLATE "C" AND NOT c.relispartition
   AND starts_with(c.relname::text, left(w.name, 20))
"""

_FOREIGN_KEYS = f"""
SELECT co.conname, n.nspname, c.relname, own.id, w.id, c.oid::int8,
       ARRAY(SELECT a.attname FROM unnest(co.conkey) WITH ORDINALITY k(num, at)
               JOIN pg_attribute a ON a.attrelid = co.conrelid AND a.attnum = k.num ORDER BY k.at),
       ARRAY(SELECT a.attname FROM unnest(co.confkey) WITH ORDINALITY k(num, at)
               JOIN pg_attribute a ON a.attrelid = co.confrelid AND a.attnum = k.num ORDER BY k.at)
  FROM {_WANTED}
  JOIN pg_namespace tn ON tn.nspname = w.schema JOIN pg_class t ON t.relnamespace = tn.oid AND t.relname = w.name
  JOIN pg_constraint co ON co.contype = 'f' AND co.confrelid = t.oid AND co.conparentid = 0
  JOIN pg_class c ON c.oid = co.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN {_WANTED.replace(" AS w(", " AS own(")} ON own.schema = n.nspname AND own.name = c.relname
 WHERE c.oid <> t.oid
"""

# Barriers that nobody needs any more, as far as one can see.
_BARRIERS = f"""
SELECT w.id FROM {_WANTED}
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = '{snapshots.TRIGGER}'
 WHERE NOT EXISTS (SELECT FROM ({snapshots.older_sql(snapshots.RAISED_BY_SQL)}) o WHERE o.certain)
"""


def partitioned(table: RegisteredTable) -> PartitionedTable:
    """What planning knows of a registered table with a policy.

    Args:
        table: one with a policy.

    Raises:
        UnfitTable: its column's type and the policy's key do not go together.
    """
    assert table.policy is not None
    column = next((one for one in table.layout.columns if one.name == table.policy.column), None)
    if column is None:
        raise errors.UnfitTable(
            f"table {table.name} has no column {table.policy.column}, by which it is partitioned",
            fix="mend the policy, then: shardwright table register MODULE:METADATA",
            table=table.name,
        )
    key = codecs.resolve_key(table.policy, column.type)
    return PartitionedTable(
        table.id,
        table.schema_name,
        table.table_name,
        table.kind,
        table.policy,
        key,
        table.keyspace,
        table.home_shard,
    )


def observe(
    shard: Shard,
    tables: Sequence[PartitionedTable],
    connection: psycopg.Connection | None = None,
    *,
    counted: int = MOST_MOVED,
) -> ShardShape:
    """Look at one shard.

    Args:
        shard: whom to ask.
        tables: the tables with a policy; those that are not on it are left out.
        connection: to it, where there is one already.
        counted: rows in a guard up to which they are looked at; beyond, there are more.

    Returns:
        What it has; with `problem` where it cannot be asked.
    """
    here = [table for table in tables if table.is_on(shard.name)]
    try:
        if connection is not None:
            return _observe(shard.name, here, connection, counted)
        with engines.connect_shard(shard, "shardwright partitions") as opened:
            return _observe(shard.name, here, opened, counted)
    except errors.PreconditionError as error:
        return ShardShape(shard.name, problem=(error.kind, error.message))
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege) as error:
        said = engines.redact(" ".join(str(error).split()))
        return ShardShape(shard.name, problem=("cannot-connect", f"shard {shard.name}: {said}"))


def _observe(name: str, tables: Sequence[PartitionedTable], connection: psycopg.Connection, counted: int) -> ShardShape:
    arguments = {
        "ids": [table.id for table in tables],
        "schemas": [table.schema for table in tables],
        "names": [table.name for table in tables],
    }
    sent = time.time()
    with connection.pipeline(), connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'".encode())
        clock = connection.execute("SELECT clock_timestamp(), pg_is_in_recovery()")
        parents, leaves, marked, taken, keys, barriers = (
            connection.execute(text.encode(), arguments)
            for text in (_PARENTS, _LEAVES, _MARKS, _TAKEN, _FOREIGN_KEYS, _BARRIERS)
        )
    row = clock.fetchone()
    assert row is not None
    now: datetime = row[0]
    # It was read at some moment between the two; a slow answer is no skew.
    skew = now.timestamp() - min(max(now.timestamp(), sent), time.time())
    if row[1]:
        raise errors.NotPrimary(f"shard {name} is a standby", fix="give the primary's address")
    by_id = {table.id: table for table in tables}
    found_leaves, guards = _leaves(by_id, leaves.fetchall(), marked.fetchall())
    names: dict[int, set[str]] = defaultdict(set)
    for table_id, relname in taken.fetchall():
        names[table_id].add(relname)
    idle = {table_id for (table_id,) in barriers.fetchall()}
    rows = _count_guards(connection, by_id, guards, counted)
    shapes = {
        table_id: TableShape(
            relkind,
            partition_by,
            tuple(found_leaves.get(table_id, ())),
            tuple(rows.get(table_id, ())),
            frozenset(names.get(table_id, ())),
            table_id in idle,
        )
        for table_id, _, relkind, partition_by, _, _ in parents.fetchall()
    }
    foreign = tuple(
        ForeignKey(key, schema, table, own, to, tuple(columns), tuple(to_columns))
        for key, schema, table, own, to, _, columns, to_columns in keys.fetchall()
    )
    return ShardShape(name, now, skew, shapes, foreign)


def _leaves(
    tables: Mapping[int, PartitionedTable], attached: Sequence[tuple[Any, ...]], marked: Sequence[tuple[Any, ...]]
) -> tuple[dict[int, list[Leaf]], list[tuple[int, str]]]:
    """Leaves by table, and the guards that are not surely empty."""
    found: dict[int, list[Leaf]] = defaultdict(list)
    guards: list[tuple[int, str]] = []
    marks = {(row[0], row[3]): row for row in marked if row[3] is not None}
    oids = set()
    for number, oid, name, relkind, text, pending, pages, rows in attached:
        table = tables[number]
        oids.add((number, oid))
        default = text == "DEFAULT"
        lower, upper = (None, None) if default or text is None else _bounds(table, text)
        _, _, relid, _, _, _, _, role, state, at, _, _, size = marks.get((number, oid), (None,) * 13)
        ours = relid == oid
        found[number].append(
            Leaf(
                name,
                lower,
                upper,
                True,
                pending,
                default or text is None,
                relkind,
                role if ours else "",
                state if ours else "",
                at,
                relid is not None and not ours,
                pages,
                rows,
            )
        )
        if size:
            guards.append((number, name))
    for number, name, relid, oid, relkind, lower, upper, role, state, at, pages, rows, _ in marked:
        if (number, oid) in oids:
            continue
        # made and not attached yet, detached, archived, or gone
        found[number].append(
            Leaf(
                name,
                lower,
                upper,
                False,
                relkind=relkind or "",
                role=role,
                state=state,
                detached_at=at,
                stranger=oid is not None and oid != relid,
                pages=pages or 0,
                rows=-1 if rows is None else rows,
            )
        )
    return found, guards


def _bounds(table: PartitionedTable, text: str) -> tuple[int | None, int | None]:
    return codecs.parse_bounds(table.policy, table.key, text)


def _count_guards(
    connection: psycopg.Connection,
    tables: Mapping[int, PartitionedTable],
    guards: Sequence[tuple[int, str]],
    counted: int,
) -> dict[int, list[GuardRows]]:
    found: dict[int, list[GuardRows]] = defaultdict(list)
    for number, name in guards:
        table = tables[number]
        column, leaf = sql.Identifier(table.policy.column), sql.Identifier(table.schema, name)
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM (SELECT FROM ONLY {} LIMIT {}) AS found").format(
                leaf, sql.Literal(counted + 1)
            )
        ).fetchone()
        if row is None or not row[0]:
            continue
        count, more = min(row[0], counted), row[0] > counted
        if more:
            found[number].append(GuardRows(name, count, more))
            continue
        values = [
            str(value)
            for (value,) in connection.execute(
                sql.SQL("SELECT {column}::text FROM ONLY {leaf} ORDER BY {column}").format(column=column, leaf=leaf)
            ).fetchall()
        ]
        finite = [value for value in values if "infinity" not in value]
        places = [place for value in finite[:1] + finite[-1:] if (place := _place(table, value)) is not None]
        found[number].append(
            GuardRows(
                name,
                count,
                False,
                min(places, default=None),
                max(places, default=None),
                tuple(dict.fromkeys((values[0], values[-1]))),
            )
        )
    return found


def _place(table: PartitionedTable, value: str) -> int | None:
    """Where a value lies on the policy's axis; that of its millisecond for keys that hold more than a time."""
    if table.key == "uuid7":
        value = str(uuid.UUID(int=uuid.UUID(value).int >> 80 << 80))
    elif table.key == "snowflake":
        bits = table.policy.snowflake_bits
        value = str(int(value) >> bits << bits)
    try:
        return codecs.parse_value(table.policy, table.key, value)
    except errors.UnfitTable:
        return None


def needed(
    connection: psycopg.Connection,
    shard: str,
    table: PartitionedTable,
    key: ForeignKey,
    windows: Collection[str],
    going: Collection[str],
) -> list[Needed]:
    """Which windows have rows that rows of another table refer to.

    Args:
        connection: to the shard.
        shard: its name.
        table: the table that is referred to.
        key: the foreign key.
        windows: names of partitions of that table; those that are not there are passed over.
        going: names of the referring table's own partitions that go first; their rows do not count.
    """
    there = {
        row[0]
        for row in connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = ANY(%s) AND c.relispartition",
            (table.schema, list(windows)),
        ).fetchall()
    }
    on = sql.SQL(" AND ").join(
        sql.SQL("child.{} = parent.{}").format(sql.Identifier(mine), sql.Identifier(theirs))
        for mine, theirs in zip(key.columns, key.to_columns, strict=True)
    )
    found = []
    for name in sorted(there):
        row = connection.execute(
            sql.SQL(
                "SELECT EXISTS (SELECT FROM ONLY {} AS parent JOIN {} AS child ON {} WHERE NOT child.tableoid = ANY("
                "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = {} AND c.relname = ANY({})))"
            ).format(
                sql.Identifier(table.schema, name),
                sql.Identifier(key.schema, key.table),
                on,
                sql.Literal(key.schema),
                sql.Literal(list(going)),
            )
        ).fetchone()
        if row is not None and row[0]:
            found.append(Needed(shard, table.id, name, key.full_name, key.name))
    return found
