"""From a session to an open transaction on a shard: checkout, BEGIN, the check; handed to SQLAlchemy when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.pool import PoolProxiedConnection

from shardwright import errors
from shardwright.session.faults import ConnectionLost, EntryRefused, translate
from shardwright.session.wire import Guarded

#: Execution options that must be set before BEGIN.
TRANSACTION_OPTIONS = frozenset({"isolation_level", "postgresql_readonly", "postgresql_deferrable"})


class SessionEngine(Engine):
    """One session's way to a shard: everything is the shard engine's own, but connecting is the session's.

    `Session` asks its bind for a connection from many places (execute, flush, get, lazy loads). Here they all meet, so
    that none of them begins a transaction without the check, and each may be answered by another shard than the one
    that refused.

    Args:
        parent: the shard's engine.
        connect: gives a connection whose transaction has begun.
    """

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

    def checkout(self, options: Mapping[str, Any]) -> Connection:
        """A connection from the shard's pool, before BEGIN.

        Args:
            options: execution options for it.
        """
        connection = super().connect()
        if options:
            connection = connection.execution_options(**options)
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
    connection: Connection, ranges: Iterable[int], *, ahead: bool, whole: bool = False, writes: bool = False
) -> None:
    """Begin a transaction on a connection that was just checked out. Closes it when that fails.

    Args:
        connection: the connection.
        ranges: ids of the ranges to enter.
        ahead: send BEGIN and the check, and let the first statement, which then may fail by them, or `hold` wait for
            the answer.
        whole: enter the whole shard too, for a scatter.
        writes: a write follows for sure.

    Raises:
        EntryRefused: the shard does not serve them.
        ConnectionLost: the connection was dead.
        BadOption: the transaction could not hold what the check locks.
    """
    with _beginning(connection):
        driver = driver_of(connection)
        if driver.is_standby:
            # PostgreSQL has said so by itself. Without the check, a demoted primary would be read for ever.
            connection.invalidate()
            raise ConnectionLost.standby(shard_of(connection.engine))
        driver.new_transaction(ranges)
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


def hold(connection: Connection, *, writes: bool = False) -> None:
    """Wait until a transaction that was begun ahead holds its ranges. Closes the connection when that fails.

    Args:
        connection: the connection.
        writes: a write follows for sure.

    Raises:
        EntryRefused, ConnectionLost: as `begin`.
    """
    with _beginning(connection):
        driver_of(connection).begin(writes=writes)


@contextmanager
def _beginning(connection: Connection) -> Iterator[None]:
    """While a transaction begins: errors are raised as ours where they amount to that, and the connection is closed."""
    try:
        yield
    except driver_errors(connection) as error:
        driver = driver_of(connection)
        ours = translate(shard_of(connection.engine), error, driver)
        if isinstance(ours, ConnectionLost):
            connection.invalidate(error)
        connection.close()
        if ours is None:
            raise as_sqlalchemy(connection, error, "BEGIN; SELECT shardwright.enter()") from error
        raise ours from error
    except BaseException as error:
        if not isinstance(error, Exception):
            # A task that was cancelled: nobody knows what is still to come on this connection.
            connection.invalidate(error)
        connection.close()
        raise


@contextmanager
def speaking_to(connection: Connection) -> Iterator[None]:
    """While a command of ours is sent in an open transaction: a driver's error is raised as SQLAlchemy would, or as ours.

    Args:
        connection: on which connection.

    Raises:
        SessionError, sqlalchemy.exc.DBAPIError: what the driver raised amounts to that.
    """
    driver, shard = driver_of(connection), shard_of(connection.engine)
    try:
        yield
    except driver_errors(connection) as error:
        ours = translate(shard, error, driver)
        if isinstance(ours, ConnectionLost):
            connection.invalidate(error)
        raise ours or as_sqlalchemy(connection, error, "COMMIT") from error


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
