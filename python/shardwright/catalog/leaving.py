"""Leaving: everything of ours is taken off a cluster that is down to one shard. A plain PostgreSQL database remains."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog import prepared, privileges, references, roster, sites, tables


@dataclass(frozen=True)
class Left:
    """What remains after leaving."""

    #: The last shard's name; None where the cluster had none.
    shard: str | None
    #: The tables that were registered; they stay there with their rows.
    tables: tuple[str, ...]


def leave(catalog: psycopg.Connection) -> Left:
    """Take guards, publications, slots and our schema off the last shard, then the catalog's schema off the catalog.

    May be run again after it broke off: the catalog's schema goes last.

    Args:
        catalog: connection to the catalog.

    Returns:
        What remains.

    Raises:
        ClusterInUse: there is more than one shard, a prepared transaction on it, or a live operation.
        CannotConnect, PasswordMissing, NotPrimary: the shard cannot be reached; nothing was changed.
        LockTimeout: an application's transactions did not let us take the guards off.
    """
    with roster.changing(catalog):
        for number, phase in roster.live_operations(catalog):
            raise errors.ClusterInUse(
                f"operation {number} is live ({phase})",
                fix=f"shardwright reshard finish {number}, or abort it",
                operation=number,
            )
        shards = roster.list_shards(catalog)
        if len(shards) > 1:
            names = ", ".join(shard.name for shard in shards)
            spare = _spare(catalog, [shard.name for shard in shards])
            raise errors.ClusterInUse(
                f"the cluster has {len(shards)} shards ({names}), and can be left with one",
                fix=f"shardwright reshard plan --drain {spare}; when it is done, shardwright shard remove {spare}",
                shards=[shard.name for shard in shards],
            )
        known = tables.list_tables(catalog)
        cluster = roster.cluster_id(catalog)
        prefix = references.publication_name(cluster).removesuffix("ref")
        for shard in shards:
            with engines.connect_shard(shard, "shardwright leave") as there, privileges.needed(f"shard {shard.name}"):
                prepared.refuse_left(there, cluster, shard.name)
                _drop_streams(there, prefix)
                sites.clear(there, known, drop_tables=False)
    catalog.execute("DROP SCHEMA shardwright CASCADE")
    return Left(shards[0].name if shards else None, tuple(table.name for table in known))


def _spare(catalog: psycopg.Connection, names: list[str]) -> str:
    """The shard that is best given up: one that is no table's home, and that owns the fewest ranges."""
    homes = {table.home_shard for table in tables.list_tables(catalog)}
    owned: dict[str, int] = dict(
        catalog.execute("SELECT shard, count(*) FROM shardwright.ranges GROUP BY shard").fetchall()
    )
    return min(names, key=lambda name: (name in homes, owned.get(name, 0), name))


def _drop_streams(there: psycopg.Connection, prefix: str) -> None:
    """Whatever publication, subscription or slot in this database carries this cluster's prefix."""
    for (name,) in there.execute(
        "SELECT subname FROM pg_subscription WHERE starts_with(subname, %s) "
        "AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1",
        (prefix,),
    ).fetchall():
        references.unsubscribe(there, None, name)
    for (name,) in there.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s) AND database = current_database()",
        (prefix,),
    ).fetchall():
        references.drop_slot(there, name)
    for (name,) in there.execute(
        "SELECT pubname FROM pg_publication WHERE starts_with(pubname, %s) ORDER BY 1", (prefix,)
    ).fetchall():
        there.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
