"""Whether a partition can be cut as it is on a shard: every reason why not, each with its fix."""

from __future__ import annotations

import psycopg

from shardwright.partition import leaves, ordinary, room
from shardwright.partition.ordinary import OrdinaryTable
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite


def reasons(site: PartitionSite, fat: Partition) -> list[tuple[str, str]]:
    """Why a partition cannot be cut on a shard, each with its fix.

    Args:
        site: the table and shard.
        fat: the partition, as the catalog lists it.
    """
    table = site.table.name
    standing = leaves.find(site, fat.name)
    if standing is None or not standing.attached or standing.pending:
        return [(f"has no attached partition {fat.name}", "shardwright partition status")]
    if not standing.marked:
        return [(f"has a partition {fat.name} without our mark", f"shardwright partition adopt {table}")]
    found: list[tuple[str, str]] = []
    if leaves.bounds_of(site, standing) != fat.span:
        found.append(
            (f"has {fat.name} with other bounds than declared", f"attach it to {table} with those bounds again")
        )
    parent = ordinary.read(site.connection, site.schema, site.table.table_name)
    if not key_of(parent):
        found.append(
            (
                "has no primary key, and no other unique index of columns that are NOT NULL: changed rows could not be told",
                f"ALTER TABLE .. ADD PRIMARY KEY (..., {site.policy.column})",
            )
        )
    leaf = ordinary.read(site.connection, site.schema, fat.name)
    if leaf.relkind != "r":
        found.append((f"has {fat.name}, which is no ordinary table", "only such can be cut"))
    if leaf.force_row_security and not _sees_all(site.connection):
        found.append(
            (f"forces row security on {fat.name}: rows would be left out", "ALTER TABLE .. NO FORCE ROW LEVEL SECURITY")
        )
    for one in parent.inbound:
        if one["partitioned"] and site.connection.info.server_version < 180000:
            found.append(
                (
                    f"is pointed to by {one['name']} of the partitioned table {one['schema']}.{one['table']}, which before "
                    "PostgreSQL 18 would have to be checked under lock",
                    "drop that foreign key, and add it again afterwards",
                )
            )
    needed, free = leaf.bytes * 11 // 10, room.free_bytes(site.connection, site.schema, fat.name)
    if free is not None and free[1] < needed:
        found.append(
            (f"needs about {needed} bytes beside {fat.name}, and {free[1]} are free in {free[0]}", "make room there")
        )
    return found


def key_of(parent: OrdinaryTable) -> tuple[str, ...]:
    """The columns by which rows are told apart: the primary key, else a unique index of columns that are NOT NULL.

    Args:
        parent: the partitioned table.
    """
    not_null = {column["name"] for column in parent.columns if column["not_null"]}
    fitting = [
        one
        for one in parent.indexes
        if one["unique"]
        and one["valid"]
        and not one["partial"]
        and not one["expressions"]
        and set(one["columns"]) <= not_null
    ]
    fitting.sort(key=lambda one: (not one["primary"], len(one["columns"])))
    return tuple(fitting[0]["columns"]) if fitting else ()


def _sees_all(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user").fetchone()
    return row is not None and bool(row[0])
