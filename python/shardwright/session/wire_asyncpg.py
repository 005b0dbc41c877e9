"""asyncpg connections whose transactions begin with the ownership check.

asyncpg cannot send several statements in one flush. BEGIN and the check are one message of the simple protocol, which
costs what BEGIN alone does; the first statement follows. What we ask ourselves is asked by COPY, whose answer takes one
message where asyncpg's queries take two.

SQLAlchemy begins by `transaction()`, executes by `prepare()`, and keeps a transaction's options in its own adapter.
"""

from __future__ import annotations

import contextlib
import csv
import socket
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import asyncpg
from sqlalchemy.util import await_only

from shardwright.session.asyncpg_statements import FAILURES, GuardedStatement, Watched
from shardwright.session.entry_sql import ASK_XID, ENTER_ALL
from shardwright.session.tasks import in_a_hurry, to_its_end
from shardwright.session.wire import CANNOT_COMMIT, Guarded, Kind, mark_commit_lost, mark_entry
from shardwright.session.wire_psycopg import COMMIT_GRACE, Watch

T = TypeVar("T")

_IN_FAILED = "25P02"


class GuardedAsyncpg(Guarded, asyncpg.Connection):  # type: ignore[misc]
    """A connection of an application's session to one shard. See `Guarded`."""

    #: told of answers and errors, and asked whether it is worth waiting on; None: nobody cares
    watch: Watch | None = None
    #: SQLAlchemy's adapter around it, which knows the options of its transactions; set once it is made
    adapted: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._to_be_whole = False
        self._keeps_prepared = True
        self.new_transaction(())

    def adapt(self, adapted: Any) -> None:
        """Take note of SQLAlchemy's adapter.

        Args:
            adapted: the adapter.
        """
        self.adapted = adapted
        if not self._keeps_prepared:
            adapted._prepared_statement_cache = None

    # ------------------------------------------------------------------ see `Guarded`

    @property
    def process(self) -> int:
        """See `Guarded`."""
        return int(self.get_server_pid())

    def keep_nothing_prepared(self) -> None:
        """See `Guarded`."""
        self._keeps_prepared = False
        self._stmt_cache.set_max_size(0)
        self._stmt_cache_enabled = False

    @property
    def is_autocommit(self) -> bool:
        """See `Guarded`."""
        return self.adapted is None or bool(self.adapted.autocommit)

    @property
    def is_read_only(self) -> bool:
        """See `Guarded`."""
        return self.adapted is not None and bool(self.adapted.readonly)

    @property
    def level(self) -> str:
        """See `Guarded`."""
        level = self.adapted.isolation_level if self.adapted is not None else None
        return (level or "").replace("_", " ").upper()

    @property
    def has_begun(self) -> bool:
        """See `Guarded`."""
        return not self.is_closed() and self.is_in_transaction()

    @property
    def has_failed(self) -> bool:
        """See `Guarded`; asyncpg does not tell, so it is left to the server to say."""
        return False

    @property
    def is_lost(self) -> bool:
        """See `Guarded`."""
        return bool(self.is_closed())

    @property
    def is_standby(self) -> bool:
        """See `Guarded`."""
        return getattr(self.get_settings(), "in_hot_standby", "off") == "on"

    def begin_sql(self, *, read_only: bool) -> bytes:
        """See `Guarded`."""
        words = ["BEGIN"]
        if self.level:
            words.append(f"ISOLATION LEVEL {self.level}")
        if read_only:
            words.append("READ ONLY")
        if self.adapted.deferrable:
            words.append("DEFERRABLE")
        return " ".join(words).encode()

    def begin(self, *, writes: bool = False) -> None:
        """See `Guarded`; the transaction's number is asked for when it is needed."""
        if writes and not self.is_read_only and not self.is_autocommit:
            self.wrote = True
        self._perform(self._begun())

    def enter_all(self) -> None:
        """See `Guarded`."""
        self._perform(self._begun(whole=True))

    def ask_xact_id(self) -> int | None:
        """See `Guarded`."""
        if self.xact_id is None and self.has_begun:
            self._perform(self._ask_xid())
        return self.xact_id

    def command(self, text: str) -> str:
        """See `Guarded`."""
        return self._perform(self._command(text))

    def _perform(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something, with errors as SQLAlchemy makes them."""
        try:
            return await_only(work)
        except FAILURES as error:
            self.adapted._handle_exception(error)
            raise

    # ------------------------------------------------------------------ what is said

    async def _begun(self, *, whole: bool = False) -> None:
        if self.has_begun:
            await self._go_ahead(whole=whole)
            return
        self._to_be_whole = whole
        try:
            # SQLAlchemy's adapter has to know of the transaction; it calls `transaction`.
            await self.adapted._start_transaction()
        finally:
            self._to_be_whole = False

    async def start(self) -> None:
        """Begin, with what must reach the server before the first statement."""
        try:
            await self._go_ahead(whole=self._to_be_whole)
        except FAILURES:
            if self.has_begun:
                await self.execute("ROLLBACK")
            raise

    async def _go_ahead(self, *, whole: bool = False) -> None:
        """Send what must go ahead of the next statement; all of it is ours, so an error is the check's."""
        commands = self.take_ahead(whole=whole)
        at = commands.index(ENTER_ALL) if whole else len(commands)
        try:
            if before := commands[:at]:
                await self.execute(b"; ".join(before).decode())
            if whole:
                self.note_served(await self.rows(ENTER_ALL))
            if after := commands[at + 1 :]:
                await self.execute(b"; ".join(after).decode())
        except FAILURES as error:
            mark_entry(error)
            raise

    async def rows(self, query: bytes) -> list[list[str]]:
        """What a query of our own gives, as texts.

        Args:
            query: the query.
        """
        found = bytearray()

        async def collect(data: bytes) -> None:
            found.extend(data)

        with Watched(self):
            await self.copy_from_query(query.decode(), output=collect, format="csv")
        return list(csv.reader(found.decode().splitlines()))

    async def _ask_xid(self) -> None:
        try:
            answer = await self.rows(ASK_XID)
        except asyncpg.PostgresError as error:
            if error.sqlstate != _IN_FAILED:
                raise
            return
        self.xact_id = int(answer[0][0]) if answer and answer[0] and answer[0][0] else None

    async def _command(self, text: str) -> str:
        if text.lstrip()[:6].upper() == "SELECT":
            answer = await self.rows(text.encode())
            return answer[0][0] if answer and answer[0] else ""
        return await self.execute(text)

    async def commit(self) -> None:
        """COMMIT; never sent a second time.

        A task that is cancelled meanwhile ends when it has been answered, within `COMMIT_GRACE`.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: `is_commit_lost` where the answer was lost.
        """
        if self.settled:
            return
        if self.wrote:
            # Before COMMIT is sent: what fails here is an ordinary failure of a transaction.
            await self._ask_xid_once()
        try:
            said = await to_its_end(self.execute("COMMIT"), COMMIT_GRACE, self.terminate)
        except FAILURES as error:
            if self.is_lost:
                if self.only_read:
                    return
                mark_commit_lost(error)
            raise
        if said == "ROLLBACK":
            raise asyncpg.InFailedSQLTransactionError(CANNOT_COMMIT)

    async def _ask_xid_once(self) -> None:
        if self.xact_id is None:
            await self._ask_xid()

    # ------------------------------------------------------------------ where SQLAlchemy comes in

    def transaction(self, **_options: Any) -> _Transaction:
        """A transaction that begins as a shard's must; its options are the adapter's, which is asked for them."""
        return _Transaction(self)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's, as long as there is hope."""
        with Watched(self):
            said: str = await super().execute(query, *args, timeout=timeout)
        return said

    async def prepare(self, query: str, **options: Any) -> GuardedStatement:
        """As asyncpg's; SQLAlchemy keeps what it is given, and executes it in many transactions."""
        with Watched(self):
            made = await super().prepare(query, **options)
        return GuardedStatement(self, query, made._state)

    async def make_way(self, query: str) -> Kind:
        """Before a statement is executed: take note of it, and send what must go ahead of it.

        Args:
            query: the statement.
        """
        kind = self.note_statement(query)
        if self._wanted and not self.is_autocommit:
            await self._go_ahead()
        return kind

    async def executemany(self, command: str, args: Iterable[Any], *, timeout: float | None = None) -> None:
        """As asyncpg's, with what must go ahead of it."""
        await self.make_way(command)
        with Watched(self):
            await super().executemany(command, args, timeout=timeout)
        self.has_run = True

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """As asyncpg's, which asks the server in several messages: PgBouncer keeps those of a transaction together."""
        if self.is_in_transaction():
            await super().set_type_codec(*args, **options)
            return
        try:
            await self.execute("BEGIN")
            await super().set_type_codec(*args, **options)
            await self.execute("ROLLBACK")
        except BaseException:
            # SQLAlchemy forgets a connection whose first steps fail.
            self.terminate()
            raise

    async def close(self, *, timeout: float | None = None) -> None:
        """As asyncpg's; at once where nobody can wait, as when the event loop has gone."""
        if not in_a_hurry.get():
            await super().close(timeout=timeout)
            return
        wire = self._transport.get_extra_info("socket")
        try:
            self.terminate()
        except RuntimeError:
            # The event loop is closed, and cannot close the socket any more.
            self._aborted, self._protocol = True, None
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


class _Transaction:
    """What SQLAlchemy's adapter uses of an asyncpg transaction."""

    _managed = False

    def __init__(self, connection: GuardedAsyncpg) -> None:
        self._connection = connection

    async def start(self) -> None:
        await self._connection.start()
        # Where asyncpg looks, in its older versions, whether there may be a cursor.
        self._connection._top_xact = self

    async def commit(self) -> None:
        self._connection._top_xact = None
        await self._connection.commit()

    async def rollback(self) -> None:
        self._connection._top_xact = None
        # In a hurry it is about to be closed, which ends the transaction as well.
        if self._connection.has_begun and not in_a_hurry.get():
            await self._connection.execute("ROLLBACK")
