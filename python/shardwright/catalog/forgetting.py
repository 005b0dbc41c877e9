"""Forgetting a table: it goes on as a plain table of one shard, and no other shard has it any more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import psycopg

from shardwright import errors
from shardwright.catalog import adoption, created, locking, maps, privileges, probe, roster, sites, tables
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.shard_map import ShardMap


def forget(catalog: psycopg.Connection, names: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Undo the registration of tables whose rows are on one shard: that one keeps them. A local table stays on all.

    Copies that we made elsewhere are dropped: a reference table's with its rows, a sharded one's where it is empty.

    Args:
        catalog: connection to the catalog.
        names: schema and name of each.

    Returns:
        The shard where each table goes on, by ``schema.table``; of a local table all shards. Partitions stay as they are.

    Raises:
        UnknownTable: one is not registered.
        ClusterInUse: a sharded table's keyspace is owned by several shards.
        OperationConflict: an operation is live.
        LockTimeout: an application's transactions did not let us have a lock.
    """
    with roster.changing(catalog), ExitStack() as stack, privileges.needed("a shard"):
        roster.refuse_live_operations(catalog, "forgetting tables")
        shard_map = maps.load_map(catalog)
        gone = [tables.get_table(catalog, schema, table) for schema, table in names]
        rest = [table for table in tables.list_tables(catalog) if table not in gone]
        opened = sites.open_sites(stack, roster.list_shards(catalog))
        keepers = {table.name: _keepers(table, shard_map, list(opened)) for table in gone}
        if any(table.kind == "reference" for table in gone):
            adoption.connect_references(roster.cluster_id(catalog), opened, rest)
        # Those that point to others go first.
        for table in sorted(gone, key=lambda one: -one.id):
            for name, site in opened.items():
                if table.is_on(name):
                    _take_off(site.connection, table, keep=name in keepers[table.name])
        with catalog.transaction():
            for table in gone:
                catalog.execute("DELETE FROM shardwright.tables WHERE id = %s", (table.id,))
    return {table: ", ".join(shards) for table, shards in keepers.items()}


def _keepers(table: RegisteredTable, shard_map: ShardMap, shards: list[str]) -> list[str]:
    if table.kind == "local":
        return shards
    if table.keyspace is None:
        return [str(table.home_shard)]
    owners = sorted({one.shard for one in shard_map.ranges_of(table.keyspace)})
    if len(owners) > 1:
        raise errors.ClusterInUse(
            f"the rows of {table.name} are spread over {', '.join(owners)}",
            fix=f"shardwright reshard plan --drain {owners[-1]}, until one shard is left",
            table=table.name,
        )
    return owners


def _take_off(connection: psycopg.Connection, table: RegisteredTable, *, keep: bool) -> None:
    name = (table.schema_name, table.table_name)
    if not probe.has_table(connection, *name):
        return
    locking.patiently(connection, [name], partial(sites.remove_guards, connection, table), readers=True)
    if keep:
        connection.execute(
            "DELETE FROM shardwright.created WHERE kind = 'table' AND schema_name = %s AND name = %s", name
        )
        connection.execute("DELETE FROM shardwright.partitions WHERE schema_name = %s AND parent = %s", name)
    else:
        created.drop_table(connection, *name, even_with_rows=table.kind == "reference")
