"""A cluster that is only imagined: its sessions can explain where statements would go, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from shardwright.catalog.roster import Shard
from shardwright.routing.placement import spread
from shardwright.routing.proposing import keyspace_types
from shardwright.routing.shard_map import Keyspace, Range, ShardMap
from shardwright.routing.tables import Declaration
from shardwright.session.cluster import Cluster
from shardwright.session.pools import PoolOptions
from shardwright.session.refresh import Directory, Router


class _ImaginedRouter(Router):
    """Knows what it was told; there is no catalog."""

    def __init__(self, directory: Directory) -> None:
        self.now = directory
        self.catalog_dsn = ""

    def refresh(self, beyond: int | None = None) -> Directory:
        """What it was told."""
        return self.now

    def begin_anew(self) -> None:
        """Nothing is to be begun."""

    def close(self) -> None:
        """Nothing is to be closed."""


def imagine(kinds: Mapping[sa.Table, Declaration], shards: int = 4) -> Cluster:
    """A cluster for `ShardSession.explain_route`, without any database.

    Args:
        kinds: what each table is.
        shards: how many there are.
    """
    names = [f"s{number}" for number in range(1, shards + 1)]
    spaces = [
        Keyspace(number, name, "hash", key_type, 4096)
        for number, (name, key_type) in enumerate(sorted(keyspace_types(kinds).items()), 1)
    ]
    ranges: list[Range] = []
    for space in spaces:
        for name, points in spread(space, dict.fromkeys(names, 1)):
            ranges += [
                Range(len(ranges) + at, space.name, lo, hi, name) for at, (lo, hi) in enumerate(points.pieces, 1)
            ]
    tables = {
        (table.schema or "public", table.name): Declaration(
            one.kind, one.key_column, one.keyspace, one.home or (None if one.kind in ("sharded", "local") else names[0])
        )
        for table, one in kinds.items()
    }
    directory = Directory(ShardMap(1, tuple(spaces), tuple(ranges)), {name: Shard(name, "") for name in names}, tables)
    return Cluster(
        _ImaginedRouter(directory),
        reads="strict",
        map_wait=0,
        pool_options=PoolOptions("shardwright imagined"),
        application="imagined",
    )
