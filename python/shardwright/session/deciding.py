"""Where sessions register and decide transactions that write on several shards: the catalog, over connections kept for it."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psycopg

from shardwright import engines, errors
from shardwright.catalog import decisions
from shardwright.session.retries import Backoff

T = TypeVar("T")

#: Connections to the catalog that are kept when nobody decides.
_KEPT = 4


class Decider:
    """Asks the catalog; may be used from many threads.

    Args:
        catalog_dsn: how to reach it.
        application: who asks, for people.
    """

    def __init__(self, catalog_dsn: str, application: str) -> None:
        self._dsn = catalog_dsn
        self._application = application
        #: shards that were seen to let transactions be prepared
        self.able_to_prepare: set[str] = set()
        self._pid = os.getpid()
        self._idle: deque[psycopg.Connection[Any]] = deque()
        #: transactions of which no shard has a prepared part any more, and which the catalog has not been told of
        self._settled: deque[str] = deque(maxlen=1000)

    def register(self, shards: Iterable[str]) -> tuple[str, str]:
        """Register a transaction; see `decisions.register`.

        Args:
            shards: those that were written on.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be reached.
            UnfitServer: our role may not.
        """
        told = [self._settled.popleft() for _ in range(len(self._settled))]
        try:
            return self._ask(lambda catalog: decisions.register(catalog, sorted(shards), self._application, told))
        except psycopg.errors.InsufficientPrivilege as error:
            raise errors.UnfitServer(
                f"our role may not register transactions in the catalog: {error.diag.message_primary}",
                fix="GRANT SELECT, INSERT, UPDATE ON shardwright.decisions and SELECT ON shardwright.cluster to it",
            ) from error
        except psycopg.OperationalError as error:
            raise engines.connect_error("the catalog", error) from error

    def commit(self, transaction: str, patience: float) -> bool:
        """Decide that a transaction is committed. Asked again while the answer is lost: saying it twice is no harm.

        Args:
            transaction: its id.
            patience: seconds.

        Returns:
            Whether it is committed; False where it was given up.

        Raises:
            psycopg.OperationalError, PreconditionError: nobody answered in time; it may be committed or not.
        """
        backoff = Backoff(patience)
        while True:
            try:
                return self._ask(lambda catalog: decisions.commit(catalog, transaction))
            except (psycopg.OperationalError, errors.PreconditionError):
                if backoff.is_over:
                    raise
                # Whoever calls this may be blocked: see `Waiting.aside`.
                time.sleep(backoff.pause())

    def abort(self, transaction: str) -> decisions.Outcome | None:
        """Give a transaction up unless it is decided; see `decisions.abort`.

        Args:
            transaction: its id.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be reached.
        """
        try:
            return self._ask(lambda catalog: decisions.abort(catalog, transaction))
        except psycopg.OperationalError as error:
            raise engines.connect_error("the catalog", error) from error

    def note_settled(self, transaction: str) -> None:
        """Remember that no shard has a prepared part of a transaction any more; told to the catalog with the next one.

        Args:
            transaction: its id.
        """
        self._settled.append(transaction)

    def close(self) -> None:
        """Close the connections; what was not told is found out by `tx recover`."""
        if self._settled and self._pid == os.getpid():
            told = list(self._settled)
            self._settled.clear()
            with contextlib.suppress(psycopg.Error, errors.PreconditionError):
                self._ask(lambda catalog: decisions.settle(catalog, told))
        while self._idle:
            self._idle.pop().close()

    def _ask(self, call: Callable[[psycopg.Connection[Any]], T]) -> T:
        if self._pid != os.getpid():
            # A forked child: the connections are its parent's, and must not be closed here.
            self._parents, self._idle, self._pid = self._idle, deque(), os.getpid()
            self._settled.clear()
        while True:
            try:
                catalog, is_old = self._idle.pop(), True
            except IndexError:
                catalog, is_old = engines.connect_catalog(self._dsn, f"shardwright decides {self._application}"), False
            try:
                found = call(catalog)
            except psycopg.OperationalError:
                catalog.close()
                if is_old:
                    continue  # it had been closed while it was idle, or it broke now: each call may be made again
                raise
            except BaseException:
                catalog.close()
                raise
            if len(self._idle) < _KEPT:
                self._idle.append(catalog)
            else:
                catalog.close()
            return found
