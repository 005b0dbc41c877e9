"""psycopg cursors that send what must go ahead of a statement in the same flush: BEGIN and the ownership check.

This follows psycopg's own cursors step by step; what is leaned on of their inside is in this file and in `wire_psycopg`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import generators
from psycopg._cursor_base import BaseCursor
from psycopg._preparing import Prepare
from psycopg.abc import Params, PQGen, Query

from shardwright.session.entry_sql import ASK_XID
from shardwright.session.unanswered import leave_pipeline, raise_for

if TYPE_CHECKING:
    from shardwright.session.wire_psycopg import GuardedAsyncConnection, GuardedConnection, PsycopgGuarded


class _Ahead(BaseCursor[Any, Any]):
    """What all kinds of cursors have in common."""

    _conn: PsycopgGuarded

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn = self._conn
        if conn._owed:
            yield from conn._settle_gen()
        kind = conn.note_statement(query)
        asks = conn.wrote and conn.xact_id is None and not conn._autocommit and not conn.number_comes
        if conn._pipeline or not (asks or conn.needs_ahead):
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
        else:
            yield from self._execute_in_one_flush(query, params, prepare, binary, asks)
        conn.has_run = True
        conn.note_savepoint(kind)

    def _execute_in_one_flush(
        self, query: Query, params: Params | None, prepare: bool | None, binary: bool | None, asks: bool
    ) -> PQGen[None]:
        conn, pgconn = self._conn, self._pgconn
        # _start_query() of the base class resets the cursor and begins; here BEGIN has been taken care of.
        if self.closed:
            raise psycopg.InterfaceError("the cursor is closed")
        self._reset()
        if not self._last_query or self._last_query is not query:
            self._last_query = None
            self._tx = psycopg.adapt.Transformer(self)
        pgq = self._convert_query(query, params)
        conn._check_connection_ok()
        pgconn.enter_pipeline_mode()
        try:
            conn._send_each(conn.take_ahead())
            prep, name = self._get_prepared(pgq, prepare)
            if prep is Prepare.NO:
                self._execute_send(pgq, force_extended=True, binary=binary)
            else:
                if prep is Prepare.SHOULD:
                    self._send_prepare(name, pgq)
                self._send_query_prepared(name, pgq, binary=binary)
            if asks:
                pgconn.send_query_params(ASK_XID, None)
            pgconn.pipeline_sync()
            yield from generators.send(pgconn)
            refused = yield from conn._answers_gen()
            prepared = (yield from generators.fetch_many(pgconn)) if prep is Prepare.SHOULD else []
            results = yield from generators.fetch_many(pgconn)
            number = (yield from generators.fetch_many(pgconn)) if asks else []
            yield from generators.fetch_many(pgconn)
        finally:
            leave_pipeline(pgconn)
        if refused is not None:
            raise refused
        raise_for(pgconn, prepared)
        if (key := conn._prepared.maybe_add_to_cache(pgq, prep, name)) is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)
        if asks:
            conn.note_xid(number)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)

    def _stream_send_gen(self, query: Query, params: Params | None = None, **options: Any) -> PQGen[None]:
        self._conn.note_statement(query)
        yield from super()._stream_send_gen(query, params, **options)
        self._conn.has_run = True

    def _start_copy_gen(self, statement: Query, params: Params | None = None) -> PQGen[None]:
        self._conn.note_statement(statement)
        yield from super()._start_copy_gen(statement, params)
        self._conn.has_run = True


class GuardedCursor(_Ahead, psycopg.Cursor[Any]):
    """A cursor of a thread's connection."""

    _conn: GuardedConnection

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """As psycopg's; the transaction begins before it, since it has a pipeline of its own."""
        self._conn.note_statement(query)
        if self._conn.needs_ahead:
            self._conn.begin()
        super().executemany(query, params_seq, returning=returning)
        self._conn.has_run = True


class GuardedAsyncCursor(_Ahead, psycopg.AsyncCursor[Any]):
    """A cursor of an event loop's connection."""

    _conn: GuardedAsyncConnection

    async def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """As psycopg's; the transaction begins before it, since it has a pipeline of its own."""
        self._conn.note_statement(query)
        if self._conn.needs_ahead:
            await self._conn.perform(self._conn._begin_gen(writes=False))
        await super().executemany(query, params_seq, returning=returning)
        self._conn.has_run = True


class _Declared:
    """What cursors on the server have in common: the transaction begins before they are declared."""

    _conn: Any

    def _declare_gen(self, query: Query, params: Params | None = None, binary: bool | None = None) -> PQGen[None]:
        conn: PsycopgGuarded = self._conn
        conn.note_statement(query)
        yield from super()._declare_gen(query, params, binary)  # type: ignore[misc]
        conn.has_run = True


class GuardedServerCursor(_Declared, psycopg.ServerCursor[Any]):
    """A cursor on the server, of a thread's connection."""

    _conn: GuardedConnection

    def execute(self, query: Query, *args: Any, **options: Any) -> Self:
        """As psycopg's, which declares nothing while an answer is to come."""
        self._conn.settle()
        return super().execute(query, *args, **options)


class GuardedAsyncServerCursor(_Declared, psycopg.AsyncServerCursor[Any]):
    """A cursor on the server, of an event loop's connection."""

    _conn: GuardedAsyncConnection

    async def execute(self, query: Query, *args: Any, **options: Any) -> Self:
        """As psycopg's, which declares nothing while an answer is to come."""
        await self._conn.perform(self._conn._settle_gen())
        return await super().execute(query, *args, **options)
