"""From a session to an open transaction on a shard: checkout, BEGIN, the check; handed to SQLAlchemy when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.pool import PoolProxiedConnection

from shardwright import errors
from shardwright.session.faults import ConnectionLost, EntryRefused, translate
from shardwright.session.wire import Guarded

T = TypeVar("T")

_BEGIN = "BEGIN; SELECT shardwright.enter()"

#: Execution options that must be set before BEGIN.
TRANSACTION_OPTIONS = frozenset({"isolation_level", "postgresql_readonly", "postgresql_deferrable"})


class ShardConnection(Connection):
    """A connection whose transaction begins anew where the check refuses it before anything of the caller's has run.

    For flushes, in which a refusal could not be undone. Elsewhere `restart` is unset: who sends a statement has looked
    at its keys by a map, and looks again.
    """

    #: waits until it is worth trying again, and gives the ids of the ranges to enter then
    restart: Callable[[errors.SessionError], Iterable[int]] | None = None

    def execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        """As SQLAlchemy's."""
        if self.restart is None:
            return super().execute(statement, parameters, **options)
        return self._insist(partial(super().execute, statement, parameters, **options))

    def hold(self) -> None:
        """Wait until the ranges are held, where that is not known.

        Raises:
            SessionError, sqlalchemy.exc.DBAPIError: what the check met.
        """
        if self.restart is not None:
            self._insist(self._hold)

    def _hold(self) -> None:
        with speaking_to(self, _BEGIN):
            driver_of(self).begin()

    def _insist(self, call: Callable[[], T]) -> T:
        ranges: Iterable[int] | None = None
        while True:
            try:
                if ranges is not None:
                    self._begin_anew(ranges)
                result = call()
                self.restart = None
                return result
            except (EntryRefused, ConnectionLost) as refused:
                if self.restart is None or refused.had_run:
                    raise
                ranges = self.restart(refused)

    def _begin_anew(self, ranges: Iterable[int]) -> None:
        """Go on with another of the pool's connections.

        SQLAlchemy has no public way: its own transaction, and the session's, are to stay.
        """
        old, self._dbapi_connection = self._dbapi_connection, None
        if old is not None:
            old.close()
        self._dbapi_connection = self.engine.raw_connection()
        with speaking_to(self, _BEGIN):
            _fresh(self, ranges).send_ahead(writes=True)


class SessionEngine(Engine):
    """One session's way to a shard: everything is the shard engine's own, but connecting is the session's.

    `Session` asks its bind for a connection from many places (execute, flush, get, lazy loads). Here they all meet, so
    that none of them begins a transaction without the check, and each may be answered by another shard than the one
    that refused.

    Args:
        parent: the shard's engine.
        connect: gives a connection whose transaction has begun.
    """

    _connection_cls = ShardConnection

    def __init__(self, parent: Engine, connect: Callable[[SessionEngine], Connection]) -> None:
        self.follow(parent)
        self._session_connect = connect

    def follow(self, parent: Engine) -> None:
        """Lead to another shard from now on.

        Args:
            parent: that shard's engine.
        """
        if self.__dict__.get("parent") is not parent:
            self.__dict__.update(parent.__dict__)
            self.parent = parent

    def connect(self) -> Connection:
        """A connection that the session has begun a transaction on."""
        return self._session_connect(self)

    def checkout(self, options: Mapping[str, Any]) -> ShardConnection:
        """A connection from the shard's pool, before BEGIN.

        Args:
            options: execution options for it.
        """
        connection = super().connect()
        assert isinstance(connection, ShardConnection)
        if options:
            connection.execution_options(**options)
        return connection


def shard_of(engine: Engine) -> str:
    """The name of the shard that an engine leads to.

    Args:
        engine: one of the cluster's engines, or a session's.
    """
    return str(engine.__dict__["shardwright_shard"])


def driver_of(connection: Connection) -> Guarded:
    """The driver's connection below a SQLAlchemy connection.

    Args:
        connection: a connection to a shard.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, Guarded)
    return driver


def begin(
    connection: Connection,
    ranges: Iterable[int],
    *,
    ahead: bool,
    whole: bool = False,
    writes: bool = False,
    lock_timeout: float | None = None,
) -> None:
    """Begin a transaction on a connection that was just checked out. Closes it when that fails.

    Args:
        connection: the connection.
        ranges: ids of the ranges to enter.
        ahead: let the first statement, which then may fail by them, wait for the answer to BEGIN and the check.
        whole: enter the whole shard too, for a scatter.
        writes: a write follows for sure.
        lock_timeout: seconds for which it waits for a lock, unless the role or the database says so itself.

    Raises:
        EntryRefused: the shard does not serve them.
        ConnectionLost: the connection was dead.
        BadOption: the transaction could not hold what the check locks.
    """
    with _beginning(connection):
        driver = _fresh(connection, ranges, lock_timeout)
        if driver.is_autocommit and (ranges or whole):
            raise errors.BadOption(
                "AUTOCOMMIT gives up the ownership check with each statement",
                fix='use another isolation level, or reads="relaxed"',
            )
        connection.begin()
        if whole:
            driver.enter_all()
        elif ahead:
            driver.send_ahead(writes=writes)
        else:
            driver.begin(writes=writes)


def _fresh(connection: Connection, ranges: Iterable[int], lock_timeout: float | None = None) -> Guarded:
    """The driver's connection, for a transaction that enters ranges."""
    driver = driver_of(connection)
    if driver.is_standby:
        # PostgreSQL has said so by itself. Without the check, a demoted primary would be read for ever.
        connection.invalidate()
        raise ConnectionLost.standby(shard_of(connection.engine))
    driver.new_transaction(ranges, lock_timeout)
    return driver


@contextmanager
def _beginning(connection: Connection) -> Iterator[None]:
    """While a transaction begins: errors are raised as ours where they amount to that, and the connection is closed."""
    try:
        yield
    except driver_errors(connection) as error:
        meant = _meant(connection, error, _BEGIN)
        connection.close()
        raise meant from error
    except BaseException as error:
        if not isinstance(error, Exception):
            # A task that was cancelled: nobody knows what is still to come on this connection.
            connection.invalidate(error)
        connection.close()
        raise


@contextmanager
def speaking_to(connection: Connection, command: str = "COMMIT") -> Iterator[None]:
    """While a command of ours is sent in an open transaction: a driver's error is raised as SQLAlchemy would, or as ours.

    Args:
        connection: on which connection.
        command: what is sent.

    Raises:
        SessionError, sqlalchemy.exc.DBAPIError: what the driver raised amounts to that.
    """
    try:
        yield
    except driver_errors(connection) as error:
        raise _meant(connection, error, command) from error


def _meant(connection: Connection, error: Exception, command: str) -> BaseException:
    """What a driver's error amounts to; the connection is invalidated where it is lost."""
    ours = translate(shard_of(connection.engine), error, driver_of(connection))
    if isinstance(ours, ConnectionLost):
        connection.invalidate(error)
    return ours or as_sqlalchemy(connection, error, command)


def driver_errors(connection: Connection | Engine) -> tuple[type[Exception], ...]:
    """What a driver raises.

    Args:
        connection: a connection to a shard, or its engine.
    """
    return (connection.dialect.loaded_dbapi.Error, OSError)


def as_sqlalchemy(connection: Connection, error: Exception, statement: str) -> BaseException:
    """A driver's error as SQLAlchemy would raise it.

    Args:
        connection: where it happened.
        error: what the driver raised.
        statement: what was sent.
    """
    return sa.exc.DBAPIError.instance(
        statement,
        None,
        error,
        connection.dialect.loaded_dbapi.Error,
        dialect=connection.dialect,
    )


def announce_commits(engine: Engine) -> None:
    """Have `Guarded.before_commit` called before a connection of an engine is committed.

    Not by SQLAlchemy's event: an engine that has one makes every use of its connections slower.

    Args:
        engine: the shard's engine.
    """
    dialect: Any = engine.dialect
    commit = dialect.do_commit

    def do_commit(connection: PoolProxiedConnection) -> None:
        driver = connection.driver_connection
        assert isinstance(driver, Guarded)
        if driver.before_commit is not None:
            driver.before_commit()
        commit(connection)

    dialect.do_commit = do_commit


def translate_errors(engine: Engine, shard: str, on_moved: Callable[[], object]) -> None:
    """Let an engine raise our errors where a shard's error means more than SQLAlchemy can know.

    Args:
        engine: the shard's engine.
        shard: its name.
        on_moved: called when a shard refused a row by its guard, without any check before: the map is too old.
    """

    @sa.event.listens_for(engine, "handle_error")
    def on_error(context: ExceptionContext) -> BaseException | None:
        error = context.original_exception
        if not isinstance(error, (context.dialect.loaded_dbapi.Error, OSError)):
            return None
        driver: Guarded | None = None
        if context.connection is not None and not context.connection.closed and not context.connection.invalidated:
            driver = driver_of(context.connection)
        ours = translate(shard, error, driver)
        if isinstance(ours, ConnectionLost):
            # A demoted primary answers as well as before: without this its connections would stay in the pool.
            context.is_disconnect = True
        elif isinstance(ours, errors.ShardMoved) and not isinstance(ours, EntryRefused):
            on_moved()
        return ours
