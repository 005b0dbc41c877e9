"""Who listens to events, and the events that SQLAlchemy's own hooks tell of: they are in place only while somebody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction

from shardwright.session import events
from shardwright.session.events import Listener, TransactionBegun, TransactionEnded
from shardwright.session.session import ShardSession
from shardwright.session.wire import is_commit_lost

_changing = threading.Lock()
_listeners: tuple[Listener, ...] = ()


def listen(call: Listener) -> Callable[[], None]:
    """Hear of everything that happens in this process's sessions from now on.

    Args:
        call: gets each event, in the thread or task where it happens; what it raises, the session raises.

    Returns:
        What ends it.
    """
    _change(lambda known: (*known, call))

    def stop() -> None:
        _change(lambda known: tuple(one for one in known if one is not call))

    return stop


def _change(how: Callable[[tuple[Listener, ...]], tuple[Listener, ...]]) -> None:
    global _listeners
    with _changing:
        before, _listeners = _listeners, how(_listeners)
        if _listeners and not before:
            for hooked in _SQLALCHEMY:
                sa.event.listen(*hooked)
        elif before and not _listeners:
            for hooked in _SQLALCHEMY:
                sa.event.remove(*hooked)
        events.hook = _hook(_listeners)


def _hook(listeners: tuple[Listener, ...]) -> Listener | None:
    if len(listeners) < 2:
        return listeners[0] if listeners else None

    def tell(event: events.Event) -> None:
        for call in listeners:
            call(event)

    return tell


# ---------------------------------------------------------------- transactions


class _Told:
    """What is known of a session's transaction."""

    def __init__(self) -> None:
        self.began, self.started = time.time_ns(), time.perf_counter()
        self.shards: dict[str, Connection] = {}
        self.committed = False

    @property
    def outcome(self) -> events.Outcome:
        """What has become of it."""
        if self.committed:
            return "committed"
        return "unknown" if any(one in events.undecided for one in self.shards.values()) else "rolled_back"


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    shard: str | None = connection.engine.__dict__.get("shardwright_shard")
    if shard is None or events.hook is None:
        return
    told: _Told = session.__dict__.setdefault("_shardwright_told", _Told())
    known = told.shards.get(shard)
    told.shards[shard] = connection
    if known is not None:
        return  # a savepoint, or a shard that turned us away at first
    assert isinstance(session, ShardSession)
    events.hook(TransactionBegun(session.route, shard))


def _after_commit(session: Session) -> None:
    told: _Told | None = session.__dict__.get("_shardwright_told")
    if told is not None and session.get_nested_transaction() is None:
        told.committed = True


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    told: _Told | None = session.__dict__.pop("_shardwright_told", None)
    if told is None or events.hook is None:
        return
    assert isinstance(session, ShardSession)
    seconds = time.perf_counter() - told.started
    events.hook(TransactionEnded(session.route, tuple(told.shards), told.outcome, told.began, seconds))


def _on_error(context: ExceptionContext) -> None:
    if context.connection is not None and is_commit_lost(context.original_exception):
        events.undecided.add(context.connection)


_SQLALCHEMY: tuple[tuple[type[Any], str, Callable[..., None]], ...] = (
    (ShardSession, "after_begin", _after_begin),
    (ShardSession, "after_commit", _after_commit),
    (ShardSession, "after_transaction_end", _after_transaction_end),
    (Engine, "handle_error", _on_error),
)
