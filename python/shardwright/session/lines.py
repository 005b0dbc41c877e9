"""A line: places that are given in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque


class Line:
    """A semaphore for threads that nobody passes by; a thread that gives its place back and asks again waits last.

    Args:
        places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def enter(self, seconds: float) -> bool:
        """Take a place.

        Args:
            seconds: how long to wait for one.

        Returns:
            Whether there was one in time.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            turn.wait(seconds)
        except BaseException:
            if self._came(turn):
                # Interrupted, and nobody else will give it back.
                self.leave()
            raise
        return self._came(turn)

    def _came(self, turn: threading.Event) -> bool:
        """Whether a place was given; who was given none does not wait any more."""
        with self._lock:
            if turn.is_set():
                return True
            self._waiting.remove(turn)
            return False

    def leave(self) -> None:
        """Give a place back: to whoever has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
