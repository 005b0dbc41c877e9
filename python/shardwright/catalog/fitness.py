"""Whether a table can be what it is declared to be: each reason why not is one UnfitTable, with its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shardwright import errors
from shardwright.catalog.layout import Key, Layout
from shardwright.routing.policy import Policy
from shardwright.routing.shard_map import Keyspace

#: Column types that give the same points as the keyspace's own: PostgreSQL hashes small and large integers alike.
_ACCEPTS = {
    "int2": {"int2"},
    "int4": {"int2", "int4"},
    "int8": {"int2", "int4", "int8"},
    "text": {"text", "varchar"},
    "varchar": {"text", "varchar"},
    "uuid": {"uuid"},
    "bytea": {"bytea"},
}

_KINDS = {
    "f": ("a foreign table", "register the table where its rows are"),
    "v": ("a view", "register the tables that it reads"),
    "m": ("a materialized view", "register the tables that it reads"),
}

_FACTS = """
SELECT c.relkind, c.relpersistence, c.relrowsecurity, c.relreplident, c.reloftype <> 0 AS typed,
       EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid) AS child,
       EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS parent, c.relispartition AS leaf,
       NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = %(time)s AND NOT a.attnotnull
                                                AND NOT a.attisdropped) AS time_not_null,
       (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attname = %(time)s AND a.attnum > 0 AND NOT a.attisdropped) AS time_type,
       'RANGE (' || quote_ident(%(time)s) || ')' AS wanted_partition_by,
       ARRAY(SELECT rulename::text FROM pg_rewrite WHERE ev_class = c.oid AND ev_type <> '1' ORDER BY 1) AS rules,
       ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled IN ('A', 'R')
              ORDER BY 1) AS always,
       k.attnotnull, k.attgenerated, k.attidentity, ty.typname::text AS key_type, ty.typtype,
       ty.typnamespace = 'pg_catalog'::regnamespace AS builtin, format_type(k.atttypid, k.atttypmod) AS key_type_text,
       coalesce(co.collisdeterministic, true) AS deterministic
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = %(key)s AND k.attnum > 0 AND NOT k.attisdropped
  LEFT JOIN pg_type ty ON ty.oid = k.atttypid
  LEFT JOIN pg_collation co ON co.oid = k.attcollation
 WHERE n.nspname = %(schema)s AND c.relname = %(table)s
"""


@dataclass(frozen=True)
class Role:
    """What a table is to be."""

    #: ``sharded``, ``reference``, ``global`` or ``local``.
    kind: str
    keyspace: Keyspace | None = None
    key_column: str | None = None
    policy: Policy | None = None


def check(connection: psycopg.Connection, layout: Layout, role: Role, shard: str) -> None:
    """Check that a table can play its role.

    Args:
        connection: to the shard.
        layout: the table's layout there.
        role: what it is to be.
        shard: the shard's name, for the message.

    Raises:
        UnfitTable: it cannot; the first reason found, with its fix.
    """

    def unfit(what: str, fix: str) -> errors.UnfitTable:
        return errors.UnfitTable(
            f"table {layout.name} on shard {shard} {what}", fix=fix, table=layout.name, shard=shard
        )

    with connection.cursor(row_factory=dict_row) as cursor:
        facts = cursor.execute(
            _FACTS,
            {
                "schema": layout.schema,
                "table": layout.table,
                "key": role.key_column,
                "time": role.policy.column if role.policy is not None else None,
            },
        ).fetchone()
    if facts is None:
        raise unfit("is gone", "run the command again")
    for what, fix in (*_body(facts, role), *_partitions(facts, layout, role), *_key(facts, layout, role)):
        raise unfit(what, fix)


def _body(facts: Mapping[str, Any], role: Role) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if facts["relkind"] not in ("r", "p"):
        what, fix = _KINDS.get(facts["relkind"], ("no ordinary table", "register ordinary tables"))
        found.append((f"is {what}", fix))
    if facts["leaf"]:
        found.append(("is a partition", "register the table that it is a partition of"))
    elif facts["child"] or (facts["parent"] and facts["relkind"] != "p"):
        found.append(("takes part in inheritance", "ALTER TABLE .. NO INHERIT, or leave the table out"))
    if facts["typed"]:
        found.append(("is a typed table", "ALTER TABLE .. NOT OF"))
    if facts["relpersistence"] == "t":
        found.append(("is temporary", "register permanent tables"))
    if role.kind in ("global", "local"):
        return found
    if facts["relpersistence"] == "u":
        found.append(("is unlogged: it is in no replication stream", "ALTER TABLE .. SET LOGGED"))
    if facts["relrowsecurity"]:
        found.append(
            ("has row-level security: a copy would leave out rows", "ALTER TABLE .. DISABLE ROW LEVEL SECURITY")
        )
    if facts["rules"]:
        found.append((f"has rules ({', '.join(facts['rules'])}): they rewrite writes", "use triggers instead of rules"))
    if facts["always"]:
        names = ", ".join(facts["always"])
        found.append(
            (
                f"has triggers that fire in replication too ({names}): they would run again for each moved row",
                "ALTER TABLE .. ENABLE TRIGGER (without ALWAYS or REPLICA)",
            )
        )
    if facts["relreplident"] == "n":
        found.append(
            ("has REPLICA IDENTITY NOTHING: changes could not be replicated", "ALTER TABLE .. REPLICA IDENTITY DEFAULT")
        )
    return found


def _partitions(facts: Mapping[str, Any], layout: Layout, role: Role) -> list[tuple[str, str]]:
    policy = role.policy
    if policy is None:
        if facts["relkind"] != "p":
            return []
        return [
            (
                f"is partitioned by {layout.partition_by}, and no policy says how",
                'declare it: time_partitioned("COLUMN", every="1 month")',
            )
        ]
    column = policy.column
    if facts["time_type"] is None:
        return [(f"has no column {column}", f"its columns are {', '.join(column.name for column in layout.columns)}")]
    if facts["relkind"] == "r":
        return [
            (
                f"is not partitioned, and its policy wants it to be, by {column}",
                f"shardwright partition convert {layout.name}",
            )
        ]
    found: list[tuple[str, str]] = []
    if layout.partition_by != facts["wanted_partition_by"]:
        found.append(
            (
                f"is partitioned by {layout.partition_by}, and its policy wants {facts['wanted_partition_by']}",
                "declare the policy of the column that it is partitioned by",
            )
        )
    if not facts["time_not_null"]:
        found.append(
            (
                f"allows NULL in {column}, which no window can take",
                f"ALTER TABLE .. ALTER COLUMN {column} SET NOT NULL",
            )
        )
    return found


def _key(facts: Mapping[str, Any], layout: Layout, role: Role) -> list[tuple[str, str]]:
    if role.kind in ("global", "local"):
        return []
    primary = layout.primary_key
    found: list[tuple[str, str]] = []
    if primary is None:
        found.append(("has no primary key", "ALTER TABLE .. ADD PRIMARY KEY"))
    elif primary.deferrable:
        found.append(("has a deferrable primary key: replication cannot use it", "make the primary key NOT DEFERRABLE"))
    key, keyspace = role.key_column, role.keyspace
    if role.kind != "sharded" or key is None or keyspace is None:
        return found
    if facts["key_type"] is None:
        return [(f"has no column {key}", f"its columns are {', '.join(column.name for column in layout.columns)}")]
    found = _key_column(facts, key, keyspace) + found
    if primary is not None and key not in primary.columns:
        columns = ", ".join((key, *primary.columns))
        found.append((f"has a primary key without {key}", f"make it PRIMARY KEY ({columns})"))
    for unique in layout.keys:
        if unique.unique and unique.kind != "primary" and key not in unique.columns:
            found.append(
                (
                    f"has {_called(unique)} {unique.name} without {key}: no shard can see another's rows",
                    f"add {key} to it, or drop it",
                )
            )
    return found


def _called(key: Key) -> str:
    return {"unique": "the unique constraint", "exclude": "the exclusion constraint"}.get(key.kind, "the unique index")


def _key_column(facts: Mapping[str, Any], key: str, keyspace: Keyspace) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    shown = facts["key_type_text"]
    if facts["typtype"] != "b" or not facts["builtin"]:
        found.append((f"has the key column {key} of the user-defined type {shown}", "use the built-in type behind it"))
    elif facts["key_type"] not in _ACCEPTS[keyspace.key_type]:
        found.append(
            (
                f"has the key column {key} of type {shown}, and keyspace {keyspace.name} has keys of type "
                f"{keyspace.key_type}",
                "change the column's type, or make a keyspace of that type",
            )
        )
    if not facts["attnotnull"]:
        found.append((f"allows NULL in the key column {key}", f"ALTER TABLE .. ALTER COLUMN {key} SET NOT NULL"))
    if facts["attgenerated"]:
        found.append((f"computes the key column {key}", "make it a column that is written"))
    if facts["attidentity"] == "a":
        found.append(
            (
                f"has the key column {key} GENERATED ALWAYS: the shard cannot be chosen by a key that is not known yet",
                f"ALTER TABLE .. ALTER COLUMN {key} SET GENERATED BY DEFAULT, and give the key on INSERT",
            )
        )
    if not facts["deterministic"]:
        found.append(
            (
                f"has the key column {key} with a non-deterministic collation: equal keys could have different points",
                "give the column a deterministic collation",
            )
        )
    return found


@dataclass(frozen=True)
class Neighbour:
    """What is known of a table that foreign keys point to or come from."""

    kind: str
    keyspace: str | None
    key_column: str | None
    home: str | None


def check_references(layout: Layout, me: Neighbour, others: Mapping[tuple[str, str], Neighbour]) -> None:
    """Check that each foreign key can be enforced by one shard alone.

    Args:
        layout: the table with the foreign keys.
        me: what it is.
        others: every registered table, and those that are about to be, by schema and name.

    Raises:
        UnfitTable: a foreign key crosses shards.
    """
    for key in layout.keys:
        if key.kind != "foreign" or key.to_schema is None or key.to_table is None:
            continue
        there = others.get((key.to_schema, key.to_table))
        reason = _crosses(key, me, there)
        if reason:
            raise errors.UnfitTable(
                f"foreign key {key.name} of {layout.name} points to {key.to_schema}.{key.to_table}: {reason}",
                fix="drop it, or register both tables so that the rows meet on one shard",
                table=layout.name,
            )


def _crosses(key: Key, me: Neighbour, there: Neighbour | None) -> str:
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
    if (me.key_column, there.key_column) not in list(zip(key.columns, key.to_columns, strict=True)):
        return f"it does not tie {me.key_column} to {there.key_column}, so the two rows may be on different shards"
    return ""
