"""Calls to the catalog that sessions make while they work, over a few connections kept for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from shardwright import engines, errors

T = TypeVar("T")

#: Connections that are kept when nobody calls.
_KEPT = 4


class CatalogCalls:
    """May be used from many threads. A call blocks its thread: see `Waiting.aside`.

    Args:
        catalog_dsn: how to reach the catalog.
        application: who calls, for people.
    """

    def __init__(self, catalog_dsn: str, application: str) -> None:
        self.application = application
        self._dsn = catalog_dsn
        self._idle: deque[psycopg.Connection[Any]] = deque()
        self._is_closed = False

    def ask(self, call: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Make a call; a second time where the connection turns out to be dead, which it may be after the first was made.

        Args:
            call: gets a connection in autocommit mode. To make it twice must be harmless.

        Returns:
            What it returned.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be reached, or it went away.
            UnfitServer: our role may not do it.
        """
        while True:
            try:
                catalog, is_old = self._idle.pop(), True
            except IndexError:
                catalog, is_old = engines.connect_catalog(self._dsn, f"shardwright {self.application}"[:63]), False
            try:
                found = call(catalog)
            except psycopg.OperationalError as error:
                catalog.close()
                if is_old:
                    continue
                raise engines.connect_error("the catalog", error) from error
            except psycopg.errors.InsufficientPrivilege as error:
                self._keep(catalog)
                raise errors.UnfitServer(
                    f"our role may not do this in the catalog: {error.diag.message_primary}",
                    fix="give it the rights that docs/reference/catalog.md lists for applications",
                ) from error
            except BaseException:
                catalog.close()
                raise
            self._keep(catalog)
            return found

    def close(self) -> None:
        """Close the connections; whatever is asked from now on has one of its own."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def begin_anew(self) -> None:
        """In the child of a fork: the connections are the parent's."""
        self._idle = deque()

    def _keep(self, catalog: psycopg.Connection[Any]) -> None:
        if len(self._idle) < _KEPT and not self._is_closed:
            self._idle.append(catalog)
        else:
            catalog.close()
