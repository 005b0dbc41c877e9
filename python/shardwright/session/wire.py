"""A psycopg connection whose transactions begin with the ownership check, in the same message as BEGIN.

Two forms. *At once*: one simple-protocol message ``BEGIN; SELECT shardwright.enter(..)``, for whoever needs to know before
the first statement that the range is served here. *Ahead*: BEGIN, the check and the first statement leave in one
flush in pipeline mode, which saves BEGIN's round trip; an error of the check aborts the rest of the pipeline, so the
statement has not run. Nothing outlives the transaction, so both work through PgBouncer in transaction mode.

The pool shares a connection among all keys of its shard: which ranges to enter is told before each transaction.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.rows import RowFactory, tuple_row

from shardwright import errors
from shardwright.routing.multirange import Multirange
from shardwright.session.cursors import ASK_XID, GuardedCursor, GuardedServerCursor, raise_for

_IDLE = pq.TransactionStatus.IDLE
_IN_TRANSACTION = pq.TransactionStatus.INTRANS
_FAILED = pq.TransactionStatus.INERROR

# What cannot have written: only these leave out the question for the transaction's number.
_READS = re.compile(r"\s*(?:SELECT|VALUES|TABLE|SHOW|FETCH|SAVEPOINT|RELEASE|ROLLBACK|SET)\b", re.IGNORECASE)
_SAVEPOINT = re.compile(r"\s*(SAVEPOINT|ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO)\b", re.IGNORECASE)
_WRITES_INSIDE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_TAKE_XID = b"SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text"
_ENTER_ALL = b"SELECT keyspace, owned::pg_catalog.text, strangers FROM shardwright.enter_all()"
_SNAPSHOT_LEVELS = (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE)


def enter_sql(ranges: Iterable[int]) -> bytes:
    """SQL that enters ranges, in the order of their ids.

    Args:
        ranges: ids of ranges.
    """
    ordered = sorted(ranges)
    if len(ordered) == 1:
        return _enter_one(ordered[0])
    if len(ordered) <= 8:
        return ("SELECT " + ", ".join(f"shardwright.enter({number})" for number in ordered)).encode()
    listed = ",".join(map(str, ordered))
    return f"SELECT count(shardwright.enter(r)) FROM pg_catalog.unnest('{{{listed}}}'::int[]) AS r".encode()


@lru_cache(8192)
def _enter_one(number: int) -> bytes:
    return f"SELECT shardwright.enter({number})".encode()


class Kind(enum.Flag):
    """What must be known of a statement before it is sent; found out once for each text."""

    READS = 0
    WRITES = enum.auto()
    SAVEPOINT = enum.auto()
    UNDOES = enum.auto()


@lru_cache(4096)
def _kind_of(text: str) -> Kind:
    if not _READS.match(text) or _WRITES_INSIDE.search(text):
        return Kind.WRITES
    if found := _SAVEPOINT.match(text):
        return Kind.SAVEPOINT if found[1][0] in "Ss" else Kind.UNDOES
    return Kind.READS


def kind_of(query: object) -> Kind:
    """What a statement may do.

    Args:
        query: its text, or what psycopg takes in its place.
    """
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else query
    return _kind_of(text) if isinstance(text, str) else Kind.WRITES


def may_write(query: object) -> bool:
    """Whether a statement is something else than a plain read.

    Args:
        query: its text, or what psycopg takes in its place.
    """
    return kind_of(query) is Kind.WRITES


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
        self.server_cursor_factory = GuardedServerCursor
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

        Raises:
            BadOption: the transaction is read-only by now, under a level whose check locks rows.
        """
        self._wanted.update(ranges)
        self._wanted -= self._entered
        if self._wanted and self.has_begun and self._is_narrowed_later:
            self._wanted = set()
            raise errors.BadOption(
                f"a READ ONLY transaction at {psycopg.IsolationLevel(self.isolation_level or 0).name} cannot go on to other keys",
                fix="use READ COMMITTED, leave READ ONLY out, or a session for each key",
            )

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

    def begin(self, *, writes: bool = False) -> None:
        """Begin now, with the check: when this returns, the ranges are held.

        Args:
            writes: a write follows for sure: the transaction's number, which it will need, is asked for right away.

        Raises:
            psycopg.Error: `happened_at_entry` tells that it is the check's.
        """
        with self.lock:
            self.wait(self._begin_gen(writes))

    def enter_all(self) -> None:
        """Hold off every switch on this shard until the transaction ends, and learn what it serves (`served`).

        Raises:
            psycopg.Error: `happened_at_entry` is true for it where the transaction began with this.
        """
        with self.lock:
            rows = self.wait(self._enter_all_gen())
        self.served = {name: (Multirange.parse(owned), strangers == "t") for name, owned, strangers in rows}

    def note_savepoint(self, kind: Kind) -> None:
        """Follow savepoints: rolling back to one releases the locks of the ranges that were entered since.

        Args:
            kind: of the statement that has been executed.
        """
        if kind is Kind.SAVEPOINT and self._outside_savepoints is None:
            self._outside_savepoints = set(self._entered)
        elif kind is Kind.UNDOES and self._outside_savepoints is not None:
            self._entered = set(self._outside_savepoints)

    def note_statement(self, query: object) -> Kind:
        """Take note whether a statement may write.

        Args:
            query: the statement, as handed to a cursor.
        """
        kind = kind_of(query)
        if kind is Kind.WRITES and not self._autocommit:
            self.wrote = True
        return kind

    def ask_xact_id(self) -> int | None:
        """Ask the server for the transaction's number: None where it has written nothing yet."""
        if self.xact_id is None and self.pgconn.transaction_status == _IN_TRANSACTION:
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

    def _begin_command(self, *, locks_rows: bool) -> bytes:
        """BEGIN with its options. A READ ONLY transaction locks no rows: it becomes read-only behind the check."""
        if not (locks_rows and self._is_narrowed_later):
            return self._get_tx_start_command()
        kept, self._begin_statement = self._begin_statement, b""
        command = self._get_tx_start_command().replace(b" READ ONLY", b"")
        self._begin_statement = kept
        return command

    @property
    def _is_narrowed_later(self) -> bool:
        """Under a level that keeps its snapshot the check locks the range's row, which READ ONLY forbids."""
        return bool(self.read_only) and self.takes_snapshot

    def _take_ahead(self, *, whole: bool = False) -> list[bytes]:
        """Commands that must reach the server before the next statement; they count as sent."""
        commands = []
        begins = self._needs_ahead() and self.pgconn.transaction_status == _IDLE
        locks_rows = bool(self._wanted) or whole
        if begins:
            commands.append(self._begin_command(locks_rows=locks_rows))
        if self._wanted and self._needs_ahead():
            commands.append(enter_sql(self._wanted))
            self._entered |= self._wanted
            self._wanted = set()
        if whole:
            commands.append(_ENTER_ALL)
        if begins and locks_rows and self._is_narrowed_later:
            commands.append(b"SET TRANSACTION READ ONLY")
        return commands

    def _needs_ahead(self) -> bool:
        status = self.pgconn.transaction_status
        return not self._autocommit and status != _FAILED and (bool(self._wanted) or status == _IDLE)

    def _begin_gen(self, writes: bool) -> PQGen[None]:
        commands = self._take_ahead()
        if not commands:
            return
        asks = writes and not self.read_only and not self._autocommit
        if asks:
            commands.append(_TAKE_XID)
        results = yield from self._exec_all(commands)
        if asks:
            self.wrote = True
            self._note_xid(results[-1:])

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
            raise_for(self.pgconn, results)
        except psycopg.Error as error:
            error.shardwright_at_entry = True  # type: ignore[attr-defined]
            raise
        return results

    def _enter_all_gen(self) -> PQGen[list[tuple[str, str, str]]]:
        commands = self._take_ahead(whole=True)
        results = yield from self._exec_all(commands)
        found = results[commands.index(_ENTER_ALL)]
        return [
            tuple((found.get_value(row, column) or b"").decode() for column in range(3))  # type: ignore[misc]
            for row in range(found.ntuples)
        ]

    def _ask_xid_gen(self) -> PQGen[None]:
        self._check_connection_ok()
        self.pgconn.send_query(ASK_XID)
        results = yield from generators.execute(self.pgconn)
        raise_for(self.pgconn, results)
        self._note_xid(results)

    def _note_xid(self, results: Sequence[pq.abc.PGresult]) -> None:
        if results and results[0].status == pq.ExecStatus.TUPLES_OK:
            told = results[0].get_value(0, 0)
            self.xact_id = int(told) if told is not None else None
