"""A psycopg connection whose transactions begin with the ownership check, in the same message as BEGIN.

Two forms. *At once*: one simple-protocol message ``BEGIN; SELECT shardwright.enter(..)``, for whoever needs to know before
the first statement that the range is served here. *Ahead*: BEGIN, the check and the first statement leave in one
flush in pipeline mode, which saves BEGIN's round trip; an error of the check aborts the rest of the pipeline, so the
statement has not run. Nothing outlives the transaction, so both work through PgBouncer in transaction mode.

The pool shares a connection among all keys of its shard: which ranges to enter is told before each transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import generators, pq
from psycopg.abc import Params, PQGen, Query
from psycopg.rows import RowFactory, tuple_row

from shardwright.routing.multirange import Multirange

_IDLE = pq.TransactionStatus.IDLE
_FAILED = pq.TransactionStatus.INERROR
_FATAL = pq.ExecStatus.FATAL_ERROR
_ABORTED = pq.ExecStatus.PIPELINE_ABORTED

# What cannot have written: only these leave out the question for the transaction's number.
_READS = re.compile(r"\s*(?:SELECT|VALUES|TABLE|SHOW|FETCH|SAVEPOINT|RELEASE|ROLLBACK|SET)\b", re.IGNORECASE)
_WRITES_INSIDE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_ASK_XID = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text"
_ENTER_ALL = b"SELECT keyspace, owned::pg_catalog.text, strangers FROM shardwright.enter_all()"
_SNAPSHOT_LEVELS = (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE)


def enter_sql(ranges: Iterable[int]) -> bytes:
    """SQL that enters ranges, in the order of their ids.

    Args:
        ranges: ids of ranges.
    """
    calls = [f"shardwright.enter({number})" for number in sorted(ranges)]
    if len(calls) <= 8:
        return ("SELECT " + ", ".join(calls)).encode()
    listed = ",".join(str(number) for number in sorted(ranges))
    return f"SELECT count(shardwright.enter(r)) FROM pg_catalog.unnest('{{{listed}}}'::int[]) AS r".encode()


def may_write(query: object) -> bool:
    """Whether a statement is something else than a plain read.

    Args:
        query: its text, or what psycopg takes in its place.
    """
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else query
    return not isinstance(text, str) or not _READS.match(text) or bool(_WRITES_INSIDE.search(text))


def happened_at_entry(error: BaseException) -> bool:
    """Whether an error came from BEGIN or the ownership check, so that nothing of the caller's has run.

    Args:
        error: what psycopg raised.
    """
    return getattr(error, "shardwright_at_entry", False)


class GuardedConnection(psycopg.Connection[Any]):
    """A connection of an application's session to one shard."""

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: RowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory = GuardedCursor
        #: the server's timeline when this connection was opened; 0 when it could not be asked
        self.timeline = 0
        self.new_transaction(())

    def new_transaction(self, ranges: Iterable[int]) -> None:
        """Say which ranges the next transaction enters. Called between transactions only.

        Args:
            ranges: ids of ranges; none for a transaction without a check.
        """
        #: the transaction's number, once it wrote and the server told
        self.xact_id: int | None = None
        #: whether it sent something that may have written
        self.wrote = False
        #: it is known to have written nothing, and is a part of a larger transaction: losing its COMMIT loses nothing
        self.only_read = False
        #: whether a statement of the caller's has succeeded in it
        self.has_run = False
        #: what the shard serves, by keyspace, when it was entered as a whole: owned points, and whether others are here
        self.served: dict[str, tuple[Multirange, bool]] | None = None
        self._entered: set[int] = set()
        self._outside_savepoints: set[int] | None = None
        self._wanted: set[int] = set(ranges)

    def want(self, ranges: Iterable[int]) -> None:
        """Enter more ranges together with the next statement.

        Args:
            ranges: ids of ranges; those that were entered already cost nothing.
        """
        self._wanted.update(ranges)
        self._wanted -= self._entered

    @property
    def has_entered(self) -> bool:
        """Whether ranges, or the whole shard, are held in this transaction."""
        return bool(self._entered) or self.served is not None

    @property
    def takes_snapshot(self) -> bool:
        """Whether its transactions keep one snapshot, so that the check locks the range's row."""
        return self.isolation_level in _SNAPSHOT_LEVELS

    @property
    def has_begun(self) -> bool:
        """Whether a transaction is open on the server."""
        return self.pgconn.transaction_status != _IDLE

    def begin(self) -> None:
        """Begin now, with the check: when this returns, the ranges are held.

        Raises:
            psycopg.Error: `happened_at_entry` tells that it is the check's.
        """
        with self.lock:
            self.wait(self._start_query())

    def enter_all(self) -> None:
        """Hold off every switch on this shard until the transaction ends, and learn what it serves (`served`).

        Raises:
            psycopg.Error: `happened_at_entry` is true for it where the transaction began with this.
        """
        with self.lock:
            rows = self.wait(self._enter_all_gen())
        self.served = {name: (Multirange.parse(owned), strangers == "t") for name, owned, strangers in rows}

    def savepoint_opened(self) -> None:
        """A savepoint was made: ranges entered from now on are lost when it is rolled back to."""
        if self._outside_savepoints is None:
            self._outside_savepoints = set(self._entered)

    def savepoint_undone(self) -> None:
        """A savepoint was rolled back to: PostgreSQL has released the locks that were taken since."""
        if self._outside_savepoints is not None:
            self._entered = set(self._outside_savepoints)

    def note_statement(self, query: object) -> None:
        """Take note whether a statement may write.

        Args:
            query: the statement, as handed to a cursor.
        """
        if not self.wrote and not self._autocommit and may_write(query):
            self.wrote = True

    def ask_xact_id(self) -> int | None:
        """Ask the server for the transaction's number: None where it has written nothing yet."""
        if self.xact_id is None and self.has_begun:
            with self.lock:
                self.wait(self._ask_xid_gen())
        return self.xact_id

    def commit(self) -> None:
        """Commit; never sent a second time.

        Raises:
            psycopg.Error: with the attribute `shardwright_commit_lost` where the answer was lost.
        """
        status = self.pgconn.transaction_status
        if status == _FAILED:
            # The server would answer COMMIT with ROLLBACK, and nobody would be told.
            raise psycopg.errors.InFailedSqlTransaction("the transaction has failed and cannot be committed")
        if self.wrote:
            # Before COMMIT is sent: what fails here is an ordinary failure of a transaction.
            self.ask_xact_id()
        try:
            super().commit()
        except psycopg.Error as error:
            if self.pgconn.status != pq.ConnStatus.OK:
                if self.only_read:
                    return
                error.shardwright_commit_lost = True  # type: ignore[attr-defined]
            raise

    # ------------------------------------------------------------------ generators

    def _get_tx_start_command(self) -> bytes:
        # Under a level that keeps its snapshot, enter() locks the range's row, which a READ ONLY transaction may not:
        # it becomes read-only behind the check.
        if self.read_only and self.takes_snapshot and self._wanted and not self._begin_statement:
            command = super()._get_tx_start_command().replace(b" READ ONLY", b"")
            self._begin_statement = b""
            return command
        return super()._get_tx_start_command()

    def _take_ahead(self) -> list[bytes]:
        """Commands that must reach the server before the next statement; they count as sent."""
        if self._autocommit:
            return []
        commands = []
        begins = self.pgconn.transaction_status == _IDLE
        if begins:
            commands.append(self._get_tx_start_command())
        if self._wanted:
            commands.append(enter_sql(self._wanted))
            if begins and self.read_only and self.takes_snapshot:
                commands.append(b"SET TRANSACTION READ ONLY")
            self._entered |= self._wanted
            self._wanted = set()
        return commands

    def _needs_ahead(self) -> bool:
        return not self._autocommit and (bool(self._wanted) or self.pgconn.transaction_status == _IDLE)

    def _start_query(self) -> PQGen[None]:
        commands = self._take_ahead()
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
            self._check_connection_ok()
            self.pgconn.send_query(b"; ".join(commands))
            results: list[pq.abc.PGresult] = yield from generators.execute(self.pgconn)
            self._raise_for(results)
        except psycopg.Error as error:
            error.shardwright_at_entry = True  # type: ignore[attr-defined]
            raise
        return results

    def _raise_for(self, results: Sequence[pq.abc.PGresult]) -> None:
        for result in results:
            if result.status == _FATAL:
                raise psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _enter_all_gen(self) -> PQGen[list[tuple[str, str, str]]]:
        results = yield from self._exec_all([*self._take_ahead(), _ENTER_ALL])
        found = results[-1]
        return [
            tuple((found.get_value(row, column) or b"").decode() for column in range(3))  # type: ignore[misc]
            for row in range(found.ntuples)
        ]

    def _ask_xid_gen(self) -> PQGen[None]:
        self._check_connection_ok()
        self.pgconn.send_query(_ASK_XID)
        results = yield from generators.execute(self.pgconn)
        self._raise_for(results)
        self._note_xid(results)

    def _note_xid(self, results: Sequence[pq.abc.PGresult]) -> None:
        if results and results[0].status == pq.ExecStatus.TUPLES_OK:
            told = results[0].get_value(0, 0)
            self.xact_id = int(told) if told is not None else None


class GuardedCursor(psycopg.Cursor[Any]):
    """A cursor that sends what must go ahead of a statement in the same flush."""

    _conn: GuardedConnection

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn = self._conn
        conn.note_statement(query)
        asks = conn.wrote and conn.xact_id is None and not conn._autocommit
        if conn._pipeline or not (asks or conn._needs_ahead()):
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
        else:
            yield from self._execute_in_one_flush(query, params, prepare, binary, asks)
        conn.has_run = True

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
            ahead = conn._take_ahead()
            for command in ahead:
                pgconn.send_query_params(command, None)
            prep, name = self._get_prepared(pgq, prepare)
            if prep is _NO:
                self._execute_send(pgq, force_extended=True, binary=binary)
            else:
                if prep is _SHOULD:
                    self._send_prepare(name, pgq)
                self._send_query_prepared(name, pgq, binary=binary)
            key = conn._prepared.maybe_add_to_cache(pgq, prep, name)
            if asks:
                pgconn.send_query_params(_ASK_XID, None)
            pgconn.pipeline_sync()
            yield from generators.send(pgconn)
            checked = yield from self._fetch_ahead(len(ahead))
            prepared = (yield from generators.fetch_many(pgconn)) if prep is _SHOULD else []
            results = yield from generators.fetch_many(pgconn)
            number = (yield from generators.fetch_many(pgconn)) if asks else []
            yield from generators.fetch_many(pgconn)
        finally:
            _leave_pipeline(pgconn)
        if checked is not None:
            checked.shardwright_at_entry = True  # type: ignore[attr-defined]
            raise checked
        conn._raise_for(prepared)
        if key is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)
        if asks:
            conn._note_xid(number)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)

    def _fetch_ahead(self, count: int) -> PQGen[psycopg.Error | None]:
        """The first error of the commands that were sent ahead, or None; all of their results are read."""
        found: psycopg.Error | None = None
        for _ in range(count):
            try:
                results = yield from generators.fetch_many(self._pgconn)
                if found is None:
                    self._conn._raise_for(results)
            except psycopg.Error as error:
                if self._pgconn.status != pq.ConnStatus.OK:
                    raise found or error from None
                found = error
        return found

    def executemany(self, query: Query, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """As psycopg's; the transaction begins before it, since it has a pipeline of its own."""
        self._begin_first(query)
        super().executemany(query, params_seq, returning=returning)
        self._conn.has_run = True

    def stream(self, query: Query, params: Params | None = None, **options: Any) -> Any:
        """As psycopg's; the transaction begins before it."""
        self._begin_first(query)
        self._conn.has_run = True
        return super().stream(query, params, **options)

    def copy(self, statement: Query, params: Params | None = None, **options: Any) -> Any:
        """As psycopg's; the transaction begins before it."""
        self._begin_first(statement)
        self._conn.has_run = True
        return super().copy(statement, params, **options)

    def _begin_first(self, query: Query) -> None:
        self._conn.note_statement(query)
        if self._conn._needs_ahead():
            self._conn.begin()


def _leave_pipeline(pgconn: pq.abc.PGconn) -> None:
    if pgconn.status == pq.ConnStatus.OK:
        try:
            pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            # Interrupted with results still to come: nobody could tell them from the next statement's.
            pgconn.finish()


_NO, _SHOULD = psycopg._preparing.Prepare.NO, psycopg._preparing.Prepare.SHOULD
