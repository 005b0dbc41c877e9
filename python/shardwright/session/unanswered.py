"""What is sent on a psycopg connection without waiting for the answer: the ROLLBACK of a read, and BEGIN with the check.

The server works meanwhile, and whoever uses the connection next takes the answer. What is said before each transaction is
said by statements that are prepared on the server, where connections may have those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.waiting import Wait

from shardwright.session.entry_sql import NUMBER, TAKE_XID, is_repeated
from shardwright.session.wire import Guarded, mark_entry

T = TypeVar("T")

_IN_TRANSACTION = pq.TransactionStatus.INTRANS
_FAILED = pq.TransactionStatus.INERROR
#: How many of our own statements a connection keeps prepared.
_NAMED_MOST = 200


class _Sent(NamedTuple):
    """A command whose answer is still to come."""

    command: bytes
    #: the name under which it is being prepared; empty where it is executed
    name: bytes = b""


class Unanswered(Guarded, psycopg.BaseConnection[Any]):
    """A psycopg connection that does not wait for every answer."""

    #: whether the answer to a ROLLBACK is still to come
    _owed = False
    #: what went ahead of a statement that is still to come: a pipeline is open meanwhile
    _sent: tuple[_Sent, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: our own statements that are prepared on the server, and their names there
        self._named: dict[bytes, bytes] = {}
        self._named_ever = 0

    def _perform(self, generator: PQGen[T]) -> T:
        """Talk to the server until a generator has ended."""
        raise NotImplementedError

    @property
    def is_owed(self) -> bool:
        """Whether an answer is still to come."""
        return self._owed or bool(self._sent)

    def settle(self) -> None:
        """See `Guarded`."""
        if not self.is_owed:
            return
        # Most often the answer is there by now: nothing has to be waited for then.
        self.pgconn.consume_input()
        generator = self._settle_gen()
        try:
            wanted = next(generator)
        except StopIteration:
            return
        self._perform(_resumed(generator, wanted))

    def _settle_gen(self) -> PQGen[None]:
        if self._owed:
            self._owed = False
            results = yield from generators.execute(self.pgconn)
            raise_for(self.pgconn, results)
        if self._sent:
            try:
                self.pgconn.pipeline_sync()
                yield from generators.send(self.pgconn)
                refused = yield from self._answers_gen()
                yield from generators.fetch_many(self.pgconn)
            except psycopg.Error as error:
                mark_entry(error)
                raise
            finally:
                leave_pipeline(self.pgconn)
            if refused is not None:
                raise refused

    # ------------------------------------------------------------------ the beginning

    def send_ahead(self, *, writes: bool = False) -> None:
        """See `Guarded`."""
        commands = self.take_ahead()
        if not commands:
            return
        if writes and not self.is_read_only:
            self.wrote = True
            if is_repeated(commands[-1]):
                commands[-1] += b", " + NUMBER
            else:
                commands.append(TAKE_XID)
        try:
            self.settle()
            self._check_connection_ok()
            self.pgconn.enter_pipeline_mode()
            self._send_each(commands)
            self.pgconn.flush()
        except psycopg.Error as error:
            mark_entry(error)
            raise

    def _send_each(self, commands: Sequence[bytes]) -> None:
        """Send commands within a pipeline."""
        sent = []
        for command in commands:
            name = self._named.get(command)
            if name is None and self._may_name() and is_repeated(command):
                self._named_ever += 1
                name = b"shardwright_%d" % self._named_ever
                self.pgconn.send_prepare(name, command)
                sent.append(_Sent(command, name))
            if name is None:
                self.pgconn.send_query_params(command, None)
            else:
                self.pgconn.send_query_prepared(name, None)
            sent.append(_Sent(command))
        self._sent = (*self._sent, *sent)

    @property
    def number_comes(self) -> bool:
        """Whether the answer that is still to come has the transaction's number."""
        return bool(self._sent) and self._sent[-1].command.endswith(NUMBER)

    def _may_name(self) -> bool:
        return self.prepare_threshold is not None and len(self._named) < _NAMED_MOST

    def _answers_gen(self) -> PQGen[psycopg.Error | None]:
        """Read the answers to what was sent ahead; the first error among them, or None."""
        sent, self._sent = self._sent, ()
        found: psycopg.Error | None = None
        for command, name in sent:
            try:
                results = yield from generators.fetch_many(self.pgconn)
                if found is None:
                    raise_for(self.pgconn, results)
                    if name:
                        self._named[command] = name
                    elif command.endswith(NUMBER):
                        self.note_xid(results)
            except psycopg.Error as error:
                if self.pgconn.status != pq.ConnStatus.OK:
                    raise found or error from None
                found = error
        if found is not None:
            mark_entry(found)
        return found

    def note_xid(self, results: Sequence[pq.abc.PGresult]) -> None:
        """Take note of the transaction's number.

        Args:
            results: an answer whose last column it is.
        """
        if results and results[0].status == pq.ExecStatus.TUPLES_OK:
            told = results[0].get_value(0, results[0].nfields - 1)
            self.xact_id = int(told) if told is not None else None

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        if name is None:
            self._named.clear()
        yield from super()._deallocate(name)

    # ------------------------------------------------------------------ the end

    def _let_go(self) -> bool:
        """Send the ROLLBACK of a transaction that has only read; its answer is waited for by whoever comes next.

        Returns:
            Whether it was sent: not where others may wait for what it holds, or where its options are about to be reset.
        """
        if (
            self.pgconn.transaction_status != _IN_TRANSACTION
            or self.wrote
            or self.locked
            or self._pipeline
            or self.isolation_level is not None
            or self.read_only is not None
            or self.deferrable is not None
        ):
            return False
        self.pgconn.send_query(b"ROLLBACK")
        self.pgconn.flush()
        self._owed = True
        return True

    def _rollback_gen(self) -> PQGen[None]:
        """ROLLBACK; whether what was sent ahead was refused does not matter any more.

        psycopg forgets at each ROLLBACK what it has prepared, since tables may have been made in the transaction. Not where
        it has only read: most transactions that read end so, and none of their statements would ever stay prepared.
        """
        if self._sent:
            try:
                yield from self._settle_gen()
            except psycopg.Error:
                if self.pgconn.status != pq.ConnStatus.OK:
                    raise
        if self.wrote or self._pipeline or self.pgconn.transaction_status != _IN_TRANSACTION:
            yield from super()._rollback_gen()
        else:
            yield from self._exec_command(b"ROLLBACK")


def _resumed(generator: PQGen[T], wanted: Wait) -> PQGen[T]:
    """A generator that has been begun, from its beginning as seen by whoever performs it.

    Args:
        generator: the generator.
        wanted: what it has yielded.
    """
    try:
        while True:
            wanted = generator.send((yield wanted))
    except StopIteration as stop:
        found: T = stop.value
        return found


def raise_for(pgconn: pq.abc.PGconn, results: Sequence[pq.abc.PGresult]) -> None:
    """Raise the first error among results.

    Args:
        pgconn: where they came from.
        results: what libpq returned.
    """
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=pgconn._encoding)


def leave_pipeline(pgconn: pq.abc.PGconn) -> None:
    """End a pipeline; the connection too where answers are still to come.

    Args:
        pgconn: the connection.
    """
    if pgconn.status == pq.ConnStatus.OK:
        try:
            pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            # Interrupted with results still to come: nobody could tell them from the next statement's.
            pgconn.finish()
