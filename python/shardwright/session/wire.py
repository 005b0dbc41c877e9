"""What is known of the transaction on a connection to a shard, and how ranges are entered; for every driver alike.

A connection's transactions begin with the ownership check, in the same message as BEGIN. Two forms. *At once*: one
simple-protocol message ``BEGIN; SELECT shardwright.enter(..)``, for whoever needs to know before the first statement that
the range is served here. *Ahead*: the check goes ahead of the first statement, with psycopg in the same flush. Nothing
outlives the transaction, so both work through PgBouncer in transaction mode.

The pool shares a connection among all keys of its shard: which ranges to enter is told before each transaction.
How it is done is each driver's own: `wire_psycopg`, `wire_asyncpg`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from shardwright import errors
from shardwright.routing.multirange import Multirange
from shardwright.session.entry_sql import ENTER_ALL, enter_sql, lock_timeout_sql

# What cannot have written: only these leave out the question for the transaction's number.
_READS = re.compile(r"\s*(?:SELECT|VALUES|TABLE|SHOW|FETCH|SAVEPOINT|RELEASE|ROLLBACK|SET)\b", re.IGNORECASE)
_SAVEPOINT = re.compile(r"\s*(SAVEPOINT|ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO)\b", re.IGNORECASE)
_WRITES_INSIDE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
# Reads that others may wait for: those that lock rows, and whatever is called a lock.
_LOCKS = re.compile(r"\bSHARE\b|lock", re.IGNORECASE)

#: Why a COMMIT is not sent: the server would answer it with ROLLBACK, and nobody would be told.
CANNOT_COMMIT = "the transaction has failed and cannot be committed"


class Kind(enum.Flag):
    """What must be known of a statement before it is sent; found out once for each text."""

    READS = 0
    LOCKS = enum.auto()
    WRITES = enum.auto()
    SAVEPOINT = enum.auto()
    UNDOES = enum.auto()


@lru_cache(4096)
def _kind_of(text: str) -> Kind:
    if not _READS.match(text) or _WRITES_INSIDE.search(text):
        return Kind.WRITES
    if found := _SAVEPOINT.match(text):
        return Kind.SAVEPOINT if found[1][0] in "Ss" else Kind.UNDOES
    return Kind.LOCKS if _LOCKS.search(text) else Kind.READS


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


def mark_entry(error: BaseException) -> None:
    """Note on an error that it came from BEGIN or the ownership check.

    Args:
        error: what the driver raised.
    """
    error.shardwright_at_entry = True  # type: ignore[attr-defined]


def happened_at_entry(error: BaseException) -> bool:
    """Whether an error came from BEGIN or the ownership check, so that nothing of the caller's has run.

    Args:
        error: what the driver raised, or what it was made into.
    """
    return _is_marked(error, "shardwright_at_entry")


def mark_commit_lost(error: BaseException) -> None:
    """Note on an error that COMMIT was sent, and never answered.

    Args:
        error: what the driver raised.
    """
    error.shardwright_commit_lost = True  # type: ignore[attr-defined]


def is_commit_lost(error: BaseException) -> bool:
    """Whether COMMIT was sent and never answered.

    Args:
        error: what the driver raised, or what it was made into.
    """
    return _is_marked(error, "shardwright_commit_lost")


def _is_marked(error: BaseException, mark: str) -> bool:
    # SQLAlchemy makes asyncpg's errors into others, whose cause they are.
    return getattr(error, mark, False) or getattr(error.__cause__, mark, False)


class Guarded:
    """A connection of an application's session to one shard: what its transaction has entered and done.

    Below it is a driver's own connection. Whatever is called here is called from plain functions; on an event loop they
    run in SQLAlchemy's greenlets.
    """

    #: the server's timeline when this connection was opened; 0 when it could not be asked
    timeline = 0

    def new_transaction(self, ranges: Iterable[int], lock_timeout: float | None = None) -> None:
        """Say which ranges the next transaction enters. Called between transactions only.

        Args:
            ranges: ids of ranges; none for a transaction without a check.
            lock_timeout: seconds for which it waits for a lock, unless the role or the database says so itself.
        """
        #: the transaction's number, once it wrote and the server told
        self.xact_id: int | None = None
        #: whether it sent something that may have written
        self.wrote = False
        #: whether it sent something that may have taken locks which others wait for
        self.locked = False
        #: it is known to have written nothing, and is a part of a larger transaction: losing its COMMIT loses nothing
        self.only_read = False
        #: its part of a transaction on several shards has been brought to its end: COMMIT has nothing left to do
        self.settled = False
        #: it is a part of a transaction on several shards, and whether they must be committed together has been found out
        self.is_judged = False
        #: called before it is committed, when nothing can be flushed into it any more
        self.before_commit: Callable[[], None] | None = None
        #: whether a statement of the caller's has succeeded in it
        self.has_run = False
        #: what the shard serves, by keyspace, when it was entered as a whole: owned points, and whether others are here
        self.served: dict[str, tuple[Multirange, bool]] | None = None
        self._entered: set[int] = set()
        self._outside_savepoints: set[int] | None = None
        self._wanted: set[int] = set(ranges)
        self._lock_timeout = lock_timeout

    # ------------------------------------------------------------------ each driver's own

    @property
    def process(self) -> int:
        """The id of the server's process, as told when the connection was made."""
        raise NotImplementedError

    def keep_nothing_prepared(self) -> None:
        """Prepare nothing that would have to be there in the next transaction."""
        raise NotImplementedError

    @property
    def is_autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        raise NotImplementedError

    @property
    def is_read_only(self) -> bool:
        """Whether its transactions are READ ONLY."""
        raise NotImplementedError

    @property
    def level(self) -> str:
        """The isolation level of its transactions, as SQL says it; empty for the server's default."""
        raise NotImplementedError

    @property
    def has_begun(self) -> bool:
        """Whether a transaction is open on the server."""
        raise NotImplementedError

    @property
    def has_failed(self) -> bool:
        """Whether that transaction can only be rolled back."""
        raise NotImplementedError

    @property
    def is_lost(self) -> bool:
        """Whether the connection is of no use any more."""
        raise NotImplementedError

    @property
    def is_standby(self) -> bool:
        """Whether the server has said, by itself, that it is in recovery."""
        raise NotImplementedError

    def begin_sql(self, *, read_only: bool) -> bytes:
        """BEGIN with the transaction's options.

        Args:
            read_only: whether READ ONLY is one of them.
        """
        raise NotImplementedError

    def begin(self, *, writes: bool = False) -> None:
        """Begin now, with the check: when this returns, the ranges are held.

        Args:
            writes: a write follows for sure: the transaction's number, which it will need, is asked for right away.

        Raises:
            Exception: the driver's; `happened_at_entry` tells that it is the check's.
        """
        raise NotImplementedError

    def send_ahead(self, *, writes: bool = False) -> None:
        """Send what must go ahead of the first statement without waiting for the answer, where the driver can.

        The server is busy with it while the statement is made. Whatever is done next on the connection takes the answer.

        Args:
            writes: a write follows for sure: the transaction's number, which it will need, is asked for right away.

        Raises:
            Exception: the driver's; `happened_at_entry` is true for it.
        """

    def enter_all(self) -> None:
        """Hold off every switch on this shard until the transaction ends, and learn what it serves (`served`).

        Raises:
            Exception: the driver's; `happened_at_entry` is true for it.
        """
        raise NotImplementedError

    def ask_xact_id(self) -> int | None:
        """Ask the server for the transaction's number: None where it has written nothing yet."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait for the answer to a ROLLBACK that was not waited for; called when the pool gives the connection away.

        Raises:
            Exception: the driver's: the connection is lost.
        """

    def command(self, text: str) -> str:
        """Send one command as it is, inside of the transaction or outside of any: nothing is begun for it.

        Args:
            text: the command.

        Returns:
            The first value of its answer, or the words with which the server says that it is done.

        Raises:
            Exception: the driver's.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ what is known

    def want(self, ranges: Iterable[int]) -> None:
        """Enter more ranges together with the next statement.

        Args:
            ranges: ids of ranges; those that were entered already cost nothing.

        Raises:
            BadOption: the transaction is read-only by now, under a level whose check locks rows.
        """
        self._wanted.update(ranges)
        self._wanted -= self._entered
        if self._wanted and self.has_begun and self.is_narrowed_later:
            self._wanted = set()
            raise errors.BadOption(
                f"a READ ONLY transaction at {self.level} cannot go on to other keys",
                fix="use READ COMMITTED, leave READ ONLY out, or a session for each key",
            )

    @property
    def has_entered(self) -> bool:
        """Whether ranges, or the whole shard, are held in this transaction."""
        return bool(self._entered) or self.served is not None

    @property
    def takes_snapshot(self) -> bool:
        """Whether its transactions keep one snapshot, so that the check locks the range's row."""
        return self.level in ("REPEATABLE READ", "SERIALIZABLE")

    @property
    def is_narrowed_later(self) -> bool:
        """Under a level that keeps its snapshot the check locks the range's row, which READ ONLY forbids."""
        return self.is_read_only and self.takes_snapshot

    @property
    def needs_ahead(self) -> bool:
        """Whether something must reach the server before the next statement."""
        if self.is_autocommit or self.has_failed:
            return False
        return bool(self._wanted) or not self.has_begun

    def take_ahead(self, *, whole: bool = False) -> list[bytes]:
        """Commands that must reach the server before the next statement; they count as sent.

        Args:
            whole: enter the whole shard too.
        """
        needs = self.needs_ahead
        begins = needs and not self.has_begun
        if not begins and not self._wanted and not whole:
            return []
        commands = []
        locks_rows = bool(self._wanted) or whole
        # A READ ONLY transaction locks no rows: it becomes read-only behind the check.
        later = begins and locks_rows and self.is_narrowed_later
        if begins:
            commands.append(self.begin_sql(read_only=self.is_read_only and not later))
            if self._lock_timeout is not None:
                commands.append(lock_timeout_sql(self._lock_timeout))
        if needs and self._wanted:
            commands.append(enter_sql(self._wanted))
            self._entered |= self._wanted
            self._wanted = set()
        if whole:
            commands.append(ENTER_ALL)
        if later:
            commands.append(b"SET TRANSACTION READ ONLY")
        return commands

    def note_served(self, rows: Iterable[Sequence[str]]) -> None:
        """Take note of what the shard serves, which was entered as a whole.

        Args:
            rows: of `ENTER_ALL`, as texts.
        """
        self.served = {name: (Multirange.parse(owned), strangers == "t") for name, owned, strangers in rows}

    def note_statement(self, query: object) -> Kind:
        """Take note whether a statement may write, before it is sent.

        Args:
            query: the statement, as handed to a cursor.
        """
        kind = kind_of(query)
        if kind is Kind.WRITES and not self.is_autocommit:
            self.wrote = True
        elif kind is Kind.LOCKS:
            self.locked = True
        return kind

    def note_savepoint(self, kind: Kind) -> None:
        """Follow savepoints: rolling back to one releases the locks of the ranges that were entered since.

        Args:
            kind: of the statement that has been executed.
        """
        if kind is Kind.SAVEPOINT and self._outside_savepoints is None:
            self._outside_savepoints = set(self._entered)
        elif kind is Kind.UNDOES and self._outside_savepoints is not None:
            self._entered = set(self._outside_savepoints)
