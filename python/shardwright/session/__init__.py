"""HOW an application queries: factory, pinned and routed sessions, scatter, retries."""

from __future__ import annotations

from shardwright.session.cluster import Cluster
from shardwright.session.session import ShardSession

__all__ = ["Cluster", "ShardSession"]
