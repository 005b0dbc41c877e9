"""Where sessions register and decide transactions that write on several shards: the catalog."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable

from shardwright import errors
from shardwright.catalog import decisions
from shardwright.session.catalog_calls import CatalogCalls
from shardwright.session.retries import Backoff


class Decider:
    """May be used from many threads, which it blocks: see `Waiting.aside`.

    Args:
        calls: to the catalog.
    """

    def __init__(self, calls: CatalogCalls) -> None:
        self._calls = calls
        #: shards that were seen to let transactions be prepared
        self.able_to_prepare: set[str] = set()
        #: transactions of which no shard has a prepared part any more, and which the catalog has not been told of
        self._settled: deque[str] = deque(maxlen=1000)

    def register(self, shards: Iterable[str]) -> tuple[str, str]:
        """Register a transaction; see `decisions.register`.

        Args:
            shards: those that were written on.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary, UnfitServer: as `CatalogCalls.ask`.
        """
        told: list[str] = []
        with contextlib.suppress(IndexError):
            while True:
                told.append(self._settled.popleft())
        return self._calls.ask(
            lambda catalog: decisions.register(catalog, sorted(shards), self._calls.application, told)
        )

    def commit(self, transaction: str, patience: float) -> bool:
        """Decide that a transaction is committed. Asked again while the answer is lost: saying it twice is no harm.

        Args:
            transaction: its id.
            patience: seconds.

        Returns:
            Whether it is committed; False where it was given up.

        Raises:
            PreconditionError: nobody answered in time; it may be committed or not.
        """
        backoff = Backoff(patience)
        while True:
            try:
                return self._calls.ask(lambda catalog: decisions.commit(catalog, transaction))
            except errors.PreconditionError:
                if backoff.is_over:
                    raise
            time.sleep(backoff.pause())

    def abort(self, transaction: str) -> decisions.Outcome | None:
        """Give a transaction up unless it is decided; see `decisions.abort`.

        Args:
            transaction: its id.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary, UnfitServer: as `CatalogCalls.ask`.
        """
        return self._calls.ask(lambda catalog: decisions.abort(catalog, transaction))

    def note_settled(self, transaction: str) -> None:
        """Remember that no shard has a prepared part of a transaction any more; told to the catalog with the next one.

        Args:
            transaction: its id.
        """
        self._settled.append(transaction)

    def begin_anew(self) -> None:
        """In the child of a fork: what is to be told is the parent's to tell."""
        self._settled.clear()

    def close(self) -> None:
        """Tell the catalog what it has not been told; what is not told is found out by `tx recover`."""
        if told := list(self._settled):
            self._settled.clear()
            with contextlib.suppress(errors.PreconditionError):
                self._calls.ask(lambda catalog: decisions.settle(catalog, told))
