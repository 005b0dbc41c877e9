"""PostgreSQL sharding and online resharding as a library: no proxy, no server extension."""

from __future__ import annotations

from shardwright.routing.keys import point, points

__all__ = ["point", "points"]
