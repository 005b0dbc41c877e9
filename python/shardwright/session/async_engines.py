"""Engines for event loops: how their connections are opened and closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine

from shardwright import engines, errors
from shardwright.session.asyncpg_conninfo import asyncpg_arguments, keep_alive
from shardwright.session.health import Deadline, Health
from shardwright.session.shard_pool import AsyncShardPool
from shardwright.session.tasks import at_once
from shardwright.session.wire import Guarded
from shardwright.session.wire_psycopg import GuardedAsyncConnection

if TYPE_CHECKING:
    from shardwright.session.pools import PoolOptions


class _Closable(Protocol):
    async def close(self) -> None: ...


A = TypeVar("A", bound=_Closable)

#: Lets a connection in by what it was answered.
Admit = Callable[[Guarded, Sequence[Any]], None]


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
        admit(connection, answer)
        connection.watch = health
        await connection.set_autocommit(False)

    async def dial(**arguments: Any) -> GuardedAsyncConnection:
        connect = partial(
            GuardedAsyncConnection.connect, autocommit=True, prepare_threshold=options.prepare_threshold, **arguments
        )
        return await _open(dialer, connect, vet, (psycopg.OperationalError,))

    return _engine("postgresql+psycopg_async://", dial, health, options)


def asyncpg_engine(dialer: engines.ShardDialer, who: str, admit: Admit, health: Health, options: PoolOptions) -> Engine:
    """The engine of asyncpg's connections to a shard.

    Args:
        dialer: whom to call.
        who: what a new connection is asked.
        admit: judges the answer.
        health: told of what happens.
        options: what pools and connections are like. Without `prepare_threshold` nothing is prepared under a name.

    Returns:
        The plain engine below an `AsyncEngine`, for use in SQLAlchemy's greenlets.
    """
    import asyncpg

    from shardwright.session.asyncpg_statements import FAILURES
    from shardwright.session.wire_asyncpg import GuardedAsyncpg

    kept = 0 if options.prepare_threshold is None else 100

    async def vet(connection: GuardedAsyncpg) -> None:
        connection.watch = Deadline(options.connect_timeout)
        (answer,) = await connection.rows(who.encode())
        admit(connection, answer)
        connection.watch = health

    async def dial(**arguments: Any) -> GuardedAsyncpg:
        async def connect(place: str) -> GuardedAsyncpg:
            wanted = {"statement_cache_size": kept, **asyncpg_arguments(place), **arguments}
            opened: GuardedAsyncpg = await asyncpg.connect(connection_class=GuardedAsyncpg, **wanted)
            keep_alive(opened._transport.get_extra_info("socket"))
            return opened

        return await _open(dialer, connect, vet, FAILURES)

    engine = _engine("postgresql+asyncpg://", dial, health, options, prepared_statement_cache_size=kept)

    @sa.event.listens_for(engine, "connect", insert=True)
    def adapt(adapted: Any, _record: object) -> None:
        adapted.driver_connection.adapt(adapted)

    return engine


async def _open(
    dialer: engines.ShardDialer,
    connect: Callable[[str], Awaitable[A]],
    vet: Callable[[A], Awaitable[None]],
    failures: tuple[type[Exception], ...],
) -> A:
    """A connection to the first of a shard's hosts that serves; as `ShardDialer.open`, for an event loop."""
    said: list[Exception] = []
    for at, place in enumerate(dialer.places()):
        try:
            opened = await connect(place)
        except failures as error:
            said.append(error)
            continue
        engines.remember(opened)
        try:
            await vet(opened)
        except BaseException as error:
            await opened.close()
            if not isinstance(error, Exception) or not isinstance(error, (errors.ShardUnavailable, *failures)):
                raise
            said.append(error)
            continue
        dialer.served(at)
        return opened
    raise dialer.unavailable(said) from None


def _engine(
    url: str, dial: Callable[..., Awaitable[Any]], health: Health, options: PoolOptions, **defaults: Any
) -> Engine:
    engine = create_async_engine(
        url,
        poolclass=AsyncShardPool,
        pool_size=options.pool_size,
        max_overflow=options.max_overflow,
        pool_use_lifo=True,
        **options.more,
    ).sync_engine

    assert isinstance(engine.pool, AsyncShardPool)
    engine.pool.idle = options.pool_idle

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: object, _args: object, arguments: dict[str, Any]) -> Any:
        # Whoever has waited for a place in the pool meanwhile is not to wait for the server as well.
        health.check()
        try:
            opened = dialect.loaded_dbapi.connect(async_creator_fn=dial, **(defaults | arguments))
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
    if engine.dialect.is_async:
        at_once(engine.dispose)
    else:
        engine.dispose()
