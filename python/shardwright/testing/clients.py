"""Clients of a workload: they run transactions of acts, and record honestly how each ended.

What may be said of an outcome: COMMIT was acknowledged (``ok``); an error came before COMMIT was sent, or the server
itself said that COMMIT failed (``fail``); everything else is unknown (``info``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shardwright import errors
from shardwright.session import Cluster
from shardwright.testing.acts import Act
from shardwright.testing.history import Recorder, Seen
from shardwright.testing.spec import Spec

Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]
#: How a transaction goes through the library: in a session bound to a key, in one that finds the shard of each
#: statement, or as a function that the library replays.
Way = Literal["pinned", "routed", "run"]
#: When a transaction is left alone: between its first two statements, or after its last one, before COMMIT.
When = Literal["between", "at the end"]
Answer = Seen | int | bool | None
Context = TypeVar("Context")

#: How long an application goes on trying to get one transaction through.
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Pause:
    """A transaction does nothing for a while, and stays open."""

    when: When
    wait: Callable[[], None]


class Unfinished(Exception):
    """A transaction ended without success; what is known of it went into the history."""


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of the PostgreSQL error in or behind an exception."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and cause.orig is not None:
            cause = cause.orig
        if isinstance(cause, psycopg.Error):
            return cause.sqlstate
        cause = cause.__cause__
    return None


def _said_by_server(sqlstate: str | None) -> bool:
    """Whether an error at COMMIT is the server's word that nothing was committed, and not a broken connection."""
    return sqlstate is not None and not sqlstate.startswith(("08", "57P", "58"))


class _Attempt:
    """One try of a transaction's acts: what was seen, when each began, and whether COMMIT may have been sent."""

    def __init__(self, acts: Sequence[Act[Any]], isolation: Isolation, idle: Pause | None) -> None:
        self._acts = acts
        self._idle = idle
        self._sharp = isolation == "READ COMMITTED"
        self.seen: list[Answer] = []
        self.started: list[int] = []
        self.committing = False

    def perform(self, context: Any) -> None:
        """Do the acts, from the beginning when the library replays them."""
        self.seen, self.started, self.committing = [], [], False
        for index, act in enumerate(self._acts):
            if index == 1 and self._idle is not None and self._idle.when == "between":
                self._idle.wait()
            # A snapshot of REPEATABLE READ is as old as the first statement.
            self.started.append(time.monotonic_ns() if self._sharp or not self.started else self.started[0])
            self.seen.append(act.do(context))
        if self._idle is not None and self._idle.when == "at the end":
            self._idle.wait()
        self.committing = True


class LibraryClient:
    """An application that uses the library."""

    def __init__(self, cluster: Cluster, spec: Spec, recorder: Recorder) -> None:
        """A client that records into one history file; not for several threads."""
        self._cluster = cluster
        self._keyspace = spec.keyspace
        self._recorder = recorder
        self._sessions = cluster.sessionmaker()

    def transaction(
        self,
        way: Way,
        key: Any,
        make: Callable[[], Sequence[Act[Session]]],
        *,
        isolation: Isolation = "READ COMMITTED",
        idle: Pause | None = None,
    ) -> list[Answer]:
        """Run one transaction, again and again while the library says that this may help.

        Args:
            way: how it goes through the library.
            key: its shard key.
            make: makes its acts anew for each try: an element is never sent twice under one name.
            isolation: of the transaction.
            idle: leaves the transaction alone for a while, open.

        Returns:
            What its acts saw.

        Raises:
            Unfinished: it failed for good, or its outcome is unknown.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            acts = make()
            number = self._recorder.begin([act.intent for act in acts])
            attempt = _Attempt(acts, isolation, idle)
            try:
                self._run(way, key, attempt, isolation)
            except (errors.ShardwrightError, DBAPIError) as error:
                sqlstate = sqlstate_of(error)
                name = sqlstate or getattr(error, "code", "") or type(error).__name__
                broken = not isinstance(error, errors.ShardwrightError) and not _said_by_server(sqlstate)
                if isinstance(error, errors.CommitUnknown) or (attempt.committing and broken):
                    self._recorder.end(number, "info", sqlstate=name, gave_up=True)
                    raise Unfinished(str(error)) from error
                again = getattr(error, "retriable", False) or sqlstate in ("40001", "40P01")
                gave_up = not again or time.monotonic() > deadline
                self._recorder.end(number, "fail", sqlstate=name, gave_up=gave_up)
                if gave_up:
                    raise Unfinished(str(error)) from error
                time.sleep(random.uniform(0.005, 0.05))
            else:
                self._recorder.end(number, "ok", attempt.seen, started=attempt.started)
                return attempt.seen

    def _run(self, way: Way, key: Any, attempt: _Attempt, isolation: Isolation) -> None:
        if way == "run":
            self._cluster.run(key, attempt.perform, keyspace=self._keyspace, isolation_level=isolation)
            return
        pinned = {"key": key, "keyspace": self._keyspace} if way == "pinned" else {}
        with self._sessions(isolation_level=isolation, **pinned) as session, session.begin():
            attempt.perform(session)


class DirectClient:
    """A client without the library, connected to one server for good. What the server refuses is not tried again."""

    def __init__(self, dsn: str, recorder: Recorder, shard: str) -> None:
        """Connect; ``shard`` is the name of the server for the history."""
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="shardwright direct client")
        self._recorder = recorder
        self._shard = shard

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def transaction(
        self,
        acts: Sequence[Act[psycopg.Connection[Any]]],
        *,
        isolation: Isolation = "READ COMMITTED",
        idle: Pause | None = None,
    ) -> list[Answer]:
        """Run one transaction, once.

        Raises:
            Unfinished: the server refused it, or its outcome is unknown.
        """
        number = self._recorder.begin([act.intent for act in acts])
        attempt = _Attempt(acts, isolation, idle)
        try:
            self._connection.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
            attempt.perform(self._connection)
            self._connection.execute("COMMIT")
        except psycopg.Error as error:
            unknown = attempt.committing and not _said_by_server(error.sqlstate)
            expected = (error.sqlstate or "").startswith("SH") or error.sqlstate in ("40001", "40P01")
            self._recorder.end(
                number,
                "info" if unknown else "fail",
                sqlstate=error.sqlstate or type(error).__name__,
                shard=self._shard,
                gave_up=not expected,
            )
            if not self._connection.broken:
                self._connection.execute("ROLLBACK")
            raise Unfinished(str(error)) from error
        self._recorder.end(number, "ok", attempt.seen, started=attempt.started, shard=self._shard)
        return attempt.seen
