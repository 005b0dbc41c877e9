"""What is on the servers that nobody declared: taken down before anything is done and again at the end, and compared.

Nothing is asked of the code that makes or removes these things but how its marks and guards are called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import psycopg

from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.testing import final


class Thing(NamedTuple):
    """One object of a server."""

    kind: str
    name: str


#: Of one database, and of its server where they are shared. Tables are those in any schema that people or we made.
_THINGS = """
    WITH ours AS (SELECT oid, nspname FROM pg_namespace
                   WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
    SELECT 'slot', slot_name::text FROM pg_replication_slots
    UNION ALL SELECT 'publication', pubname::text FROM pg_publication
    UNION ALL SELECT 'subscription', subname::text FROM pg_subscription
    UNION ALL SELECT 'replication origin', roname FROM pg_replication_origin
    UNION ALL SELECT 'prepared transaction', gid FROM pg_prepared_xacts
    UNION ALL SELECT 'role', rolname::text FROM pg_roles
    UNION ALL SELECT 'event trigger', evtname::text FROM pg_event_trigger
    UNION ALL SELECT 'schema', nspname::text FROM ours
    UNION ALL SELECT 'relation', o.nspname || '.' || c.relname FROM pg_class c JOIN ours o ON o.oid = c.relnamespace
        WHERE c.relkind NOT IN ('i', 'I')
    UNION ALL SELECT 'function', o.nspname || '.' || p.proname FROM pg_proc p JOIN ours o ON o.oid = p.pronamespace
    UNION ALL SELECT 'trigger', o.nspname || '.' || c.relname || ' ' || t.tgname
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN ours o ON o.oid = c.relnamespace
        WHERE NOT t.tgisinternal
    UNION ALL SELECT 'unfinished index', i.indexrelid::regclass::text FROM pg_index i WHERE NOT i.indisvalid
    UNION ALL SELECT 'unfinished constraint', conrelid::regclass::text || ' ' || conname
        FROM pg_constraint WHERE NOT convalidated
    UNION ALL SELECT 'mark of what is gone', p.schema_name || '.' || p.name FROM shardwright.partitions p
        WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.relid AND c.relname = p.name)
    UNION ALL SELECT 'partition that gave way', schema_name || '.' || name FROM shardwright.partitions
        WHERE state IN ('replaced', 'made')
"""

#: Partitions of the registered tables: those that are attached, and marked ones that wait for their time to be dropped.
_PARTITIONS = """
    SELECT n.nspname || '.' || c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_class t ON t.oid = i.inhparent JOIN pg_namespace m ON m.oid = t.relnamespace
        WHERE m.nspname || '.' || t.relname = ANY (%(tables)s)
    UNION SELECT p.schema_name || '.' || p.name FROM shardwright.partitions p
        JOIN pg_class c ON c.oid = p.relid AND c.relname = p.name
        WHERE p.schema_name || '.' || p.parent = ANY (%(tables)s) AND p.state IN ('detached', 'archived')
"""

_GUARD = re.compile(r"shardwright\.guard_(?:insert|write|truncate)_(\d+)")
_GUARDING = re.compile(r"(.+) ~shardwright_(?:insert|write|truncate|leaf)")


def take_down(connection: psycopg.Connection[Any]) -> frozenset[Thing]:
    """Everything on a server that somebody made.

    Args:
        connection: to a shard.
    """
    return frozenset(Thing(*row) for row in connection.execute(_THINGS.encode()))


def find(
    catalog: psycopg.Connection[Any],
    cluster: str,
    shards: Mapping[Shard, psycopg.Connection[Any]],
    before: Mapping[str, frozenset[Thing]],
    registered: list[RegisteredTable],
) -> list[str]:
    """What is there at the end, was not there at the beginning, and is nothing that was declared; one line each.

    Args:
        catalog: connection to the catalog.
        cluster: the cluster's id.
        shards: connections to all shards.
        before: shard -> what was there when it had just joined.
        registered: the tables that are declared.
    """
    found = final.leftovers(catalog, cluster, "", list(shards))
    found += [
        f"catalog: {kind} of {table} on shard {shard}, {step}"
        for kind, table, shard, step in catalog.execute(
            "SELECT j.kind, t.table_name, j.shard, j.step FROM shardwright.partition_jobs j "
            "JOIN shardwright.tables t ON t.id = j.table_id ORDER BY 2, 3"
        )
    ]
    for shard, connection in shards.items():
        tables = {f"{table.schema_name}.{table.table_name}" for table in registered}
        tables |= {name for (name,) in connection.execute(_PARTITIONS, {"tables": sorted(tables)})}
        numbers = {str(table.id) for table in registered}
        found += [
            line
            for kind, name in sorted(take_down(connection) - before[shard.name])
            if not _is_declared(kind, name, tables, numbers) and (line := f"{shard.name}: {kind} {name}") not in found
        ]
    return found


def _is_declared(kind: str, name: str, tables: set[str], numbers: set[str]) -> bool:
    """Whether it is a table, a partition or a guard of a registered table."""
    if kind == "relation":
        return name in tables
    if kind == "function":
        guard = _GUARD.fullmatch(name)
        return guard is not None and guard[1] in numbers
    if kind == "trigger":
        guarding = _GUARDING.fullmatch(name)
        return guarding is not None and guarding[1] in tables
    return False
