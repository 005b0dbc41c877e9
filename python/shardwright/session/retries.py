"""How long and how often: waiting for a map to change, and replaying a whole transaction."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from shardwright import errors
from shardwright.session import events
from shardwright.session.faults import LOCK_TIMEOUT, REPLAYABLE, PlanOutdated, sqlstate_of
from shardwright.session.waiting import Waiting

if TYPE_CHECKING:
    from shardwright.session.refresh import Router

T = TypeVar("T")


class Backoff:
    """Pauses that double from 1 ms to a ceiling, jittered, within a deadline.

    Args:
        seconds: from now to the deadline.
        ceiling: the longest pause.
    """

    def __init__(self, seconds: float, ceiling: float = 0.1) -> None:
        self._deadline = time.monotonic() + seconds
        self._next = 0.001
        self._ceiling = ceiling

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    def pause(self) -> float:
        """The next pause in seconds, cut at the deadline."""
        pause = self._next * random.uniform(0.5, 1.5)
        self._next = min(self._next * 2, self._ceiling)
        return max(0.0, min(pause, self._deadline - time.monotonic()))


class Patience:
    """What a session does when a shard refuses it at BEGIN: bring the map up to date, wait a little, try again.

    Args:
        router: whose map.
        waiting: how the session waits.
        seconds: how long in all.
    """

    def __init__(self, router: Router, waiting: Waiting, seconds: float) -> None:
        self._router = router
        self._waiting = waiting
        self._seconds = seconds
        self._backoff = Backoff(seconds)

    def after(self, error: errors.SessionError, version: int) -> None:
        """Take note of a refusal; returns when it is worth trying again.

        Args:
            error: the refusal.
            version: the map by which the shard was chosen.

        Raises:
            MapTimeout: a shard refused for too long.
            ShardUnavailable: a shard was not reachable for too long.
        """
        if events.hook is not None:
            events.hook(events.TurnedAway(error.facts.get("shard"), error.facts.get("sqlstate")))
        if self._backoff.is_over:
            if isinstance(error, errors.ShardUnavailable):
                raise error
            raise errors.MapTimeout(
                f"no shard served the range within {self._seconds:g} s: {error.message}",
                fix="run the transaction again; `shardwright reshard status` shows what is being handed over",
                **error.facts,
            ) from error
        began = time.perf_counter()
        if self._waiting.aside(partial(self._router.refresh, version)).map.version == version:
            self._router.wait(self._waiting.bell(), version, self._backoff.pause())
        if events.hook is not None:
            events.hook(events.Waited(time.perf_counter() - began))


def replay(
    waiting: Waiting, once: Callable[[], T], deadline: float, attempts: int | None, *, across: bool = False
) -> T:
    """Call until it succeeds or fails for good.

    Args:
        waiting: how to wait between two attempts.
        once: one attempt, a whole transaction.
        deadline: seconds within which a new attempt may start.
        attempts: how many at most; None: any number.
        across: it goes to several shards: deadlocks show themselves by waits that are too long.

    Returns:
        What the attempt that succeeded returned.
    """
    backoff, made = Backoff(deadline), 0
    while True:
        made += 1
        try:
            return once()
        except (errors.ShardMoved, errors.PoolDeadlock, PlanOutdated, sa.exc.DBAPIError) as error:
            reason = _reason(error, across)
            if reason is None or backoff.is_over or made == attempts:
                raise
            if events.hook is not None:
                events.hook(events.Replayed(reason))
        waiting.pause(backoff.pause())


def _reason(error: BaseException, across: bool) -> str | None:
    """Why a transaction is replayed, or None where that would not help."""
    if isinstance(error, errors.ShardMoved):
        return "moved"
    if isinstance(error, PlanOutdated):
        return "outdated"
    if isinstance(error, errors.PoolDeadlock):
        return error.kind
    state = sqlstate_of(error)
    return state if state in REPLAYABLE or (across and state == LOCK_TIMEOUT) else None
