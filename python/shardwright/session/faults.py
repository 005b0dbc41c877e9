"""What an error of a shard means to an application: from SQLSTATEs and lost connections to the classes of errors.py."""

from __future__ import annotations

import re
from typing import Any

from shardwright import errors
from shardwright.session.wire import Guarded, happened_at_entry, is_commit_lost

_MOVED, _FENCED, _IMPORTING, _REFUSED = "SH001", "SH002", "SH003", "SH004"
_STANDBY, _SERIALIZATION = "25006", "40001"
_NOT_SUPPORTED, _NO_SUCH_STATEMENT = "0A000", "26000"
# Under which names we, psycopg and asyncpg prepare statements; others are the application's own.
_PREPARED_BY_US = re.compile(r"\b(?:shardwright_|_pg3_|__asyncpg_)")

#: What a replay of the whole transaction heals.
REPLAYABLE = frozenset({"40001", "40P01"})
#: A lock was waited for too long.
LOCK_TIMEOUT = "55P03"


class EntryRefused(errors.ShardMoved):
    """A shard does not serve the range, now or any more; nothing of the transaction has run.

    Sessions answer it themselves; whoever meets it may replay the transaction.
    """

    #: whether something of the caller's had run on that shard's connection
    had_run = False

    def __init__(self, shard: str, error: BaseException) -> None:
        super().__init__(
            f"shard {shard}: {said_by(error)}",
            fix="run the transaction again",
            shard=shard,
            sqlstate=sqlstate_of(error),
        )


class ConnectionLost(errors.ShardUnavailable):
    """The connection to a shard ended before COMMIT was sent: nothing of the transaction is stored."""

    #: whether something of the caller's had run on it
    had_run = True

    @classmethod
    def standby(cls, shard: str, said: str = "it is in recovery", *, had_run: bool = False) -> ConnectionLost:
        """The error for a connection whose server is a primary no more.

        Args:
            shard: the shard's name.
            said: the server's words.
            had_run: whether something of the caller's had run on it.
        """
        lost = cls(f"shard {shard} is a standby now: {said}", fix="run the transaction again", shard=shard)
        lost.had_run = had_run
        return lost


class PlanOutdated(ConnectionLost):
    """What a connection had prepared is of no use any more; the transaction is to be run again on another one."""

    def __init__(self, shard: str, said: str) -> None:
        super().__init__(
            f"what a connection to shard {shard} had prepared is of no use any more: {said}",
            fix="run the transaction again",
            shard=shard,
        )


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of a driver's error or of SQLAlchemy's around it, or None.

    Args:
        error: any error.
    """
    for candidate in (error, getattr(error, "orig", None), error.__cause__):
        state = getattr(candidate, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None


def is_outdated(error: BaseException) -> bool:
    """Whether a prepared statement gives other columns than it did, or has gone. A new connection knows of neither.

    Args:
        error: a driver's.
    """
    state = sqlstate_of(error)
    if state == _NO_SUCH_STATEMENT:
        return _PREPARED_BY_US.search(said_by(error)) is not None
    return (
        state == _NOT_SUPPORTED
        and _field(error, "source_function", "server_source_function") == "RevalidateCachedQuery"
    )


def said_by(error: BaseException) -> str:
    """The server's own words, or the driver's where it has none.

    Args:
        error: a driver's.
    """
    return _field(error, "message_primary", "message") or str(error).strip()


def _field(error: BaseException, psycopg_name: str, asyncpg_name: str) -> str | None:
    """A field of the server's message, where each driver keeps it."""
    if (diag := getattr(error, "diag", None)) is not None:
        found = getattr(diag, psycopg_name)
    else:
        found = getattr(error.__cause__ or error, asyncpg_name, None)
    return found if isinstance(found, str) else None


def translate(shard: str, error: BaseException, connection: Guarded | None) -> errors.SessionError | None:
    """The error of ours that an error of a shard amounts to, or None where SQLAlchemy's own says it well.

    Args:
        shard: the shard's name.
        error: what the driver raised.
        connection: on which connection, while it is known.
    """
    if is_commit_lost(error):
        return _commit_unknown(shard, connection)
    state, said = sqlstate_of(error), said_by(error)
    if state == _STANDBY and not (connection is not None and connection.is_read_only):
        return ConnectionLost.standby(shard, said, had_run=not happened_at_entry(error))
    if state == _SERIALIZATION and happened_at_entry(error):
        # The range was changed while the check waited for it, under a snapshot that is older.
        return EntryRefused(shard, error)
    if state in (_MOVED, _FENCED, _IMPORTING):
        if happened_at_entry(error):
            refused = EntryRefused(shard, error)
            refused.had_run = connection is not None and connection.has_run
            return refused
        if connection is not None and connection.has_entered:
            # The ranges that were entered cannot move now: the row belongs to none of them.
            return errors.KeyOutsideSession(
                f"shard {shard} refused a row that it does not serve: {said}",
                fix="use a session for that row's key",
                shard=shard,
            )
        return errors.ShardMoved(f"shard {shard}: {said}", fix="run the transaction again", shard=shard)
    if state == _REFUSED:
        return errors.WriteRefused(said, fix=_field(error, "message_hint", "hint") or "", shard=shard)
    if is_outdated(error):
        outdated = PlanOutdated(shard, said)
        outdated.had_run = connection is not None and connection.has_run
        return outdated
    if connection is not None and connection.is_lost:
        lost = ConnectionLost(
            f"the connection to shard {shard} was lost: {said}", fix="run the transaction again", shard=shard
        )
        lost.had_run = connection.has_run
        return lost
    return None


def _commit_unknown(shard: str, connection: Guarded | None) -> errors.CommitUnknown:
    facts: dict[str, Any] = {"shard": shard}
    if connection is not None and connection.xact_id is not None:
        facts |= {"xid": connection.xact_id, "timeline": connection.timeline}
    return errors.CommitUnknown(
        f"the answer to COMMIT on shard {shard} was lost: the transaction may be stored or not",
        fix="cluster.commit_outcome(error) tells which; it is not sent again",
        ownership_known=True,
        **facts,
    )
