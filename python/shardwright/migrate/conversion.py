"""``op.convert_to_partitioned`` where the table is not partitioned yet.

A table with rows is converted by `shardwright partition convert`: a job of many transactions on all shards, with one
cut for all of them, which no revision on one shard could decide, and which a failed revision could not take back. Where
that was done the operation has nothing left to do. An empty table that the catalog does not know, as it
is when all revisions run on new databases, is simply made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg
from alembic.operations import Operations
from psycopg import sql

from shardwright import errors
from shardwright.catalog import ddl, probe
from shardwright.catalog.layout import Layout, layout_of
from shardwright.migrate import declared
from shardwright.migrate.connecting import driver
from shardwright.migrate.guarding import GUARD, Guard
from shardwright.routing.predicates import quote_identifier


def convert_here(operations: Operations, schema: str | None, table: str, info: Mapping[str, Any]) -> None:
    """Convert a table of the shard that a revision runs on, if it is empty and not registered yet.

    Args:
        operations: Alembic's.
        schema: the table's schema; None for the default one.
        table: its name.
        info: what is declared of it.

    Raises:
        MigrationRefused: it has to be converted before the revision runs.
        UnfitTable: it cannot be made partitioned.
    """
    context = operations.migration_context
    assert context.bind is not None
    raw = driver(context.bind)
    place = (schema or str(_one(raw, "SELECT current_schema()")), table)
    guard = context.config.attributes.get(GUARD) if context.config is not None else None
    before = str(_one(raw, "SELECT current_setting('search_path')"))
    with raw.transaction():
        name = sql.Identifier(*place)
        raw.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name))
        known = not isinstance(guard, Guard) or guard.has_registered(place)
        if known or probe.has_rows(raw, *place):
            raise errors.MigrationRefused(
                f"table {'.'.join(place)} is not partitioned yet, and it {'is registered' if known else 'has rows'}: "
                "its conversion is a job on all shards and not part of a revision",
                fix=f"shardwright partition convert {'.'.join(place)} --declared MODULE:NAME, with the models that "
                "declare it so; then run this again",
                table=".".join(place),
            )
        raw.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        _make_again(raw, layout_of(raw, *place), declared.policy_of(info).column)
        raw.execute("SELECT set_config('search_path', %s, true)", (before,))


def _make_again(raw: psycopg.Connection, layout: Layout, column: str) -> None:
    """Drop an empty table and make it as it was, partitioned; foreign keys that point to it come back too."""
    name = ddl.qualified(layout)
    pointing = raw.execute(
        "SELECT n.nspname, c.relname, o.conname, pg_get_constraintdef(o.oid) FROM pg_constraint o "
        "JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE o.contype = 'f' AND o.conparentid = 0 AND o.confrelid = %(name)s::regclass "
        "AND o.conrelid <> o.confrelid",
        {"name": name.as_string(raw)},
    ).fetchall()
    for schema, table, constraint, _ in pointing:
        raw.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                sql.Identifier(schema, table), sql.Identifier(constraint)
            )
        )
    # A partitioned table's constraint takes over no index: it is made from its own words.
    words: dict[str, str] = dict(
        raw.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass",
            (name.as_string(raw),),
        ).fetchall()
    )
    keys = tuple(replace(key, definition=words.get(key.name, key.definition)) for key in layout.keys)
    made = replace(layout, keys=keys, partition_by=f"RANGE ({quote_identifier(column)})")
    raw.execute(sql.SQL("DROP TABLE {}").format(name))
    try:
        ddl.create(raw, made)
        ddl.build_foreign_keys(raw, made)
    except errors.UnfitTable as error:
        raise errors.UnfitTable(
            f"table {layout.name} cannot be partitioned by {column}: {error.message}",
            fix="every primary key and unique constraint has to contain that column",
            table=layout.name,
        ) from error
    for schema, table, constraint, definition in pointing:
        raw.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
                sql.Identifier(schema, table), sql.Identifier(constraint), ddl.printed(definition)
            )
        )


def _one(raw: psycopg.Connection, question: str) -> Any:
    row = raw.execute(question.encode()).fetchone()
    assert row is not None
    return row[0]
