"""`Cluster`: what an application holds instead of an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy.orm import sessionmaker as _sessionmaker

from shardwright import errors
from shardwright.routing.shard_map import ShardMap
from shardwright.session import outcomes, retries
from shardwright.session.async_cluster import AsyncCluster
from shardwright.session.breaker import BreakerOptions
from shardwright.session.catalog_calls import CatalogCalls
from shardwright.session.crossings import Crossings
from shardwright.session.deciding import Decider
from shardwright.session.forking import begin_anew_with
from shardwright.session.generating import Generator, ask_for_grant
from shardwright.session.known import Known
from shardwright.session.loading import Loader
from shardwright.session.pages import PagedCluster
from shardwright.session.pools import Driver, PoolOptions, PoolUsage, ShardEngines
from shardwright.session.refresh import Directory, Mode, Router
from shardwright.session.session import ShardSession
from shardwright.session.tasks import InLoop
from shardwright.session.waiting import InThreads, Waiting

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

T = TypeVar("T")
Reads = Literal["strict", "relaxed"]

Sessions = _sessionmaker[ShardSession]


class Cluster(AsyncCluster, PagedCluster):
    """A cluster as an application sees it: sessions on its shards, routed by the current shard map.

    Make one a process with `Cluster.connect`, and close it at the end; it is a context manager too. All of it may be
    used from many threads.
    """

    def __init__(
        self, router: Router, *, reads: Reads, map_wait: float, pool_options: PoolOptions, application: str
    ) -> None:
        self._router = router
        #: strict: each transaction is checked by its shard; relaxed: by the map held here alone
        self.reads = reads
        #: seconds for which a session waits for a range that is being handed over
        self.map_wait = map_wait
        self._application = application
        #: whether statements carry a comment that says who sent them where, and why there
        self.comments = pool_options.comments is not None
        self._engines = ShardEngines(router, pool_options)
        self._calls = CatalogCalls(router.catalog_dsn, application)
        #: where transactions that write on several shards are decided
        self.decider = Decider(self._calls)
        self._ids = Generator(partial(ask_for_grant, self._calls))
        #: transactions that wait for a further shard's pool
        self.crossings = Crossings(pool_options.most)
        self._making = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        begin_anew_with(self)
        #: how sessions wait that are used from threads
        self.waiting: Waiting = InThreads(self._executor)
        self.waiting_in_loop = InLoop(self._executor)
        #: what has been found out about models, statements and databases
        self.known = Known(router)
        self._own_sessions = self.sessionmaker(expire_on_commit=False)

    @classmethod
    def connect(
        cls,
        catalog_dsn: str,
        *,
        application: str = "application",
        refresh: Mode = "listen",
        poll_seconds: float = 5.0,
        pool_size: int = 5,
        max_overflow: int = 10,
        pool_idle: float | None = 300.0,
        connect_timeout: float = 3.0,
        hang_timeout: float | None = 5.0,
        breaker: BreakerOptions | None = None,
        reads: Reads = "strict",
        map_wait: float = 5.0,
        prepare_threshold: int | None = 5,
        comments: bool = False,
        **engine_options: Any,
    ) -> Cluster:
        """Load the shard map and be ready for sessions. Shards are connected to when they are first needed.

        Args:
            catalog_dsn: how to reach the catalog.
            application: who you are: shown in the catalog's list of routers and in pg_stat_activity.
            refresh: "listen" follows the map by NOTIFY and by a poll, "poll" by the poll alone; "never" loads it again
                only when a shard refuses this router, which is as safe, and registers no router in the catalog.
            poll_seconds: between polls, jittered.
            pool_size: connections to each shard that are kept open.
            max_overflow: connections to each shard that may be opened beyond them.
            pool_idle: seconds after which a connection that nobody uses is closed; None keeps it.
            connect_timeout: seconds to wait for a server to let us in, for each of a shard's hosts; 2 at least.
            hang_timeout: seconds without any answer of a shard after which it is asked, over a connection of its own,
                whether it lives; if it does not answer, those who wait give up. None waits for ever.
            breaker: when a shard that does not answer is no longer called, and for how long: by default after 3 failures
                in a row, for 1 s at first and for 30 s at most.
            reads: "strict" checks the ownership of the key's range with each BEGIN. "relaxed" leaves that out: reads may
                be stale for as long as this router's map is; writes are still refused by the shards' guards.
            map_wait: seconds for which a session waits for a range that is being handed over.
            prepare_threshold: after how many executions a statement stays prepared on a connection (asyncpg: from the
                first on); None never. Nothing is prepared through a pooler such as PgBouncer, which is recognised.
            comments: put a comment behind each statement: application, shard, and route ("pinned", "routed", "scatter").
            engine_options: further arguments of `sqlalchemy.create_engine` for the shards' engines.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary, BadOption: the catalog cannot be reached.
            CatalogNewer, CatalogOlder: the catalog's schema is not this program's.
        """
        if reads not in ("strict", "relaxed"):
            raise errors.BadOption(f"reads={reads!r} has no meaning", fix='give "strict" or "relaxed"')
        pool_options = PoolOptions(
            f"shardwright {application}"[:63],
            pool_size,
            max_overflow,
            pool_idle,
            prepare_threshold,
            connect_timeout,
            hang_timeout,
            breaker or BreakerOptions(),
            engine_options,
            application if comments else None,
        )
        router = Router(catalog_dsn, application, refresh, poll_seconds, {"psycopg": pool_options.most})
        return cls(router, reads=reads, map_wait=map_wait, pool_options=pool_options, application=application)

    # ------------------------------------------------------------------ for applications

    @property
    def map(self) -> ShardMap:
        """The shard map as it is known now."""
        return self._router.now.map

    def refresh(self, beyond: int | None = None) -> ShardMap:
        """Ask the catalog for the newest map now.

        Args:
            beyond: the version that was found wanting; nothing is asked where a higher one is known already.

        Returns:
            The map that is known then; the old one where the catalog cannot be reached.
        """
        return self._router.refresh(beyond).map

    def sessionmaker(self, **session_options: Any) -> Sessions:
        """A factory of sessions, as SQLAlchemy's `sessionmaker` is one.

        ``Session(key=42)`` gives a session pinned to the shard of that key, ``Session()`` one that finds the shard for
        each statement.

        Args:
            session_options: what each session gets: arguments of `sqlalchemy.orm.Session`, or of `ShardSession`.
        """
        return _sessionmaker(class_=ShardSession, cluster=self, **session_options)

    def run(
        self,
        key: Any,
        work: Callable[[ShardSession], T],
        *,
        keyspace: str | None = None,
        deadline: float = 5.0,
        attempts: int | None = None,
        sessions: Sessions | None = None,
        **session_options: Any,
    ) -> T:
        """Run `work` in a transaction on the key's shard, and again where the database asked for that.

        It is run again from its start, in a new session, when its range moved (SH001, SH002, SH003), and after a
        serialization failure or a deadlock (40001, 40P01), or where a table changed under a prepared statement. So what
        it does outside of the database may happen twice.
        COMMIT is never sent again: where its answer is lost, `CommitUnknown` is raised.

        Args:
            key: the shard key.
            work: gets the session, whose transaction is committed when it returns.
            keyspace: the key's keyspace, where there are several.
            deadline: seconds within which it may be run again.
            attempts: how often at most; any number within the deadline by default.
            sessions: a factory to use; by default one whose objects keep their values after the commit.
            session_options: for the session, as `isolation_level`.

        Returns:
            What `work` returned.

        Raises:
            CommitUnknown: the answer to COMMIT was lost; see `commit_outcome`.
            SessionError, sqlalchemy.exc.DBAPIError: what the last attempt met.
        """
        return self._replay(work, deadline, attempts, sessions, {"key": key, "keyspace": keyspace, **session_options})

    def run_across(
        self,
        work: Callable[[ShardSession], T],
        *,
        deadline: float = 10.0,
        attempts: int | None = None,
        sessions: Sessions | None = None,
        **session_options: Any,
    ) -> T:
        """As `run`, in a session without a key: for a transaction that reads or writes rows of several shards.

        It is run again too when a lock was waited for too long (55P03: two may have waited for each other on two shards), and
        when a pool's connections were (SW611).

        Args:
            work, deadline, attempts, sessions: as for `run`.
            session_options: for the session; `cross_shard` is "two_phase" unless set.

        Raises:
            CommitUnknown, SessionError, sqlalchemy.exc.DBAPIError: as `run`.
        """
        return self._replay(work, deadline, attempts, sessions, {"cross_shard": "two_phase", **session_options})

    def _replay(
        self,
        work: Callable[[ShardSession], T],
        deadline: float,
        attempts: int | None,
        sessions: Sessions | None,
        options: dict[str, Any],
    ) -> T:
        factory = sessions or self._own_sessions

        def once() -> T:
            with factory(**options) as session, session.begin():
                return work(session)

        return retries.replay(self.waiting, once, deadline, attempts, across=bool(options.get("cross_shard")))

    def loader(self, entity: type[T], *, window: float = 0.0, options: Sequence[Any] = ()) -> Loader[T]:
        """A loader, which makes one statement a shard of many gets by primary key.

        Args:
            entity: a mapped class.
            window: seconds for which a get waits for those of other threads, 0.01 at most; by default it waits for none,
                and takes along what was asked for by `load` before.
            options: loader options of SQLAlchemy for the objects.

        Raises:
            BadOption: the window is too long.
        """
        return Loader(self, entity, window, options)

    def commit_outcome(self, error: errors.CommitUnknown, *, patience: float = 10.0) -> outcomes.Outcome:
        """Find out what became of a transaction whose COMMIT was not answered.

        Args:
            error: what was raised.
            patience: seconds to wait for the shard, and for a COMMIT that is still under way there.

        Returns:
            "committed", "aborted", or "unknown" where it cannot be told any more: the transaction's number was not
            known, the server has forgotten it, or another server took the shard over since.

        Raises:
            ShardUnavailable: the shard cannot be reached.
            CannotConnect: the catalog cannot be, where several shards were written on.
        """
        return outcomes.find_out(self.waiting, self.decider, self.engine, error, patience)

    def engine(self, shard: str, driver: Driver = "psycopg") -> Engine:
        """The SQLAlchemy engine of a shard: for work that is none of the sessions'. It checks nothing.

        Args:
            shard: the shard's name.
            driver: how it is spoken to; see `async_engine` for those of event loops.

        Raises:
            UnknownShard: there is none of that name.
        """
        return self._engines.engine(shard, driver)

    def next_id(self) -> int:
        """An id that no shard and no process has made or will make: 63 bits, ordered by time; see `shardwright.ids`.

        It is made here; the catalog is asked for a new span of time about once a minute, in the background.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary, UnfitServer: the catalog cannot be asked, and nothing is left.
            OperationConflict: all numbers for making ids are in use.
        """
        return self._ids.next()

    def find(self, criterion: Any) -> Any:
        """The shard key of the row that has a value which is unique across shards; see `ShardSession.find_key`.

        Args:
            criterion: ``User.email == "a@example.org"``.
        """
        with self._own_sessions() as session:
            return session.find_key(criterion)

    def close(self) -> None:
        """Stop the map's thread, and close the connections that are not in use."""
        self._router.close()
        self._ids.close()
        self.decider.close()
        self._calls.close()
        with self._making:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)
        self._engines.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cluster map {self.map.version}, shards {', '.join(self.map.shards())}>"

    # ------------------------------------------------------------------ for sessions

    @property
    def directory(self) -> Directory:
        """What is known of the catalog."""
        return self._router.now

    def pool_usage(self) -> list[PoolUsage]:
        """What is in use of this process's pools: each shard that was called has one for each driver."""
        return self._engines.usage()

    def patience(self, waiting: Waiting) -> retries.Patience:
        """How a session waits out a handover.

        Args:
            waiting: how it waits at all.
        """
        return retries.Patience(self._router, waiting, self.map_wait)

    def begin_anew(self) -> None:
        """In the child of a fork: nothing of the parent's threads and connections is used."""
        self._making = threading.Lock()
        self._threads = None
        self._router.begin_anew()
        self._engines.begin_anew()
        for each in (self._calls, self.decider, self._ids, self.crossings):
            each.begin_anew()

    def _executor(self) -> ThreadPoolExecutor:
        """Threads in which shards are asked at the same time."""
        with self._making:
            if self._threads is None:
                # One for each connection that there may be: none of those who wait for a shard takes another's place.
                most = (self._engines.options.most or 100) * max(2, len(self.directory.shards))
                self._threads = ThreadPoolExecutor(max(32, most), thread_name_prefix="shardwright-scatter")
            return self._threads
