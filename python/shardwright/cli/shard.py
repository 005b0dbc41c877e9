"""``shardwright shard``: add, list and remove shards."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from shardwright.catalog import budget as budgets
from shardwright.catalog import maps, shards, tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table
from shardwright.cli.table import windows_shown

app = App(name="shard", help="Add, list and remove shards.")


@app.command
def add(
    name: str,
    dsn: str,
    /,
    *,
    replication_dsn: str | None = None,
    weight: int = 1,
    region: str = "",
    accept_timeline: Annotated[bool, Parameter(negative=())] = False,
    common: Common = DEFAULTS,
) -> Answer:
    """Add a shard: it gets every registered table, and owns nothing yet.

    May be repeated: what is missing is mended, and a new address, weight or region is stored.

    Args:
        name: its name in this cluster: lower-case letters, digits, _ and -.
        dsn: its primary's connection string, without a password.
        replication_dsn: how other shards' servers reach it, where that is another way.
        weight: its share of the points, relative to the other shards.
        region: free text for people.
        accept_timeline: forget on which timelines its primary was seen: it was restored, and no other server is left.
    """
    from shardwright.partition.registering import first_windows

    with common.connect() as catalog:
        shard = shards.add_shard(
            catalog,
            name,
            dsn,
            replication_conninfo=replication_dsn,
            region=region,
            weight=weight,
            accept_timeline=accept_timeline,
        )
        shard_map = maps.load_map(catalog)
        windows = first_windows(common.dsn(), catalog, tables.list_tables(catalog))
    owns = shard.name in shard_map.shards()
    if not shard_map.keyspaces:
        steps = ["shardwright keyspace create users --type int8"]
    else:
        steps = [] if owns else [f"shardwright reshard plan --add {shard.name}"]
    major, minor = divmod(shard.server_version, 10000)
    return Answer(
        {
            "shard": shard.name,
            "server_version": shard.server_version,
            "owns_points": owns,
            "windows": windows.to_json() if windows is not None else None,
        },
        [
            f"shard {shard.name} is in the cluster (PostgreSQL {major}.{minor})",
            *(windows_shown(windows) if windows is not None else ()),
        ],
        next_steps=steps,
    )


@app.command(name="list")
def list_(*, common: Common = DEFAULTS) -> Answer:
    """List the shards."""
    with common.connect() as catalog:
        found = shards.list_shards(catalog)
    value = [
        {
            "name": shard.name,
            "dsn": shard.conninfo,
            "replication_dsn": shard.replication_conninfo,
            "weight": shard.weight,
            "region": shard.region,
            "server_version": shard.server_version,
            "system_identifier": shard.system_identifier,
            "connections": shard.connections,
        }
        for shard in found
    ]
    rows = [
        (
            shard.name,
            f"{shard.server_version // 10000}.{shard.server_version % 10000}",
            shard.weight,
            shard.region,
            shard.conninfo,
        )
        for shard in found
    ]
    return Answer(
        {"shards": value},
        [Table(("shard", "postgres", "weight", "region", "dsn"), rows, empty="no shard yet")],
        next_steps=["shardwright status"] if found else ["shardwright shard add s1 DSN"],
    )


@app.command
def budget(name: str, /, *, connections: int | None = None, common: Common = DEFAULTS) -> Answer:
    """Say how many connections all applications together may have to a shard; `shardwright doctor budget` checks it.

    Args:
        name: the shard's name.
        connections: how many; left out: as many as its server's max_connections leaves.
    """
    with common.connect() as catalog:
        shard = budgets.set_budget(catalog, name, connections)
    said = "as many connections as its server leaves" if connections is None else f"{connections} connections"
    return Answer(
        {"shard": shard.name, "connections": shard.connections},
        [f"applications may have {said} to shard {shard.name}"],
        next_steps=["shardwright doctor budget"],
    )


@app.command
def remove(
    name: str, /, *, forget: Annotated[bool, Parameter(negative=())] = False, common: Common = DEFAULTS
) -> Answer:
    """Remove a shard that owns nothing, and everything of shardwright from its database.

    Tables that shardwright made there are dropped where they have no rows. Others stay.

    Args:
        name: the shard's name.
        forget: its server is gone for good: do not call it.
    """
    with common.connect() as catalog:
        dropped = shards.remove_shard(catalog, name, forget=forget)
    shown = [f"shard {name} is removed", *(f"dropped the empty table {table}" for table in dropped)]
    return Answer({"removed": name, "dropped_tables": dropped}, shown, next_steps=["shardwright status"])
