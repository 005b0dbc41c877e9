"""Shards join and leave the cluster."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shardwright import engines, errors, ids
from shardwright.catalog import (
    adoption,
    generators,
    migrations,
    prepared,
    privileges,
    probe,
    references,
    roster,
    sites,
    tables,
)
from shardwright.catalog.roster import Shard, get_shard, list_shards
from shardwright.catalog.tables import RegisteredTable

__all__ = ["Shard", "list_shards", "get_shard", "add_shard", "remove_shard"]

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")

#: Versions that were tested. Older ones are refused, newer ones are tried with a warning.
_OLDEST, _NEWEST = 15, 18

#: The first minor releases without known faults in logical replication that lose or corrupt changes.
_SOUND = {15: 16, 16: 12, 17: 8, 18: 2}

_EXAMINE = """
SELECT current_setting('server_version_num')::int AS version, current_setting('wal_level') AS wal_level,
       getdatabaseencoding() AS encoding, (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database_oid,
       current_database() AS database
"""


def add_shard(
    catalog: psycopg.Connection,
    name: str,
    conninfo: str,
    *,
    replication_conninfo: str | None = None,
    region: str = "",
    weight: int = 1,
    accept_timeline: bool = False,
) -> Shard:
    """Take a database into the cluster as a shard that owns nothing yet.

    It gets the schema ``shardwright``, every registered table with its guards, and the reference tables' subscription.
    It is listed in the catalog last, so a run that broke off is simply repeated; on a shard that is listed already,
    that mends what is missing and stores the new address, region and weight.

    Args:
        catalog: connection to the catalog.
        name: lower-case letters, digits, ``_`` and ``-``; at most 31.
        conninfo: how we reach its primary, without a password.
        replication_conninfo: how other shards' servers reach it, where that is another way.
        region: free text for people.
        weight: the share of points that it should own, relative to the others.
        accept_timeline: forget the timelines that were seen: the server may be on a lower one, being restored.

    Returns:
        The shard.

    Raises:
        BadOption: the name, a connection string or the weight is wrong, or the name belongs to another database.
        SecretInConninfo: a connection string carries a password; nothing was stored.
        CannotConnect, PasswordMissing, NotPrimary: as their names say; a primary of old is none.
        UnfitServer: its version, wal_level or encoding will not do, or it belongs to another cluster.
        SameServer: the database is a shard already, under another name.
        UnfitTable, MisplacedRows: a registered table cannot be put there.
    """
    if not _NAME.fullmatch(name):
        raise errors.BadOption(
            f"not a shard's name: {name!r}", fix="lower-case letters, digits, _ and -, a letter first, at most 31"
        )
    if weight < 0:
        raise errors.BadOption(f"weight {weight} is below 0", fix="give 0 or more")
    conninfo = engines.without_secret(conninfo)
    if replication_conninfo is not None:
        replication_conninfo = engines.without_secret(replication_conninfo)
    known = next((shard for shard in list_shards(catalog) if shard.name == name), None)
    seen = known.timeline if known is not None and not accept_timeline else 0
    wanted = Shard(name, conninfo, replication_conninfo, region, weight, timeline=seen)
    with engines.connect_shard(wanted, "shardwright shard add") as there, privileges.needed(f"shard {name}"):
        facts = _examine(there, name)
        shard = Shard(
            name,
            conninfo,
            replication_conninfo,
            region,
            weight,
            facts["system_identifier"],
            facts["database_oid"],
            facts["version"],
        )
        with roster.changing(catalog):
            _refuse_twins(catalog, shard)
            migrations.apply(there, "shard")
            _identify(there, roster.cluster_id(catalog), name)
            _number(catalog, there, name)
            listed = any(other.name == name for other in list_shards(catalog))
            if not (listed and roster.live_operations(catalog)):
                # What an operation works on must not change under it; a shard that is new is in none.
                adoption.equip(catalog, shard)
            _record(catalog, shard)
            if accept_timeline:
                catalog.execute("DELETE FROM shardwright.timelines WHERE shard = %s", (name,))
    return shard


def remove_shard(catalog: psycopg.Connection, name: str, *, forget: bool = False) -> list[str]:
    """Take a shard that owns nothing out of the cluster, and everything of ours off its database.

    Tables that we made there are dropped where they have no rows; adopted ones, and those with rows, stay as they are.

    Args:
        catalog: connection to the catalog.
        name: the shard's name.
        forget: do not call the shard: its server is gone for good.

    Returns:
        The tables that were dropped.

    Raises:
        UnknownShard: there is none of that name.
        ClusterInUse: it owns points, is the home of tables, has rows in local tables, holds a prepared transaction, or a live
            operation works on it.
        CannotConnect, PasswordMissing, NotPrimary: it cannot be reached; nothing was changed.
    """
    with roster.changing(catalog), ExitStack() as stack, privileges.needed(f"shard {name}"):
        shard = get_shard(catalog, name)
        _refuse_use(catalog, shard)
        known = tables.list_tables(catalog)
        cluster = roster.cluster_id(catalog)
        stream = references.subscription_name(cluster, name)
        home = next((table.home_shard for table in known if table.kind == "reference"), None)
        origin = (
            stack.enter_context(engines.connect_shard(get_shard(catalog, home), "shardwright shard remove"))
            if home is not None
            else None
        )
        dropped: list[str] = []
        if forget:
            if origin is not None:
                references.drop_slot(origin, stream)
        else:
            there = stack.enter_context(engines.connect_shard(shard, "shardwright shard remove"))
            _refuse_local_rows(there, name, known)
            prepared.refuse_left(there, cluster, name)
            if origin is not None:
                references.unsubscribe(there, origin, stream)
            dropped = sites.clear(there, known, drop_tables=True)
        _forget(catalog, name)
    return dropped


def _examine(there: psycopg.Connection, name: str) -> dict[str, Any]:
    with there.cursor(row_factory=dict_row) as cursor:
        facts = cursor.execute(_EXAMINE).fetchone()
    assert facts is not None
    major, minor = divmod(facts["version"], 10000)

    def unfit(what: str, fix: str) -> errors.UnfitServer:
        return errors.UnfitServer(f"shard {name}: {what}", fix=fix, shard=name)

    if major < _OLDEST:
        raise unfit(f"PostgreSQL {major} is too old", f"use PostgreSQL {_OLDEST} to {_NEWEST}")
    if major > _NEWEST:
        _log.warning("shard %s runs PostgreSQL %s, which shardwright was not tested with", name, major)
    if minor < _SOUND.get(major, 0):
        _log.warning(
            "shard %s runs PostgreSQL %s.%s; faults of logical replication were mended up to %s.%s: upgrade before you reshard",
            name, major, minor, major, _SOUND[major],
        )  # fmt: skip
    if facts["wal_level"] != "logical":
        raise unfit(
            f"wal_level is {facts['wal_level']}, and rows are moved by logical replication",
            "ALTER SYSTEM SET wal_level = logical, then restart the server",
        )
    if facts["encoding"] != "UTF8":
        raise unfit(
            f"database {facts['database']} has encoding {facts['encoding']}: text would have other points",
            "use a database with encoding UTF8",
        )
    return facts


def _refuse_twins(catalog: psycopg.Connection, shard: Shard) -> None:
    for other in list_shards(catalog):
        same = (other.system_identifier, other.database_oid) == (shard.system_identifier, shard.database_oid)
        if same and other.name != shard.name:
            raise errors.SameServer(
                f"that database is shard {other.name} already, whatever its address",
                fix="give the address of another database",
                shard=other.name,
            )
        if other.name == shard.name and not same:
            raise errors.BadOption(
                f"there is a shard {shard.name} already, and it is another database",
                fix="choose another name, or remove that shard first",
                shard=shard.name,
            )


def _identify(there: psycopg.Connection, cluster: str, name: str) -> None:
    row = there.execute(
        "INSERT INTO shardwright.identity (cluster, shard) VALUES (%s, %s) "
        "ON CONFLICT (singleton) DO UPDATE SET shard = excluded.shard WHERE identity.cluster = excluded.cluster "
        "RETURNING shard",
        (cluster, name),
    ).fetchone()
    if row is None:
        raise errors.UnfitServer(
            f"shard {name}: the database belongs to another shardwright cluster",
            fix="remove it there first (shardwright shard remove, or leave)",
            shard=name,
        )


def _number(catalog: psycopg.Connection, there: psycopg.Connection, name: str) -> None:
    """Let the shard make ids, all of them later than what was made with its number before."""
    number, first = generators.number_for(catalog, name)
    there.execute(
        "UPDATE shardwright.identity SET generator = %s WHERE generator IS DISTINCT FROM %s", (number, number)
    )
    there.execute(
        "SELECT setval('shardwright.ids', %(first)s) FROM shardwright.ids WHERE last_value < %(first)s",
        {"first": first << ids.COUNT_BITS},
    )


def _record(catalog: psycopg.Connection, shard: Shard) -> None:
    catalog.execute(
        "INSERT INTO shardwright.shards (name, conninfo, replication_conninfo, region, weight, system_identifier, "
        "database_oid, server_version) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "conninfo = excluded.conninfo, replication_conninfo = excluded.replication_conninfo, region = excluded.region, "
        "weight = excluded.weight, server_version = excluded.server_version",
        (
            shard.name,
            shard.conninfo,
            shard.replication_conninfo,
            shard.region,
            shard.weight,
            shard.system_identifier,
            shard.database_oid,
            shard.server_version,
        ),
    )


def _refuse_use(catalog: psycopg.Connection, shard: Shard) -> None:
    roster.refuse_live_operations(catalog, f"removing shard {shard.name}")
    owned = catalog.execute(
        "SELECT k.name, range_agg(r.points)::text FROM shardwright.ranges r JOIN shardwright.keyspaces k "
        "ON k.id = r.keyspace WHERE r.shard = %s GROUP BY k.name ORDER BY k.name",
        (shard.name,),
    ).fetchall()
    for keyspace, points in owned:
        raise errors.ClusterInUse(
            f"shard {shard.name} owns points {points} of keyspace {keyspace}",
            fix=f"shardwright reshard plan --drain {shard.name}",
            shard=shard.name,
        )
    homed = [table.name for table in tables.list_tables(catalog) if table.home_shard == shard.name]
    if homed:
        raise errors.ClusterInUse(
            f"shard {shard.name} is the home of {', '.join(homed)}",
            fix=f"shardwright table forget {' '.join(homed)}, and register them with another home",
            shard=shard.name,
        )


def _refuse_local_rows(there: psycopg.Connection, name: str, known: Sequence[RegisteredTable]) -> None:
    filled = [
        table.name
        for table in known
        if table.kind == "local"
        and probe.has_table(there, table.schema_name, table.table_name)
        and probe.has_rows(there, table.schema_name, table.table_name)
    ]
    if filled:
        raise errors.ClusterInUse(
            f"shard {name} has rows of its own in {', '.join(filled)}",
            fix=f"copy or delete them; then shardwright shard remove {name}",
            shard=name,
        )


def _forget(catalog: psycopg.Connection, name: str) -> None:
    """Take the shard's row away, and the history that names it: the moves of ended operations."""
    with catalog.transaction():
        moves = "SELECT id FROM shardwright.moves WHERE source = %(name)s OR target = %(name)s"
        for statement in (
            f"DELETE FROM shardwright.handovers WHERE move IN ({moves})",
            f"DELETE FROM shardwright.batches WHERE move IN ({moves})",
            f"DELETE FROM shardwright.certificates WHERE move IN ({moves})",
            "DELETE FROM shardwright.moves WHERE source = %(name)s OR target = %(name)s",
            "DELETE FROM shardwright.shards WHERE name = %(name)s",
        ):
            catalog.execute(statement.encode(), {"name": name})
        generators.shard_is_gone(catalog, name)
