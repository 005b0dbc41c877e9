"""The cluster at a glance: shards, keyspaces, tables, reference lag, routers, live operations. `shardwright status`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from shardwright import engines, errors
from shardwright.catalog import keyspaces, maps, migrations, references, roster, tables
from shardwright.routing.shard_map import ShardMap


@dataclass(frozen=True)
class ShardState:
    """One shard."""

    name: str
    #: ``ok``, ``unreachable``, ``behind`` (its schema is not this program's), ``lost`` (another database answers there).
    state: str
    #: Why, where the state is not ok.
    reason: str
    server_version: int
    region: str
    weight: int
    #: Points owned in each keyspace; None for an infinite number.
    owned: dict[str, int | None]


@dataclass(frozen=True)
class RouterState:
    """How the processes that have loaded the map stand."""

    #: Seen within the last minute.
    live: int
    #: Of those, with an older version of the map than the newest.
    behind: int


@dataclass(frozen=True)
class Overview:
    """The cluster at a glance."""

    cluster: str
    shard_map: ShardMap
    shards: tuple[ShardState, ...]
    tables: tuple[tables.RegisteredTable, ...]
    references: tuple[references.Lag, ...]
    operations: tuple[tuple[int, str], ...]
    routers: RouterState

    @property
    def next_steps(self) -> list[str]:
        """Command lines that make sense now."""
        if not self.shards:
            return ["shardwright shard add s1 DSN"]
        if any(shard.state == "behind" for shard in self.shards):
            return ["shardwright init"]
        if not self.shard_map.keyspaces:
            return ["shardwright keyspace create users --type int8"]
        if not self.tables:
            return ["shardwright table register MODULE:METADATA"]
        if self.operations:
            return [f"shardwright reshard status {number}" for number, _ in self.operations]
        idle = [shard.name for shard in self.shards if shard.weight and not any(_has(n) for n in shard.owned.values())]
        return [f"shardwright reshard plan --add {name}" for name in idle]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "cluster": self.cluster,
            "map_version": self.shard_map.version,
            "map_fingerprint": self.shard_map.fingerprint,
            "shards": [asdict(shard) for shard in self.shards],
            "keyspaces": [keyspace_json(self.shard_map, keyspace.name) for keyspace in self.shard_map.keyspaces],
            "tables": [table_json(table) for table in self.tables],
            "references": [asdict(lag) for lag in self.references],
            "operations": [{"operation": number, "phase": phase} for number, phase in self.operations],
            "routers": asdict(self.routers),
        }


def _has(count: int | None) -> bool:
    return count is None or count > 0


def look(catalog: psycopg.Connection) -> Overview:
    """Ask the catalog and every shard. A shard that does not answer is shown as such and stops nothing.

    Args:
        catalog: connection to the catalog.
    """
    shard_map, known = maps.load_map(catalog), tables.list_tables(catalog)
    cluster, members = roster.cluster_id(catalog), roster.list_shards(catalog)
    states: list[ShardState] = []
    with ExitStack() as stack:
        reached: dict[str, psycopg.Connection] = {}
        for shard in members:
            state, reason = "ok", ""
            try:
                connection = stack.enter_context(engines.connect_shard(shard, "shardwright status"))
                state, reason = _judge(connection, shard)
                reached[shard.name] = connection
            except errors.ShardwrightError as error:
                state, reason = "unreachable", error.message
            owned = {k.name: shard_map.owned(k.name, shard.name).count() for k in shard_map.keyspaces}
            states.append(
                ShardState(shard.name, state, reason, shard.server_version, shard.region, shard.weight, owned)
            )
        lags = _lags(reached, [shard.name for shard in members], known, cluster)
    return Overview(
        cluster,
        shard_map,
        tuple(states),
        tuple(known),
        tuple(lags),
        tuple(roster.live_operations(catalog)),
        _routers(catalog, shard_map.version),
    )


def _judge(connection: psycopg.Connection, shard: roster.Shard) -> tuple[str, str]:
    row = connection.execute(
        "SELECT (SELECT system_identifier::text FROM pg_control_system()), "
        "(SELECT oid::bigint FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    if row != (shard.system_identifier, shard.database_oid):
        return "lost", "another database answers at its address"
    try:
        migrations.check(connection, "shard")
    except errors.PreconditionError as error:
        return "behind", error.message
    return "ok", ""


def _lags(
    reached: dict[str, psycopg.Connection], names: list[str], known: list[tables.RegisteredTable], cluster: str
) -> list[references.Lag]:
    home = next((str(table.home_shard) for table in known if table.kind == "reference"), None)
    if home is None:
        return []
    count = sum(table.kind == "reference" for table in known)
    lags = []
    for name in names:
        if name == home:
            continue
        if name in reached and home in reached:
            lags.append(references.lag_of(reached[home], reached[name], home, name, cluster))
        else:
            lags.append(references.Lag(name, home, None, None, 0, count, "unreachable"))
    return lags


def _routers(catalog: psycopg.Connection, version: int) -> RouterState:
    row = catalog.execute(
        "SELECT count(*), count(*) FILTER (WHERE map_version < %s) FROM shardwright.routers "
        "WHERE seen_at > clock_timestamp() - interval '1 minute'",
        (version,),
    ).fetchone()
    return RouterState(*row) if row else RouterState(0, 0)


def keyspace_json(shard_map: ShardMap, name: str) -> dict[str, Any]:
    """One keyspace with its ranges, for ``--json``.

    Args:
        shard_map: which has it.
        name: the keyspace's name.
    """
    keyspace = shard_map.keyspace(name)
    return {
        "name": keyspace.name,
        "strategy": keyspace.strategy,
        "key_type": keyspace.key_type,
        "buckets": keyspace.buckets,
        "rule": keyspaces.describe(keyspace),
        "ranges": [{"id": r.id, "lo": r.lo, "hi": r.hi, "shard": r.shard} for r in shard_map.ranges_of(name)],
    }


def table_json(table: tables.RegisteredTable) -> dict[str, Any]:
    """One registered table, for ``--json``.

    Args:
        table: which.
    """
    return {
        "schema": table.schema_name,
        "table": table.table_name,
        "kind": table.kind,
        "keyspace": table.keyspace,
        "key": table.key_column,
        "home": table.home_shard,
        "policy": table.policy.to_json() if table.policy is not None else None,
        "fingerprint": table.layout.fingerprint,
    }
