"""The shard map in the catalog: its versions, written in the transaction that changes ranges, and reading the newest."""

from __future__ import annotations

import json

import psycopg

from shardwright import errors
from shardwright.routing.shard_map import Keyspace, Range, ShardMap


def load_map(catalog: psycopg.Connection) -> ShardMap:
    """The newest shard map; version 0 without keyspaces where none was ever written.

    Args:
        catalog: connection to the catalog.

    Raises:
        InvariantFailed: the stored map does not have the fingerprint that was stored with it.
    """
    row = catalog.execute(
        "SELECT version, fingerprint, map FROM shardwright.map_versions ORDER BY version DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return ShardMap(0, (), ())
    version, fingerprint, stored = row
    found = ShardMap.from_json(stored)
    if found.version != version or found.fingerprint != fingerprint:
        raise errors.InvariantFailed(
            f"shard map version {version} in the catalog is damaged: fingerprint {found.fingerprint}, not {fingerprint}",
            fix="shardwright.ranges holds the truth; restore the row of shardwright.map_versions from a backup",
        )
    return found


def map_version(catalog: psycopg.Connection) -> int:
    """The version of the newest shard map, 0 where there is none.

    Args:
        catalog: connection to the catalog.
    """
    row = catalog.execute("SELECT coalesce(max(version), 0) FROM shardwright.map_versions").fetchone()
    return int(row[0]) if row else 0


def current_map(catalog: psycopg.Connection, version: int) -> ShardMap:
    """The map that keyspaces and ranges amount to now.

    Args:
        catalog: connection to the catalog.
        version: the version to give it.
    """
    keyspaces = catalog.execute(
        "SELECT id, name, strategy, key_type, buckets FROM shardwright.keyspaces ORDER BY name"
    ).fetchall()
    ranges = catalog.execute(
        "SELECT r.id, k.name, lower(r.points), upper(r.points), r.shard "
        "FROM shardwright.ranges r JOIN shardwright.keyspaces k ON k.id = r.keyspace "
        "ORDER BY k.name, lower(r.points) NULLS FIRST"
    ).fetchall()
    return ShardMap(version, tuple(Keyspace(*row) for row in keyspaces), tuple(Range(*row) for row in ranges))


def write_version(catalog: psycopg.Connection, reason: str, operation: int | None = None) -> int:
    """Write the next version of the map from the ranges as they are in this transaction, and tell the routers.

    Call it in the transaction that changed the ranges. Writers of versions wait for each other here.

    Args:
        catalog: connection to the catalog, in a transaction.
        reason: why, for people.
        operation: the operation that changed them, if one did.

    Returns:
        The new version.
    """
    catalog.execute("LOCK TABLE shardwright.map_versions IN SHARE ROW EXCLUSIVE MODE")
    written = current_map(catalog, map_version(catalog) + 1)
    put_version(catalog, written, reason, operation)
    return written.version


def put_version(catalog: psycopg.Connection, written: ShardMap, reason: str, operation: int | None) -> None:
    """Write a version of the map that the caller made, and tell the routers; fails where that version exists already.

    Args:
        catalog: connection to the catalog, in the transaction that changed the ranges.
        written: the map.
        reason: why, for people.
        operation: the operation that changed the ranges, if one did.

    Raises:
        psycopg.errors.UniqueViolation: another version was written since.
    """
    catalog.execute(
        "INSERT INTO shardwright.map_versions (version, fingerprint, map, reason, operation) VALUES (%s, %s, %s, %s, %s)",
        (written.version, written.fingerprint, json.dumps(written.to_json()), reason, operation),
    )
    catalog.execute("SELECT pg_notify('shardwright_map', %s)", (str(written.version),))
