"""Whether a shard's servers answer: what calls have met, and whether one that has been waiting for long still may hope.

A process that hangs (SIGSTOP, a dead disk, a host that is out of memory) keeps its sockets: the kernel acknowledges what is
sent, so neither keepalives nor tcp_user_timeout notice. Nor does waiting tell: a statement may take long. So when a shard
has said nothing to anybody for a time, it is asked over a connection of its own whether it lives. Only if that is not
answered either do those who wait give up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from shardwright import errors
from shardwright.session import events
from shardwright.session.breaker import Breaker
from shardwright.session.faults import sqlstate_of

_log = logging.getLogger(__name__)

#: What a server says that does not serve, whatever it is asked: it is being shut down, has crashed, starts, is full.
NOT_SERVING = frozenset({"57P01", "57P02", "57P03", "57P04", "53300"})


class Health:
    """What is known of a shard's servers of one role.

    Args:
        breaker: keeps callers away when they do not answer.
        patience: seconds of silence after which they are asked whether they live; None never asks.
        probe: opens a connection, has it answer, and closes it; raises ShardUnavailable. Its time is bounded.
    """

    def __init__(self, breaker: Breaker, patience: float | None, probe: Callable[[], None]) -> None:
        self._breaker = breaker
        self._patience = patience
        self._probe = probe
        self._probing = threading.Lock()
        #: when anybody here was answered last
        self._heard_at = 0.0
        #: when it was found that nobody is
        self._silent_at = 0.0

    # ------------------------------------------------------------------ before a call

    def enter(self) -> object | None:
        """As `Breaker.enter`, now."""
        trial = self._breaker.enter(time.monotonic())
        if trial is not None:
            self._tell("half_open")
        return trial

    def leave(self, trial: object | None) -> None:
        """As `Breaker.leave`."""
        self._breaker.leave(trial)

    def check(self) -> None:
        """As `Breaker.check`, now."""
        self._breaker.check(time.monotonic())

    # ------------------------------------------------------------------ what calls have met

    def heard(self) -> None:
        """Somebody was answered."""
        self._heard_at = time.monotonic()
        if self._breaker.is_troubled and self._breaker.heard():
            _log.info("shard %s answers again", self._breaker.shard)
            self._tell("closed")

    def failed(self, why: str) -> None:
        """The shard was called and did not serve.

        Args:
            why: for people.
        """
        self._opened(self._breaker.failed(time.monotonic(), why), why)

    def judge(self, error: BaseException) -> None:
        """Take note of what a statement met: most errors are answers as good as any.

        A connection that was lost says nothing of the server yet: the next one that is opened does.

        Args:
            error: what the driver raised.
        """
        state = sqlstate_of(error)
        if state in NOT_SERVING:
            self.failed(f"shard {self._breaker.shard}: {error}")
        elif state is not None and not state.startswith("08"):
            # Class 08 is what drivers themselves say of a connection that was lost.
            self.heard()

    def is_silent(self, since: float) -> bool:
        """Whether an answer that is being waited for will not come. Never blocks.

        Args:
            since: when the wait began.
        """
        if self._patience is None:
            return False
        if since <= self._silent_at and self._heard_at < self._silent_at:
            return True
        if time.monotonic() - max(since, self._heard_at) >= self._patience and self._probing.acquire(blocking=False):
            threading.Thread(target=self._ask, name="shardwright-probe", daemon=True).start()
        return False

    def _ask(self) -> None:
        try:
            began = time.monotonic()
            try:
                self._probe()
            except errors.ShardUnavailable as error:
                if self._heard_at >= began:
                    return
                self._silent_at = now = time.monotonic()
                why = f"it answers nobody: {error.message}"
                self._opened(self._breaker.trip(now, why), why)
            else:
                self.heard()
        finally:
            self._probing.release()

    # ------------------------------------------------------------------ both

    def _opened(self, has: bool, why: str) -> None:
        if has:
            _log.warning("shard %s is not called for a while: %s", self._breaker.shard, why)
            self._tell("open")

    def _tell(self, state: Literal["closed", "half_open", "open"]) -> None:
        if events.hook is not None:
            events.hook(events.BreakerChanged(self._breaker.shard, self._breaker.role, state))


class Deadline:
    """In a health's place, for a connection that is still to be vetted: its answers must come within a time.

    Args:
        seconds: from the beginning of each wait.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def heard(self) -> None:
        """Nothing depends on it."""

    def judge(self, error: BaseException) -> None:
        """Whoever vets does so."""

    def is_silent(self, since: float) -> bool:
        """Whether the time is over.

        Args:
            since: when the wait began.
        """
        return time.monotonic() - since >= self._seconds
