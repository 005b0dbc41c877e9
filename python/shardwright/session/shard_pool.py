"""SQLAlchemy's pool, as shards need it: it asks before it gives, and lets go of what nobody uses."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection, QueuePool
from sqlalchemy.pool.base import ConnectionPoolEntry
from sqlalchemy.util.queue import Queue

from shardwright.session.health import Health


class _Guarding(QueuePool):
    """What both kinds have in common. `health` is set right after the pool was made."""

    health: Health

    def connect(self) -> PoolProxiedConnection:
        """A connection, unless the shard's breaker is open.

        Raises:
            ShardUnavailable: it is, or the shard cannot be reached.
            sqlalchemy.exc.TimeoutError: all connections are in use for too long, which is not the shard's fault.
        """
        trial = self.health.enter()
        if trial is None:
            return super().connect()
        try:
            # What is in the pool was opened before: whether the shard serves now, a new connection tells.
            self._invalidate_time = time.time()
            return super().connect()
        finally:
            self.health.leave(trial)

    def recreate(self) -> QueuePool:
        """As SQLAlchemy's: what `Engine.dispose` goes on with."""
        made = super().recreate()
        assert isinstance(made, _Guarding)
        made.health = self.health
        return made


class ShardPool(_Guarding):
    """For threads."""

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()
        super()._do_return_conn(record)

    def reap(self, seconds: float) -> int:
        """Close connections that nobody has used for a time.

        Args:
            seconds: how long.

        Returns:
            How many.
        """
        queue: Any = self._pool
        assert isinstance(queue, Queue)
        before, closed = time.monotonic() - seconds, 0
        while True:
            with queue.mutex:
                # The last one given back is the first one taken: the one that rests longest is at the other end.
                if not queue.queue or queue.queue[0].info.get("idle_since", before) > before:
                    return closed
                record = queue.queue.popleft()
            try:
                record.close()
            finally:
                self._dec_overflow()
            closed += 1


class AsyncShardPool(_Guarding, AsyncAdaptedQueuePool):
    """For an event loop."""
