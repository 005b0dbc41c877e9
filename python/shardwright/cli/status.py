"""``shardwright status``: the cluster at a glance."""

from __future__ import annotations

from cyclopts import App

from shardwright.catalog import keyspaces, overview
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table, Word, bad, good, warn

app = App(name="status", help="Show the cluster: shards, ranges, tables, operations and their lag.")


@app.default
def status(*, common: Common = DEFAULTS) -> Answer:
    """Show the cluster: shards, ranges, tables, the lag of reference tables, live operations."""
    with common.connect() as catalog:
        seen = overview.look(catalog)
    return Answer(seen.to_json(), list(_shown(seen)), next_steps=seen.next_steps)


def _shown(seen: overview.Overview) -> list[Part]:
    shard_map = seen.shard_map
    parts: list[Part] = [f"cluster {seen.cluster}, map version {shard_map.version} ({shard_map.fingerprint})", ""]
    parts.append(
        Table(
            ("shard", "state", "postgres", "weight", "owns", "region"),
            [
                (
                    shard.name,
                    _state(shard.state),
                    f"{shard.server_version // 10000}.{shard.server_version % 10000}",
                    shard.weight,
                    ", ".join(f"{name} {_count(n)}" for name, n in shard.owned.items() if n != 0) or "nothing",
                    shard.region,
                )
                for shard in seen.shards
            ],
            empty="no shard yet",
        )
    )
    parts += [bad(f"{shard.name}: {shard.reason}") for shard in seen.shards if shard.reason]
    for keyspace in shard_map.keyspaces:
        ranges = [(r.id, r.points().literal().strip("{}"), r.shard) for r in shard_map.ranges_of(keyspace.name)]
        parts += [
            "",
            f"keyspace {keyspace.name}: {keyspaces.describe(keyspace)}",
            Table(("range", "points", "shard"), ranges),
        ]
    parts += ["", Table(("table", "kind", "keyspace", "key", "home"), _tables(seen), empty="no table registered")]
    if seen.references:
        rows = [
            (lag.shard, _state(lag.state), f"{lag.ready}/{lag.tables}", lag.bytes, lag.seconds)
            for lag in seen.references
        ]
        parts += [
            "",
            f"reference tables, written on {seen.references[0].home}",
            Table(("shard", "state", "copied", "bytes behind", "seconds"), rows),
        ]
    parts += ["", Table(("operation", "phase"), seen.operations, empty="no live operation")]
    if seen.routers.live:
        parts.append(
            f"{seen.routers.live} processes route by the map, {seen.routers.behind} of them by an older version"
        )
    return parts


def _tables(seen: overview.Overview) -> list[tuple[object, ...]]:
    return [(table.name, table.kind, table.keyspace, table.key_column, table.home_shard) for table in seen.tables]


def _count(points: int | None) -> str:
    return "(unbounded)" if points is None else f"({points})"


def _state(state: str) -> Word:
    return good(state) if state == "ok" else warn(state) if state in ("copying", "behind") else bad(state)
