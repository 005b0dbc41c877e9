"""Registered tables: which tables are sharded, by which key, which are copied everywhere, which live on one shard."""

from __future__ import annotations

import json
from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.catalog.layout import Layout
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import GuardedTable
from shardwright.routing.shard_map import ShardMap


@dataclass(frozen=True)
class RegisteredTable:
    """One registered table."""

    id: int
    schema_name: str
    table_name: str
    #: ``sharded``, ``reference``, ``global`` or ``local``.
    kind: str
    #: Name of the keyspace; None unless sharded.
    keyspace: str | None
    key_column: str | None
    #: Where a reference table is written or a global one lives; None for a sharded or local one.
    home_shard: str | None
    layout: Layout
    #: Its windows of time; None unless it is partitioned.
    policy: Policy | None = None

    @property
    def name(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema_name}.{self.table_name}"

    def is_on(self, shard: str) -> bool:
        """Whether the table exists on a shard.

        Args:
            shard: the shard's name.
        """
        return self.kind != "global" or self.home_shard == shard

    def is_guarded_on(self, shard: str) -> bool:
        """Whether writes to the table are judged on a shard.

        Args:
            shard: the shard's name.
        """
        return self.kind == "sharded" or (self.kind == "reference" and self.home_shard != shard)

    def guarded(self, shard_map: ShardMap) -> GuardedTable:
        """What its guards must know.

        Args:
            shard_map: gives the keyspace.
        """
        return GuardedTable(
            table_id=self.id,
            schema_name=self.schema_name,
            table_name=self.table_name,
            keyspace=shard_map.keyspace(self.keyspace) if self.keyspace is not None else None,
            key_column=self.key_column,
            home_shard=self.home_shard,
        )


def list_tables(catalog: psycopg.Connection, keyspace: str | None = None) -> list[RegisteredTable]:
    """Registered tables, by schema and name.

    Args:
        catalog: connection to the catalog.
        keyspace: only the tables of this one.
    """
    rows = catalog.execute(
        "SELECT t.id, t.schema_name, t.table_name, t.kind, k.name, t.key_column, t.home_shard, t.layout, t.policy "
        "FROM shardwright.tables t LEFT JOIN shardwright.keyspaces k ON k.id = t.keyspace "
        "WHERE %(keyspace)s::text IS NULL OR k.name = %(keyspace)s ORDER BY 2, 3",
        {"keyspace": keyspace},
    ).fetchall()
    return [
        RegisteredTable(
            number,
            schema,
            table,
            kind,
            space,
            key,
            home,
            Layout.from_json(layout),
            Policy.from_json(policy) if policy else None,
        )
        for number, schema, table, kind, space, key, home, layout, policy in rows
    ]


def get_table(catalog: psycopg.Connection, schema: str, table: str) -> RegisteredTable:
    """One registered table.

    Args:
        catalog: connection to the catalog.
        schema: its schema.
        table: its name.

    Raises:
        UnknownTable: it is not registered.
    """
    for found in list_tables(catalog):
        if (found.schema_name, found.table_name) == (schema, table):
            return found
    raise errors.UnknownTable(
        f"table {schema}.{table} is not registered", fix="shardwright table list", table=f"{schema}.{table}"
    )


def next_id(catalog: psycopg.Connection) -> int:
    """A number for a table that is about to be registered: its guards carry it before the catalog lists it.

    Args:
        catalog: connection to the catalog.
    """
    row = catalog.execute("SELECT nextval(pg_get_serial_sequence('shardwright.tables', 'id'))").fetchone()
    assert row is not None
    return int(row[0])


def record(catalog: psycopg.Connection, table: RegisteredTable) -> None:
    """Write a table into the catalog, or its layout and policy where it is there already.

    Args:
        catalog: connection to the catalog.
        table: what to write.
    """
    catalog.execute(
        "INSERT INTO shardwright.tables (id, schema_name, table_name, kind, keyspace, key_column, home_shard, layout, "
        "policy) OVERRIDING SYSTEM VALUE "
        "VALUES (%s, %s, %s, %s, (SELECT id FROM shardwright.keyspaces WHERE name = %s), %s, %s, %s, %s) "
        "ON CONFLICT (schema_name, table_name) DO UPDATE SET layout = excluded.layout, policy = excluded.policy",
        (
            table.id,
            table.schema_name,
            table.table_name,
            table.kind,
            table.keyspace,
            table.key_column,
            table.home_shard,
            json.dumps(table.layout.to_json()),
            json.dumps(table.policy.to_json()) if table.policy is not None else None,
        ),
    )


def split_name(name: str, default_schema: str = "public") -> tuple[str, str]:
    """Schema and table of a name given by a person: ``table``, ``schema.table``, either part quoted as in SQL.

    Unlike in SQL, letters keep their case without quotes too.

    Args:
        name: what was given.
        default_schema: the schema of a name without one.

    Raises:
        BadOption: it is no such name.
    """
    parts: list[str] = []
    rest = name
    while True:
        if rest.startswith('"'):
            end = 1
            while (end := rest.find('"', end)) != -1 and rest[end : end + 2] == '""':
                end += 2
            part, rest = (rest[1:end].replace('""', '"'), rest[end + 1 :]) if end != -1 else ("", "?")
        else:
            cut = rest.find(".")
            part, rest = (rest, "") if cut == -1 else (rest[:cut], rest[cut:])
        parts.append(part)
        if not rest.startswith("."):
            break
        rest = rest[1:]
    if rest or not all(parts) or len(parts) > 2 or any("\0" in part for part in parts):
        raise errors.BadOption(f"not a table's name: {name!r}", fix='give table, schema.table or "Schema"."Table"')
    return (default_schema, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
