"""A circuit breaker: whoever wants a shard that does not answer is told so at once, instead of after a time-out.

A pure state machine: it does no I/O, and the time is an argument. *closed*: everybody passes; failures in a row are
counted, and any answer of the shard forgets them. *open*: nobody passes until the pause is over. *half-open*: one
passes and tries; an answer closes the breaker, a failure opens it for twice as long, up to a ceiling.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shardwright import errors

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """When a breaker opens, and for how long.

    Args:
        threshold: failures in a row that open it; 0 never does.
        cool_down: seconds of the first pause.
        ceiling: seconds of the longest one.

    Raises:
        BadOption: they make no sense.
    """

    threshold: int = 3
    cool_down: float = 1.0
    ceiling: float = 30.0

    def __post_init__(self) -> None:
        if self.threshold < 0 or not 0 < self.cool_down <= self.ceiling:
            raise errors.BadOption(
                f"a breaker with threshold {self.threshold}, cool-down {self.cool_down:g} s and ceiling {self.ceiling:g} s",
                fix="give a threshold of 0 or more, and 0 < cool-down <= ceiling",
            )


class Breaker:
    """The breaker of one shard's servers of one role. May be used from many threads; never blocks.

    Args:
        shard: the shard's name, for the error.
        role: which of its servers: "primary".
        options: when it opens, and for how long.
        jitter: gives a factor of about 1 for each pause, so that processes do not come back all at once.
    """

    def __init__(
        self,
        shard: str,
        role: str,
        options: BreakerOptions,
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),
    ) -> None:
        self.shard = shard
        self.role = role
        self._options = options
        self._jitter = jitter
        self._lock = threading.Lock()
        self._failures = 0
        self._pauses = 0
        self._until: float | None = None
        self._tried_by: object | None = None
        self._why = ""
        #: whether an answer of the shard would change anything: looked at before `heard` is called
        self.is_troubled = False

    def state(self, now: float) -> State:
        """What it is.

        Args:
            now: seconds of a clock that only goes forward.
        """
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def enter(self, now: float) -> object | None:
        """Ask to pass.

        Args:
            now: the time.

        Returns:
            None, or where the caller is the one that tries, what it gives to `leave` afterwards.

        Raises:
            ShardUnavailable: it is open; the fact `retry_after` says for how many seconds.
        """
        if self._until is None:  # without the lock: nearly always
            return None
        with self._lock:
            until = self._until
            if until is not None and (now < until or self._tried_by is not None):
                raise self._refusal(now, until)
            self._tried_by = object() if until is not None else None
            return self._tried_by

    def leave(self, trial: object | None) -> None:
        """The caller that tried has done so; where it learned nothing of the shard, the next one tries.

        Args:
            trial: what `enter` returned.
        """
        if trial is not None:
            with self._lock:
                if self._tried_by is trial:
                    self._tried_by = None

    def check(self, now: float) -> None:
        """Once more, for who has passed and waited since: may the shard still be called?

        Args:
            now: the time.

        Raises:
            ShardUnavailable: it was opened meanwhile.
        """
        until = self._until
        if until is not None and now < until:
            raise self._refusal(now, until)

    def failed(self, now: float, why: str) -> bool:
        """The shard was called, and did not serve.

        Args:
            now: the time.
            why: for people.

        Returns:
            Whether this has opened the breaker.
        """
        with self._lock:
            self._failures += 1
            self.is_troubled = True
            if not self._options.threshold:
                return False
            if self._until is None:
                return self._failures >= self._options.threshold and self._open(now, why)
            # While it is open nobody calls; those that come back now had called before, and say nothing new.
            return now >= self._until and self._open(now, why)

    def trip(self, now: float, why: str) -> bool:
        """It is certain that the shard answers nobody: open without counting.

        Args:
            now: the time.
            why: for people.

        Returns:
            Whether this has opened the breaker.
        """
        with self._lock:
            self.is_troubled = True
            if not self._options.threshold or (self._until is not None and now < self._until):
                return False
            return self._open(now, why)

    def heard(self) -> bool:
        """The shard has answered somebody.

        Returns:
            Whether this has closed the breaker.
        """
        with self._lock:
            was_open = self._until is not None
            self._failures = self._pauses = 0
            self._until = self._tried_by = None
            self.is_troubled = False
            return was_open

    def _open(self, now: float, why: str) -> bool:
        pause = min(self._options.cool_down * 2**self._pauses, self._options.ceiling)
        self._pauses = min(self._pauses + 1, 32)
        self._until = now + min(pause * self._jitter(), self._options.ceiling)
        self._tried_by = None
        self._why = why
        return True

    def _refusal(self, now: float, until: float) -> errors.ShardUnavailable:
        # While somebody tries, nobody knows; the shortest pause is a fair guess.
        wait = until - now if now < until else self._options.cool_down
        return errors.ShardUnavailable(
            f"the {self.role} of shard {self.shard} is not called for {wait:.1f} s: {self._why}",
            fix=f"try again in {wait:.1f} s; other shards are not affected",
            shard=self.shard,
            role=self.role,
            retry_after=wait,
        )
