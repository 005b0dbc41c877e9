"""Whether a table can be what it is declared to be: each reason why not is one UnfitTable, with its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shardwright import errors
from shardwright.catalog.layout import Key, Layout
from shardwright.routing import judging
from shardwright.routing.judging import KeyColumn, Neighbour, Shape, UniqueKey
from shardwright.routing.policy import Policy
from shardwright.routing.shard_map import Keyspace

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
    shape = Shape(
        columns=[column.name for column in layout.columns],
        key=_key_column(facts, role.key_column),
        primary=primary.columns if primary is not None else None,
        primary_deferrable=bool(primary is not None and primary.deferrable),
        uniques=[
            UniqueKey(f"{_called(one)} {one.name}", one.columns)
            for one in layout.keys
            if one.unique and one.kind != "primary"
        ],
    )
    if role.kind != "sharded" or role.key_column is None or role.keyspace is None:
        reasons = judging.primary_reasons(shape)
    else:
        reasons = judging.sharding_reasons(shape, role.key_column, role.keyspace.name, role.keyspace.key_type)
    return [(reason.what, reason.fix) for reason in reasons]


def _called(key: Key) -> str:
    return {"unique": "the unique constraint", "exclude": "the exclusion constraint"}.get(key.kind, "the unique index")


def _key_column(facts: Mapping[str, Any], name: str | None) -> KeyColumn | None:
    if name is None or facts["key_type"] is None:
        return None
    return KeyColumn(
        name,
        facts["key_type"],
        facts["key_type_text"],
        not_null=facts["attnotnull"],
        builtin=facts["typtype"] == "b" and facts["builtin"],
        computed=bool(facts["attgenerated"]),
        always_identity=facts["attidentity"] == "a",
        deterministic=facts["deterministic"],
    )


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
        reason = judging.crossing(zip(key.columns, key.to_columns, strict=True), me, there)
        if reason:
            raise errors.UnfitTable(
                f"foreign key {key.name} of {layout.name} points to {key.to_schema}.{key.to_table}: {reason}",
                fix="drop it, or register both tables so that the rows meet on one shard",
                table=layout.name,
            )
