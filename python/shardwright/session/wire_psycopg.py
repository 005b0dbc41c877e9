"""psycopg connections whose transactions begin with the ownership check, for threads and for an event loop.

What is said to the server is written once, as generators, which is how psycopg itself is made: each kind of connection
performs them in its own way. psycopg's inside is leaned on here and in `cursors` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.rows import AsyncRowFactory, RowFactory, tuple_row
from psycopg.waiting import Ready, wait_async
from sqlalchemy.util import await_only

from shardwright.session.cursors import (
    GuardedAsyncCursor,
    GuardedAsyncServerCursor,
    GuardedCursor,
    GuardedServerCursor,
)
from shardwright.session.entry_sql import ASK_XID, ENTER_ALL, TAKE_XID
from shardwright.session.unanswered import Unanswered, raise_for
from shardwright.session.wire import CANNOT_COMMIT, mark_commit_lost, mark_entry

T = TypeVar("T")

_READABLE = int(Ready.R)
_IDLE = pq.TransactionStatus.IDLE
_IN_TRANSACTION = pq.TransactionStatus.INTRANS
_FAILED = pq.TransactionStatus.INERROR
_SNAPSHOT_LEVELS = (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE)

#: Seconds between two looks whether it is worth waiting on, as psycopg's own.
_INTERVAL = 0.1
#: Seconds for which a cancelled task waits for the answer to the COMMIT that it has sent.
COMMIT_GRACE = 5.0


class Watch(Protocol):
    """Who looks after a connection's waits; `health.Health` is one."""

    def heard(self) -> None:
        """It was answered."""
        ...

    def judge(self, error: BaseException) -> None:
        """It met an error."""
        ...

    def is_silent(self, since: float) -> bool:
        """Whether an answer that is waited for since then will not come. Must not block."""
        ...


class PsycopgGuarded(Unanswered):
    """What both kinds of psycopg connections have in common."""

    #: told of answers and errors, and asked whether it is worth waiting on; None: nobody cares
    watch: Watch | None = None

    def watched(self, generator: PQGen[T]) -> PQGen[T]:
        """A generator, given up when the server has fallen silent.

        Args:
            generator: one of this connection's.

        Raises:
            psycopg.OperationalError: the server answers nobody any more; the connection is closed.
        """
        watch, since, answered = self.watch, time.monotonic(), False
        assert watch is not None
        try:
            wanted = next(generator)
            while True:
                # None where psycopg goes on with it after an interruption.
                ready = (yield wanted) or 0
                if ready & _READABLE:
                    answered = True
                elif not ready and watch.is_silent(since):
                    # Nobody can tell what would still come on it.
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"no answer for {time.monotonic() - since:.1f} s, and the server answers nobody else either"
                    )
                wanted = generator.send(ready)
        except StopIteration as stop:
            if answered:
                watch.heard()
            found: T = stop.value
            return found
        except psycopg.Error as error:
            watch.judge(error)
            raise

    # ------------------------------------------------------------------ see `Guarded`

    @property
    def process(self) -> int:
        """See `Guarded`."""
        return self.pgconn.backend_pid

    def keep_nothing_prepared(self) -> None:
        """See `Guarded`."""
        self.prepare_threshold = None

    @property
    def is_autocommit(self) -> bool:
        """See `Guarded`."""
        return self._autocommit

    @property
    def is_read_only(self) -> bool:
        """See `Guarded`."""
        return bool(self.read_only)

    @property
    def level(self) -> str:
        """See `Guarded`."""
        level = self.isolation_level
        return "" if level is None else psycopg.IsolationLevel(level).name.replace("_", " ")

    @property
    def takes_snapshot(self) -> bool:
        """See `Guarded`."""
        return self.isolation_level in _SNAPSHOT_LEVELS

    @property
    def has_begun(self) -> bool:
        """See `Guarded`."""
        return not self._owed and self.pgconn.transaction_status != _IDLE

    @property
    def has_failed(self) -> bool:
        """See `Guarded`."""
        return self.pgconn.transaction_status == _FAILED

    @property
    def is_lost(self) -> bool:
        """See `Guarded`."""
        return self.closed

    @property
    def is_standby(self) -> bool:
        """See `Guarded`."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    @property
    def needs_ahead(self) -> bool:
        """See `Guarded`; asked for each statement."""
        status = self.pgconn.transaction_status
        return not self._autocommit and status != _FAILED and bool(self._wanted or self._sent or status == _IDLE)

    def begin_sql(self, *, read_only: bool) -> bytes:
        """See `Guarded`."""
        if read_only or not self.read_only:
            return self._get_tx_start_command()
        kept, self._begin_statement = self._begin_statement, b""
        command = self._get_tx_start_command().replace(b" READ ONLY", b"")
        self._begin_statement = kept
        return command

    def begin(self, *, writes: bool = False) -> None:
        """See `Guarded`."""
        self.settle()
        if self.needs_ahead:
            self._perform(self._begin_gen(writes))

    def enter_all(self) -> None:
        """See `Guarded`."""
        self.note_served(self._perform(self._enter_all_gen()))

    def ask_xact_id(self) -> int | None:
        """See `Guarded`."""
        if self._asks_xid:
            self._perform(self._ask_xid_gen())
        return self.xact_id

    def command(self, text: str) -> str:
        """See `Guarded`."""
        return self._perform(self._command_gen(text))

    @property
    def _asks_xid(self) -> bool:
        return self.xact_id is None and (bool(self._sent) or self.pgconn.transaction_status == _IN_TRANSACTION)

    # ------------------------------------------------------------------ generators

    def _begin_gen(self, writes: bool) -> PQGen[None]:
        if self._sent:
            yield from self._settle_gen()
        commands = self.take_ahead()
        if not commands:
            return
        asks = writes and not self.read_only and not self._autocommit
        if asks:
            commands.append(TAKE_XID)
        results = yield from self._exec_all(commands)
        if asks:
            self.wrote = True
            self.note_xid(results[-1:])

    def _start_query(self) -> PQGen[None]:
        if self.is_owed:
            yield from self._settle_gen()
        commands = self.take_ahead()
        if not commands:
            return
        if self._pipeline:
            for command in commands:
                yield from self._exec_command(command)
            yield from self._pipeline._sync_gen()
            return
        yield from self._exec_all(commands)

    def _exec_all(self, commands: Sequence[bytes]) -> PQGen[list[pq.abc.PGresult]]:
        """Send commands as one message of the simple protocol; they are all ours, so an error is the check's."""
        try:
            if self.is_owed:
                yield from self._settle_gen()
            self._check_connection_ok()
            self.pgconn.send_query(b"; ".join(commands))
            results: list[pq.abc.PGresult] = yield from generators.execute(self.pgconn)
            raise_for(self.pgconn, results)
        except psycopg.Error as error:
            mark_entry(error)
            raise
        return results

    def _enter_all_gen(self) -> PQGen[list[list[str]]]:
        commands = self.take_ahead(whole=True)
        results = yield from self._exec_all(commands)
        found = results[commands.index(ENTER_ALL)]
        return [[(found.get_value(row, column) or b"").decode() for column in range(3)] for row in range(found.ntuples)]

    def _ask_xid_gen(self) -> PQGen[None]:
        if self._sent:
            yield from self._settle_gen()
            if self.xact_id is not None:
                return
        self._check_connection_ok()
        self.pgconn.send_query(ASK_XID)
        results = yield from generators.execute(self.pgconn)
        raise_for(self.pgconn, results)
        self.note_xid(results)

    def _command_gen(self, text: str) -> PQGen[str]:
        if self.is_owed:
            yield from self._settle_gen()
        self._check_connection_ok()
        self.pgconn.send_query(text.encode())
        results = yield from generators.execute(self.pgconn)
        raise_for(self.pgconn, results)
        has_rows = results[0].status == pq.ExecStatus.TUPLES_OK
        return ((results[0].get_value(0, 0) if has_rows else results[0].command_status) or b"").decode()

    def _commit_gen(self) -> PQGen[None]:
        """COMMIT; never sent a second time.

        Raises:
            psycopg.Error: `is_commit_lost` where the answer was lost.
        """
        if self.is_owed:
            yield from self._settle_gen()
        if self.pgconn.transaction_status == _FAILED:
            raise psycopg.errors.InFailedSqlTransaction(CANNOT_COMMIT)
        if self.wrote and self._asks_xid:
            # Before COMMIT is sent: what fails here is an ordinary failure of a transaction.
            yield from self._ask_xid_gen()
        try:
            yield from super()._commit_gen()
        except psycopg.Error as error:
            if self.pgconn.status != pq.ConnStatus.OK:
                if self.only_read:
                    return
                mark_commit_lost(error)
            raise


class GuardedConnection(PsycopgGuarded, psycopg.Connection[Any]):
    """A connection of an application's session to one shard."""

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: RowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory = GuardedCursor
        self.server_cursor_factory = GuardedServerCursor
        self.new_transaction(())

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """As psycopg's, as long as there is hope."""
        return super().wait(self.watched(gen) if self.watch is not None else gen, *args, **kwargs)

    def _perform(self, generator: PQGen[T]) -> T:
        with self.lock:
            return self.wait(generator)

    def commit(self) -> None:
        """As psycopg's, unless there is nothing left to do."""
        if not self.settled:
            super().commit()

    def rollback(self) -> None:
        """As psycopg's, unless no transaction is open: a pool asks for it each time that it gets a connection back."""
        if self.pgconn.transaction_status != _IDLE and not self._owed and not self._let_go():
            super().rollback()


class GuardedAsyncConnection(PsycopgGuarded, psycopg.AsyncConnection[Any]):
    """The same on an event loop. What it shares with the other kind is called in one of SQLAlchemy's greenlets."""

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory = GuardedAsyncCursor
        self.server_cursor_factory = GuardedAsyncServerCursor
        self.new_transaction(())

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """As psycopg's, as long as there is hope."""
        return await super().wait(self.watched(gen) if self.watch is not None else gen, *args, **kwargs)

    def _perform(self, generator: PQGen[T]) -> T:
        return await_only(self.perform(generator))

    async def perform(self, generator: PQGen[T]) -> T:
        """Talk to the server until a generator has ended.

        Args:
            generator: one of this connection's.
        """
        async with self.lock:
            return await self.wait(generator)

    async def rollback(self) -> None:
        """As psycopg's, unless no transaction is open."""
        if self.pgconn.transaction_status != _IDLE and not self._owed and not self._let_go():
            await super().rollback()

    async def commit(self) -> None:
        """As psycopg's; a task that is cancelled meanwhile ends when COMMIT has been answered, within `COMMIT_GRACE`.

        psycopg would cancel the COMMIT on the server. Where it waits for standbys, it would be committed all the same,
        and not be safe.
        """
        if self.settled:
            return
        async with self.lock:
            generator = self._commit_gen()
            if self.watch is not None:
                generator = self.watched(generator)
            try:
                await wait_async(generator, self.pgconn.socket, interval=_INTERVAL)
            except asyncio.CancelledError as cancelled:
                try:
                    rest = wait_async(generator, self.pgconn.socket, interval=_INTERVAL)
                    await asyncio.wait_for(rest, COMMIT_GRACE)
                except BaseException as failed:
                    if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                        self.pgconn.finish()
                    raise cancelled from failed
                raise
