"""What the servers hold after a workload and an operation: for the checker, and what should not be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from shardwright import engines
from shardwright.catalog import references
from shardwright.catalog.roster import Shard
from shardwright.routing.shard_map import ShardMap
from shardwright.testing.checker import Final
from shardwright.testing.spec import Spec


def final_state(spec: Spec, shard_map: ShardMap, shards: Sequence[Shard], bases: Mapping[str, int]) -> Final:
    """Read the workload's tables from every shard, rows that it does not own included.

    Args:
        spec: of the workload.
        shard_map: the final one.
        shards: all shards.
        bases: table -> number of rows before the workload.
    """
    lists: dict[str, dict[str, Any]] = defaultdict(dict)
    counters: dict[str, dict[str, int]] = defaultdict(dict)
    rows: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for shard in shards:
        with engines.connect_shard(shard, "shardwright check") as connection:
            names = spec.lists
            for key, page, elements in _select(connection, names.table, names.key, names.page, names.elements):
                lists[f"{names.table}/{key}/{page}"][shard.name] = elements
            for key, number in _select(connection, spec.rows.table, spec.rows.key, spec.rows.id):
                rows[f"{spec.rows.table}/{key}"][shard.name].add(number)
            if spec.counters is not None:
                count = spec.counters
                for key, number, value in _select(connection, count.table, count.key, count.id, count.value):
                    if value:
                        counters[f"{count.table}/{key}/{number}"][shard.name] = value
    owners: dict[str, str] = {}
    typed = int if shard_map.keyspace(spec.keyspace).key_type in ("int2", "int4", "int8") else str

    def owner(key: str) -> str:
        shard_key = key.split("/", 2)[1]
        if shard_key not in owners:
            owners[shard_key] = shard_map.route(spec.keyspace, typed(shard_key)).shard
        return owners[shard_key]

    return Final(owner=owner, lists=lists, counters=counters, rows=rows, bases=bases)


def _select(connection: psycopg.Connection[Any], table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    statement = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier("public", table)
    )
    with connection.cursor() as cursor:
        yield from cursor.execute(statement)


def leftovers(catalog: psycopg.Connection[Any], cluster: str, home: str, shards: Sequence[Shard]) -> list[str]:
    """Everything on any server that a finished operation should have taken away, one line each.

    The publication and the subscriptions of the reference tables belong to the cluster, and are not counted.

    Args:
        catalog: connection to the catalog.
        cluster: the cluster's id.
        home: the shard where reference tables are written.
        shards: all shards.
    """
    found = [
        f"catalog: claim of operation {number}"
        for (number,) in catalog.execute("SELECT DISTINCT operation FROM shardwright.claims")
    ]
    found += [
        f"catalog: operation {number} is {phase}"
        for number, phase in catalog.execute(
            "SELECT id, phase FROM shardwright.operations WHERE phase NOT IN ('done', 'aborted')"
        )
    ]
    streams = {references.subscription_name(cluster, shard.name) for shard in shards if shard.name != home}
    for shard in shards:
        belongs: set[tuple[str, str]] = set()
        if shard.name == home:
            belongs = {("slot", name) for name in streams}
            belongs.add(("publication", references.publication_name(cluster)))
        else:
            belongs = {("subscription", references.subscription_name(cluster, shard.name))}
        with engines.connect_shard(shard, "shardwright check") as connection:
            objects = [(kind, name) for kind, name in connection.execute(_OBJECTS) if (kind, name) not in belongs]
            found += [f"{shard.name}: {kind} {name}" for kind, name in objects]
    return found


_OBJECTS = """
    SELECT 'slot', slot_name::text FROM pg_replication_slots
    UNION ALL SELECT 'publication', pubname::text FROM pg_publication
    UNION ALL SELECT 'subscription', subname::text FROM pg_subscription
    UNION ALL SELECT 'replication origin', roname FROM pg_replication_origin o
        WHERE NOT EXISTS (SELECT FROM pg_subscription s WHERE o.roname = 'pg_' || s.oid)
    UNION ALL SELECT 'prepared transaction', gid FROM pg_prepared_xacts
    UNION ALL SELECT 'role', rolname::text FROM pg_roles WHERE rolname LIKE 'sw\\_%'
    UNION ALL SELECT 'fencing token of operation', operation::text FROM shardwright.control
    UNION ALL SELECT 'marker', stream FROM shardwright.marker
    UNION ALL SELECT 'range that is ' || state, id::text FROM shardwright.ranges WHERE state <> 'open'
    ORDER BY 1, 2
"""
