"""A process's engines, one for each shard and driver: made when first asked for, their connections vetted and watched.

What a shard's servers did to one of them is known to all: the health of a shard is shared by its drivers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from shardwright import engines, errors
from shardwright.catalog.roster import Shard
from shardwright.session import async_engines
from shardwright.session.breaker import Breaker, BreakerOptions
from shardwright.session.commenting import comment_statements
from shardwright.session.health import Deadline, Health
from shardwright.session.opening import announce_commits, driver_errors, translate_errors
from shardwright.session.refresh import Router
from shardwright.session.shard_pool import ShardPool
from shardwright.session.wire import Guarded
from shardwright.session.wire_psycopg import GuardedConnection

#: How a shard is spoken to; each has pools of its own.
Driver = Literal["psycopg", "psycopg_async", "asyncpg"]
#: What an application calls those that are for event loops.
AsyncDriver = Literal["psycopg", "asyncpg"]

#: What a new connection is asked, before it may be used: which database is it, on which timeline, and which process?
WHO = """
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
       (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END,
       pg_catalog.pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What pools and connections are like.

    Args:
        application_name: as shown in pg_stat_activity.
        pool_size: connections to each shard that are kept open.
        max_overflow: connections to each shard that may be opened beyond them.
        pool_idle: seconds after which a connection that nobody uses is closed; None keeps it.
        prepare_threshold: after how many executions a statement is prepared; never on connections through a pooler.
        connect_timeout: seconds to wait for a server to let us in, for each host.
        hang_timeout: seconds of silence after which a shard is asked whether it lives; None never asks.
        breaker: when a shard that does not answer is no longer called, and for how long.
        more: further arguments of `sqlalchemy.create_engine`.
        comments: the application's name, to be put into a comment behind each statement; None puts none.
    """

    application_name: str
    pool_size: int = 5
    max_overflow: int = 10
    pool_idle: float | None = 300.0
    prepare_threshold: int | None = 5
    connect_timeout: float = 3.0
    hang_timeout: float | None = 5.0
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    more: dict[str, Any] = field(default_factory=dict)
    comments: str | None = None

    def __post_init__(self) -> None:
        for name in ("pool_idle", "connect_timeout", "hang_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise errors.BadOption(f"{name}={value!r} has no meaning", fix="give seconds above 0")
        if "poolclass" in self.more or "pool" in self.more:
            raise errors.BadOption("the pools of shards are shardwright's own", fix="leave poolclass and pool out")

    @property
    def most(self) -> int | None:
        """Connections that one driver may open to each shard; None: without a limit."""
        return None if self.pool_size == 0 or self.max_overflow < 0 else self.pool_size + self.max_overflow


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """What is in use of one pool."""

    shard: str
    driver: Driver
    #: connections that somebody has
    in_use: int
    #: connections that are open, and that nobody has
    idle: int
    #: how many there may be; None: any number
    limit: int | None


class ShardEngines:
    """The engines of one process.

    Args:
        router: knows where the shards are.
        options: what pools and connections are like.
    """

    def __init__(self, router: Router, options: PoolOptions) -> None:
        self._router = router
        self.options = options
        self._timelines: dict[str, int] = {}
        self.begin_anew()
        #: how the engine of a driver is made for a shard; it vets its new connections by `admit`
        self._makers: dict[Driver, Callable[[Shard, engines.ShardDialer, Health], Engine]] = {
            "psycopg": self._psycopg,
            "psycopg_async": partial(self._for_loop, async_engines.psycopg_engine),
            "asyncpg": partial(self._for_loop, async_engines.asyncpg_engine),
        }

    def begin_anew(self) -> None:
        """Have no engine yet; also in the child of a fork, where the parent's are of no use."""
        self._made: dict[tuple[str, Driver], tuple[Shard, Engine]] = {}
        self._healths: dict[str, tuple[Shard, Health]] = {}
        self._making = threading.Lock()
        self._reaper: Reaper | None = None

    def engine(self, shard: str, driver: Driver = "psycopg") -> Engine:
        """The engine of a shard, leading to where the catalog says that the shard is now.

        Args:
            shard: the shard's name.
            driver: how it is spoken to.

        Raises:
            UnknownShard: there is none of that name.
        """
        found = self._made.get((shard, driver))
        if found is not None and self._router.now.shards.get(shard) is found[0]:
            return found[1]
        return self._make(self._router.now.shard(shard), driver)

    def close(self) -> None:
        """Close the connections that are not in use; those in use are closed when they are given back."""
        with self._making:
            found, self._made = self._made, {}
            reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.stop()
        for _, engine in found.values():
            async_engines.dispose(engine)

    async def aclose(self) -> None:
        """Close those of the event loop that are not in use, in its own time."""
        with self._making:
            found = {name: engine for name, (_, engine) in self._made.items() if engine.dialect.is_async}
            for name in found:
                del self._made[name]
        for engine in found.values():
            await greenlet_spawn(engine.dispose)

    def usage(self) -> list[PoolUsage]:
        """What is in use of each pool that there is."""
        found = []
        for (shard, driver), (_, engine) in list(self._made.items()):
            pool = engine.pool
            assert isinstance(pool, sa.QueuePool)
            found.append(PoolUsage(shard, driver, pool.checkedout(), pool.checkedin(), self.options.most))
        return found

    def admit(self, shard: Shard, connection: Guarded, answer: Sequence[Any]) -> None:
        """Let a new connection in, if it leads to the primary of the database that the catalog knows.

        Its timeline becomes known; 0 for a standby, which only a shard's own connection string can have asked for.

        Args:
            shard: where it should lead to.
            connection: the connection.
            answer: what was answered on it to `WHO`.

        Raises:
            ShardUnavailable: it is another database, or a primary of old.
        """
        system_identifier, database_oid, hexadecimal, process = answer
        timeline = int(hexadecimal or "0", 16)
        if (system_identifier, int(database_oid)) != (shard.system_identifier, shard.database_oid):
            raise errors.ShardUnavailable(
                f"what answers at the address of shard {shard.name} is another database",
                fix="`shardwright shard list` shows the address; `shardwright shard add` stores a new one",
                shard=shard.name,
            )
        highest = self.timeline(shard.name)
        if 0 < timeline < highest:
            # Two servers say that they are the primary; the one that was promoted later is.
            raise errors.ShardUnavailable(
                f"the server of shard {shard.name} is on timeline {timeline}, and {highest} was seen before",
                fix="a former primary is still running: stop it, or make it a standby",
                shard=shard.name,
            )
        if timeline > highest:
            self._timelines[shard.name] = timeline
            self._router.note_timeline(shard.name, timeline)
        connection.timeline = timeline
        if int(process) != connection.process:
            # A pooler: its next transaction may be in another process.
            connection.keep_nothing_prepared()

    def timeline(self, shard: str) -> int:
        """The highest timeline on which a shard's primary was seen, by anybody who told the catalog or by us; or 0.

        Args:
            shard: the shard's name.
        """
        known = self._router.now.shards.get(shard)
        return max(self._timelines.get(shard, 0), known.timeline if known is not None else 0)

    # ------------------------------------------------------------------ making them

    def _make(self, shard: Shard, driver: Driver) -> Engine:
        self._router.wake_up()
        with self._making:
            old = self._made.get((shard.name, driver))
            if old is not None:
                if old[0] == shard:
                    # The same place, read again from the catalog.
                    self._made[shard.name, driver] = (shard, old[1])
                    return old[1]
                async_engines.dispose(old[1])
            dialer = engines.ShardDialer(shard, self.options.application_name, self.options.connect_timeout)
            place, health = self._healths.get(shard.name, (None, None))
            if health is None or place != shard:
                health = self._watch_over(shard, dialer)
                self._healths[shard.name] = (shard, health)
            engine = self._makers[driver](shard, dialer, health)
            # Many rows become a few statements of many rows each, without RETURNING too.
            engine.dialect.use_insertmanyvalues_wo_returning = True
            engine.pool.health = health  # type: ignore[attr-defined]
            engine.__dict__["shardwright_shard"] = shard.name
            translate_errors(engine, shard.name, self._refresh)
            announce_commits(engine)
            if self.options.comments is not None:
                comment_statements(engine, self.options.comments, shard.name)
            sa.event.listen(engine, "checkout", self._before_use(engine, shard.name))
            self._made[shard.name, driver] = (shard, engine)
            # An engine of a kind makes it likely that the other shards' follow.
            self._router.connections = {name: self.options.most for _, name in self._made}
            if self.options.pool_idle is not None and self._reaper is None:
                self._reaper = Reaper(self, self.options.pool_idle)
            return engine

    def _watch_over(self, shard: Shard, dialer: engines.ShardDialer) -> Health:
        """A new health for a shard, which is asked whether it lives by a connection of its own."""

        def probe() -> None:
            self._dial(shard, dialer, self.options.more.get("connect_args", {})).close()

        return Health(Breaker(shard.name, "primary", self.options.breaker), self.options.hang_timeout, probe)

    def _before_use(self, engine: Engine, shard: str) -> Callable[[Any, ConnectionPoolEntry, Any], None]:
        """What SQLAlchemy calls with each connection from the pool, before anybody gets it."""
        lost = driver_errors(engine)

        def on_checkout(_connection: Any, record: ConnectionPoolEntry, _fairy: Any) -> None:
            driver = record.driver_connection
            if not isinstance(driver, Guarded):
                return
            try:
                driver.settle()
            except lost as error:
                raise sa.exc.DisconnectionError() from error
            if driver.timeline == 0:
                return
            if driver.is_standby or driver.timeline < self.timeline(shard):
                # All that were opened before lead to the same server: the pool is given up, and looks for the primary.
                raise sa.exc.InvalidatePoolError()

        return on_checkout

    def _dial(self, shard: Shard, dialer: engines.ShardDialer, arguments: dict[str, Any]) -> GuardedConnection:
        """A psycopg connection to a shard's primary, in autocommit mode.

        Raises:
            ShardUnavailable: there is none.
        """

        def vet(connection: GuardedConnection) -> None:
            connection.watch = Deadline(self.options.connect_timeout)
            answer = connection.execute(WHO).fetchone()
            assert answer is not None
            self.admit(shard, connection, answer)

        return dialer.open(GuardedConnection, vet, self.options.prepare_threshold, **arguments)

    def _psycopg(self, shard: Shard, dialer: engines.ShardDialer, health: Health) -> Engine:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            poolclass=ShardPool,
            pool_size=self.options.pool_size,
            max_overflow=self.options.max_overflow,
            pool_use_lifo=True,
            **self.options.more,
        )

        @sa.event.listens_for(engine, "do_connect")
        def connect(_dialect: object, _record: object, _args: object, arguments: dict[str, Any]) -> GuardedConnection:
            # Whoever has waited for a place in the pool meanwhile is not to wait for the server as well.
            health.check()
            try:
                opened = self._dial(shard, dialer, arguments)
            except errors.ShardUnavailable as error:
                health.failed(error.message)
                raise
            health.heard()
            opened.watch = health
            opened.autocommit = False
            return opened

        return engine

    def _for_loop(
        self, make: Callable[..., Engine], shard: Shard, dialer: engines.ShardDialer, health: Health
    ) -> Engine:
        return make(dialer, WHO, partial(self.admit, shard), health, self.options)

    def _refresh(self) -> None:
        self._router.refresh(beyond=self._router.now.map.version)

    def pools(self) -> list[ShardPool]:
        """The pools for threads that there are now."""
        return [engine.pool for _, engine in list(self._made.values()) if isinstance(engine.pool, ShardPool)]


class Reaper:
    """A thread that closes connections which nobody uses.

    Args:
        engines: whose; they are not kept alive by it.
        idle: seconds.
    """

    def __init__(self, engines: ShardEngines, idle: float) -> None:
        self._engines = weakref.ref(engines)
        self._idle = idle
        self._stopping = threading.Event()
        threading.Thread(target=self._run, name="shardwright-pools", daemon=True).start()

    def stop(self) -> None:
        """Let it end."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(min(self._idle / 4, 30)) and (engines := self._engines()) is not None:
            for pool in engines.pools():
                pool.reap(self._idle)
            del engines
