"""Engines for event loops: how their connections are opened and closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from shardwright import engines, errors
from shardwright.session.health import Deadline, Health
from shardwright.session.shard_pool import AsyncShardPool
from shardwright.session.wire_psycopg import GuardedAsyncConnection

if TYPE_CHECKING:
    from shardwright.session.pools import PoolOptions

#: Lets a connection in by what it was answered; gives the server's timeline.
Admit = Callable[[tuple[str, int, str]], int]


def psycopg_engine(dialer: engines.ShardDialer, who: str, admit: Admit, health: Health, options: PoolOptions) -> Engine:
    """The engine of psycopg's asynchronous connections to a shard.

    Args:
        dialer: whom to call.
        who: what a new connection is asked.
        admit: judges the answer.
        health: told of what happens.
        options: what pools and connections are like.

    Returns:
        The plain engine below an `AsyncEngine`, for use in SQLAlchemy's greenlets.
    """

    async def vet(connection: GuardedAsyncConnection) -> None:
        connection.watch = Deadline(options.connect_timeout)
        answer = await (await connection.execute(who)).fetchone()
        assert answer is not None
        connection.timeline = admit(answer)
        connection.watch = health
        await connection.set_autocommit(False)

    async def dial(**arguments: Any) -> GuardedAsyncConnection:
        connect = partial(
            GuardedAsyncConnection.connect, autocommit=True, prepare_threshold=options.prepare_threshold, **arguments
        )
        return await dialer.open_async(connect, vet, (psycopg.OperationalError,))

    return _engine("postgresql+psycopg_async://", dial, health, options)


def _engine(url: str, dial: Callable[..., Awaitable[Any]], health: Health, options: PoolOptions) -> Engine:
    engine = create_async_engine(
        url,
        poolclass=AsyncShardPool,
        pool_size=options.pool_size,
        max_overflow=options.max_overflow,
        pool_use_lifo=True,
        **options.more,
    ).sync_engine

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: object, _args: object, arguments: dict[str, Any]) -> Any:
        # Whoever has waited for a place in the pool meanwhile is not to wait for the server as well.
        health.check()
        try:
            opened = dialect.loaded_dbapi.connect(async_creator_fn=dial, **arguments)
        except errors.ShardUnavailable as error:
            health.failed(error.message)
            raise
        health.heard()
        return opened

    return engine


def dispose(engine: Engine) -> None:
    """Close an engine's connections that are not in use, wherever that is asked for: also outside of its event loop.

    Args:
        engine: of either kind.
    """
    if not engine.dialect.is_async:
        engine.dispose()
        return
    closing = greenlet_spawn(engine.dispose)
    try:
        closing.send(None)
    except StopIteration:
        return
    closing.close()
    raise AssertionError("closing an idle connection waited for its event loop")
