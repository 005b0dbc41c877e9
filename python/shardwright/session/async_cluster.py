"""What `Cluster` offers to code that runs on an event loop: the awaitable counterparts of its methods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.util import greenlet_spawn

from shardwright import errors
from shardwright.session import outcomes, retries
from shardwright.session.async_loading import AsyncLoader
from shardwright.session.async_session import AsyncShardSession
from shardwright.session.tasks import in_greenlet

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from shardwright.routing.shard_map import ShardMap
    from shardwright.session.cluster import Cluster
    from shardwright.session.deciding import Decider
    from shardwright.session.pools import AsyncDriver, Driver, ShardEngines
    from shardwright.session.tasks import InLoop

T = TypeVar("T")
AsyncSessions = async_sessionmaker[AsyncShardSession]

_DRIVERS: dict[str, Driver] = {"psycopg": "psycopg_async", "asyncpg": "asyncpg"}


class AsyncCluster:
    """The part of `Cluster` for event loops. Its engines are made when an async session first needs them."""

    _engines: ShardEngines
    #: where transactions that write on several shards are decided
    decider: Decider
    #: how sessions wait that are used from tasks
    waiting_in_loop: InLoop

    @classmethod
    async def aconnect(cls, catalog_dsn: str, **options: Any) -> Self:
        """As `Cluster.connect`, without holding up the event loop.

        Args:
            catalog_dsn: how to reach the catalog.
            options: as for `Cluster.connect`.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary, BadOption: the catalog cannot be reached.
            CatalogNewer, CatalogOlder: the catalog's schema is not this program's.
        """
        made: Self = await asyncio.to_thread(partial(cls.connect, catalog_dsn, **options))  # type: ignore[attr-defined]
        return made

    def async_sessionmaker(self, *, driver: AsyncDriver = "psycopg", **session_options: Any) -> AsyncSessions:
        """A factory of sessions for tasks, as SQLAlchemy's `async_sessionmaker` is one.

        Args:
            driver: "psycopg", or "asyncpg" where that is installed.
            session_options: what each session gets: arguments of `AsyncSession`, or of `ShardSession`.

        Raises:
            BadOption: there is no such driver.
            MissingExtra: it is not installed.
        """
        self.async_driver(driver)
        return async_sessionmaker(class_=AsyncShardSession, cluster=self, driver=driver, **session_options)

    async def arun(
        self,
        key: Any,
        work: Callable[[AsyncShardSession], Awaitable[T]],
        *,
        keyspace: str | None = None,
        deadline: float = 5.0,
        attempts: int | None = None,
        driver: AsyncDriver = "psycopg",
        sessions: AsyncSessions | None = None,
        **session_options: Any,
    ) -> T:
        """As `Cluster.run`, with a function that is awaited.

        Args:
            key: the shard key.
            work: gets the session, whose transaction is committed when what it returned has been awaited.
            keyspace: the key's keyspace, where there are several.
            deadline: seconds within which it may be run again.
            attempts: how often at most; any number within the deadline by default.
            driver: of the session, where no factory is given.
            sessions: a factory to use; by default one whose objects keep their values after the commit.
            session_options: for the session, as `isolation_level`.

        Raises:
            CommitUnknown: the answer to COMMIT was lost; see `acommit_outcome`.
            SessionError, sqlalchemy.exc.DBAPIError: what the last attempt met.
        """
        options = {"key": key, "keyspace": keyspace, **session_options}
        return await self._areplay(work, deadline, attempts, driver, sessions, options)

    async def arun_across(
        self,
        work: Callable[[AsyncShardSession], Awaitable[T]],
        *,
        deadline: float = 10.0,
        attempts: int | None = None,
        driver: AsyncDriver = "psycopg",
        sessions: AsyncSessions | None = None,
        **session_options: Any,
    ) -> T:
        """As `Cluster.run_across`, with a function that is awaited.

        Args:
            work, deadline, attempts, driver, sessions: as for `arun`.
            session_options: for the session; `cross_shard` is "two_phase" unless set.

        Raises:
            CommitUnknown, SessionError, sqlalchemy.exc.DBAPIError: as `arun`.
        """
        options = {"cross_shard": "two_phase", **session_options}
        return await self._areplay(work, deadline, attempts, driver, sessions, options)

    async def _areplay(
        self,
        work: Callable[[AsyncShardSession], Awaitable[T]],
        deadline: float,
        attempts: int | None,
        driver: AsyncDriver,
        sessions: AsyncSessions | None,
        options: dict[str, Any],
    ) -> T:
        factory = sessions or self.async_sessionmaker(driver=driver, expire_on_commit=False)

        async def once() -> T:
            async with factory(**options) as session, session.begin():
                return await work(session)

        across = bool(options.get("cross_shard"))
        return await greenlet_spawn(
            retries.replay, self.waiting_in_loop, in_greenlet(once), deadline, attempts, across=across
        )

    def async_loader(
        self, entity: type[T], *, window: float = 0.0, options: Sequence[Any] = (), driver: AsyncDriver = "psycopg"
    ) -> AsyncLoader[T]:
        """A loader for tasks: what they ask for in one turn of the event loop becomes one statement a shard.

        Args:
            entity: a mapped class.
            window: seconds for which a get waits for those of other tasks, 0.01 at most; 0: until the loop's next turn.
            options: loader options of SQLAlchemy for the objects.
            driver: of its sessions.

        Raises:
            BadOption: the window is too long, or there is no such driver.
            MissingExtra: the driver is not installed.
        """
        # Only Cluster is derived from this.
        return AsyncLoader(cast("Cluster", self), entity, window, options, driver)

    async def acommit_outcome(
        self, error: errors.CommitUnknown, *, patience: float = 10.0, driver: AsyncDriver = "psycopg"
    ) -> outcomes.Outcome:
        """As `Cluster.commit_outcome`.

        Args:
            error: what was raised.
            patience: seconds to wait for the shard, and for a COMMIT that is still under way there.
            driver: by which the shard is asked.
        """
        engine_of = partial(self._engines.engine, driver=self.async_driver(driver))
        return await greenlet_spawn(outcomes.find_out, self.waiting_in_loop, self.decider, engine_of, error, patience)

    async def arefresh(self, beyond: int | None = None) -> ShardMap:
        """As `Cluster.refresh`.

        Args:
            beyond: the version that was found wanting; nothing is asked where a higher one is known already.
        """
        found: ShardMap = await asyncio.to_thread(self.refresh, beyond)  # type: ignore[attr-defined]
        return found

    def async_engine(self, shard: str, driver: AsyncDriver = "psycopg") -> AsyncEngine:
        """The SQLAlchemy engine of a shard for tasks: for work that is none of the sessions'. It checks nothing.

        Args:
            shard: the shard's name.
            driver: "psycopg" or "asyncpg".

        Raises:
            UnknownShard: there is none of that name.
        """
        engine: Engine = self._engines.engine(shard, self.async_driver(driver))
        found: AsyncEngine = AsyncEngine._retrieve_proxy_for_target(engine)
        return found

    def async_driver(self, driver: str) -> Driver:
        """The engines' name for an async session's driver.

        Args:
            driver: as an application says it.

        Raises:
            BadOption: there is no such driver.
            MissingExtra: it is not installed.
        """
        found = _DRIVERS.get(driver)
        if found is None:
            raise errors.BadOption(f"driver={driver!r} has no meaning", fix='give "psycopg" or "asyncpg"')
        _check_installed(driver)
        return found

    async def aclose(self) -> None:
        """As `Cluster.close`; the event loop's connections are closed with a word of goodbye."""
        await self._engines.aclose()
        await asyncio.to_thread(self.close)  # type: ignore[attr-defined]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _check_installed(driver: str) -> None:
    for module, extra in (("greenlet", "async"), ("asyncpg", "asyncpg")):
        if (module == "greenlet" or module == driver) and find_spec(module) is None:
            raise errors.MissingExtra(
                f"sessions for an event loop need {module}", fix=f'pip install "shardwright[{extra}]"'
            )
