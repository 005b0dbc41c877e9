"""asyncpg's prepared statements and cursors before which their connection makes way, and how a server is waited for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

if TYPE_CHECKING:
    from shardwright.session.wire_asyncpg import GuardedAsyncpg

#: What asyncpg raises where the server, or the way to it, fails.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
#: Seconds between two looks whether it is worth waiting on.
_INTERVAL = 0.1


class Watched:
    """While a server is waited for: the connection is given up when it has fallen silent.

    Args:
        connection: whose.
    """

    __slots__ = ("_connection", "_since", "_timer", "_watch")

    def __init__(self, connection: GuardedAsyncpg) -> None:
        self._connection = connection
        self._watch = connection.watch

    def __enter__(self) -> None:
        if self._watch is not None:
            self._since = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)

    def _look(self) -> None:
        assert self._watch is not None
        if self._watch.is_silent(self._since):
            # Nobody can tell what would still come on it.
            self._connection.terminate()
        else:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._watch is not None:
            self._timer.cancel()
        if isinstance(error, asyncpg.InternalClientError):
            # The server's last words have come, and not yet that it closed the connection: asyncpg takes them for an answer.
            self._connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError("the server has closed the connection") from error
        if self._watch is None:
            return
        if error is None:
            self._watch.heard()
        elif isinstance(error, FAILURES):
            self._watch.judge(error)


class GuardedStatement(PreparedStatement):  # type: ignore[misc]
    """A prepared statement, before which its connection makes way, and which tells it when it has run."""

    __slots__ = ("_text",)

    def __init__(self, connection: GuardedAsyncpg, query: str, state: Any) -> None:
        super().__init__(connection, query, state)
        self._text = query

    async def fetch(self, *args: Any, timeout: float | None = None) -> Any:
        """As asyncpg's, as long as there is hope."""
        connection: GuardedAsyncpg = self._connection
        kind = await connection.make_way(self._text)
        with Watched(connection):
            found = await super().fetch(*args, timeout=timeout)
        connection.has_run = True
        connection.note_savepoint(kind)
        return found

    async def cursor(self, *args: Any, **options: Any) -> GuardedRows:
        """As asyncpg's, awaited."""
        connection: GuardedAsyncpg = self._connection
        await connection.make_way(self._text)
        opened = await super().cursor(*args, **options)
        connection.has_run = True
        return GuardedRows(connection, opened)


class GuardedRows:
    """What SQLAlchemy uses of an asyncpg cursor on the server; it takes its errors for no driver's unless they are adapted.

    Args:
        connection: whose.
        cursor: asyncpg's.
    """

    def __init__(self, connection: GuardedAsyncpg, cursor: Any) -> None:
        self._connection = connection
        self._cursor = cursor

    async def fetch(self, count: int, *, timeout: float | None = None) -> Any:
        """As asyncpg's, as long as there is hope."""
        try:
            with Watched(self._connection):
                return await self._cursor.fetch(count, timeout=timeout)
        except FAILURES as error:
            self._connection.adapted._handle_exception(error)
            raise
