"""PostgreSQL sharding and online resharding as a library: no proxy, no server extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardwright.ids import uuid7
from shardwright.routing.keys import point, points

if TYPE_CHECKING:
    from shardwright.routing.tables import global_on, local, reference, sharded_by, time_partitioned
    from shardwright.routing.uniques import unique_across_shards, unique_directory
    from shardwright.session.async_session import AsyncShardSession
    from shardwright.session.cluster import Cluster
    from shardwright.session.generating import next_id
    from shardwright.session.session import ShardSession

__all__ = [
    "Cluster",
    "ShardSession",
    "AsyncShardSession",
    "sharded_by",
    "reference",
    "global_on",
    "local",
    "time_partitioned",
    "point",
    "points",
    "next_id",
    "uuid7",
    "unique_across_shards",
    "unique_directory",
]

# What needs SQLAlchemy is imported when it is first asked for.
_LATER = {
    "Cluster": "shardwright.session.cluster",
    "ShardSession": "shardwright.session.session",
    "AsyncShardSession": "shardwright.session.async_session",
    "unique_across_shards": "shardwright.routing.uniques",
    "unique_directory": "shardwright.routing.uniques",
    "next_id": "shardwright.session.generating",
    "sharded_by": "shardwright.routing.tables",
    "reference": "shardwright.routing.tables",
    "global_on": "shardwright.routing.tables",
    "local": "shardwright.routing.tables",
    "time_partitioned": "shardwright.routing.tables",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_LATER[name]), name)
    return found
