"""SQLAlchemy's pool, as shards need it: it asks before it gives, and lets go of what nobody uses."""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection, QueuePool
from sqlalchemy.pool.base import ConnectionPoolEntry
from sqlalchemy.util import await_only
from sqlalchemy.util.queue import Queue

from shardwright import errors
from shardwright.session.health import Health
from shardwright.session.lines import Line
from shardwright.session.tasks import at_once


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

    def _timed_out(self) -> sa.exc.TimeoutError:
        return sa.exc.TimeoutError(
            f"all {self.size() + max(0, self._max_overflow)} connections to the shard were in use "
            f"for {self._timeout:g} s: pool_size and max_overflow say how many there may be",
            code="3o7r",
        )


class ShardPool(_Guarding):
    """For threads.

    SQLAlchemy's own gives a connection to whoever asks first when one is free, past those who wait: a thread that gives one
    back and asks again gets it nearly always, and others might wait for ever. Here everybody waits in line.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._line = Line(self.size() + self._max_overflow if self._max_overflow >= 0 else sys.maxsize)

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._line.enter(self._timeout):
            raise self._timed_out()
        try:
            return super()._do_get()
        except BaseException:
            self._line.leave()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()
        try:
            super()._do_return_conn(record)
        finally:
            self._line.leave()

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
    """For the tasks of one event loop at a time.

    SQLAlchemy's own gives a connection to whoever asks first when one is free, past those who wait: under load some would
    wait for ever. Here everybody waits in line.
    """

    #: seconds after which a connection that nobody uses is closed; None keeps it
    idle: float | None = None
    _loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
    _line: asyncio.Semaphore
    _timer: asyncio.TimerHandle | None = None

    def connect(self) -> PoolProxiedConnection:
        """A connection, unless the shard's breaker is open.

        Raises:
            BadOption: another event loop uses the pool.
            ShardUnavailable: the shard cannot be reached.
            sqlalchemy.exc.TimeoutError: all connections are in use for too long.
        """
        loop = asyncio.get_running_loop()
        known = self._loop() if self._loop is not None else None
        if known is not loop:
            self._enter_loop(loop, known)
        return super().connect()

    def _enter_loop(self, loop: asyncio.AbstractEventLoop, before: asyncio.AbstractEventLoop | None) -> None:
        if before is not None and before.is_running():
            raise errors.BadOption(
                "a cluster's asynchronous sessions are used from two event loops", fix="make a Cluster for each of them"
            )
        if self._loop is not None:
            # What is open belongs to a loop that has ended.
            at_once(self.dispose)
            self._pool.__dict__.pop("_queue", None)
        self._loop = weakref.ref(loop)
        self._timer = None
        self._line = asyncio.Semaphore(self.size() + self._max_overflow if self._max_overflow >= 0 else sys.maxsize)

    def recreate(self) -> QueuePool:
        """As SQLAlchemy's."""
        made = super().recreate()
        assert isinstance(made, AsyncShardPool)
        made.idle = self.idle
        return made

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            await_only(
                asyncio.wait_for(self._line.acquire(), self._timeout) if self._line.locked() else self._line.acquire()
            )
        except TimeoutError:
            raise self._timed_out() from None
        try:
            return super()._do_get()
        except BaseException:
            self._line.release()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()
        super()._do_return_conn(record)
        self._line.release()
        if (
            self.idle is not None
            and self._timer is None
            and (loop := self._loop and self._loop())
            and loop.is_running()
        ):
            self._timer = loop.call_later(self.idle, self._reap)

    def _reap(self) -> None:
        assert self.idle is not None
        self._timer = None
        queue: Any = self._pool
        resting: list[ConnectionPoolEntry] = queue._queue._queue
        # The last one given back is the first one taken: the one that rests longest is at the other end.
        while resting and (left := resting[0].info["idle_since"] + self.idle - time.monotonic()) <= 0:
            record = resting.pop(0)
            try:
                at_once(record.close)
            finally:
                self._dec_overflow()
        if resting:
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.01), self._reap)
