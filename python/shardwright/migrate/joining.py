"""A shard that joined after migrations had run: it has its tables from the catalog, and no word of any revision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg

from shardwright import engines, errors
from shardwright.catalog import roster
from shardwright.catalog.layout import Layout, find_layout
from shardwright.catalog.roster import Shard
from shardwright.migrate import one_shard
from shardwright.migrate.declared import Name
from shardwright.migrate.one_shard import Order

# Tables of the application: no leaf, no marked partition, nothing of ours, no version table.
_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('shardwright', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
   AND NOT EXISTS (SELECT FROM shardwright.partitions p WHERE p.relid = c.oid)
   AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'version_num' AND c.relnatts = 1)
"""


def stamp_newcomers(
    catalog: psycopg.Connection, order: Order, heads: dict[str, tuple[str, ...]], on_event: Callable[[str], None]
) -> None:
    """Give a shard without revisions those of the others, where it has the same tables as they have.

    An empty shard is left alone: every revision runs there.

    Args:
        catalog: connection to the catalog.
        order: whose configuration counts.
        heads: the revisions of every shard; brought up to date.
        on_event: told of each.

    Raises:
        MigrationRefused: it has some of the tables and not others, or different ones.
    """
    shards = roster.list_shards(catalog)
    settled = {found for found in heads.values() if found}
    if not settled or all(heads.values()):
        return
    there = {shard.name: _tables(shard) for shard in shards}
    for shard in shards:
        if heads[shard.name] or not there[shard.name]:
            continue
        model = next(name for name, found in heads.items() if found)
        lacking = _lacking(there[model], there[shard.name])
        if lacking or len(settled) > 1:
            raise errors.MigrationRefused(
                f"shard {shard.name} has tables and no revision, and is not as {model} is: "
                + ("; ".join(lacking[:5]) or "the others stand at different revisions"),
                fix="make what is missing there as it is on the others (pg_dump --schema-only), then run this again; "
                "a database that is migrated before it is added has no such trouble",
                shard=shard.name,
            )
        for head in heads[model]:
            heads[shard.name] = one_shard.run(replace(order, verb="stamp", target=head), shard, [])
        on_event(f"{shard.name}: has the tables of {', '.join(heads[model])}, which is noted there")


def _tables(shard: Shard) -> dict[Name, Layout]:
    with engines.connect_shard(shard, "shardwright migrate") as connection:
        names = connection.execute(_TABLES.encode()).fetchall()
        found = {(schema, table): find_layout(connection, schema, table) for schema, table in names}
    return {name: layout for name, layout in found.items() if layout is not None}


def _lacking(model: dict[Name, Layout], here: dict[Name, Layout]) -> list[str]:
    lines = []
    for name, layout in model.items():
        if name not in here:
            lines.append(f"{'.'.join(name)} is missing")
        else:
            lines += [f"{'.'.join(name)}: {line}" for line in layout.differences(here[name])]
    return lines
