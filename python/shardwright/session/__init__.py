"""HOW an application queries: factory, pinned and routed sessions, scatter, retries."""

from __future__ import annotations

from shardwright.session.async_session import AsyncShardSession
from shardwright.session.cluster import Cluster
from shardwright.session.session import ShardSession

__all__ = ["AsyncShardSession", "Cluster", "ShardSession"]
