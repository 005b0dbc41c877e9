"""How a session waits: one set of code, for threads and, through SQLAlchemy's greenlet bridge, for tasks.

Sessions decide in plain functions. Where they would block on something else than their own connection, or do several
things at the same time, they ask their `Waiting`, and know nothing of threads or of an event loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A call that goes on meanwhile."""

    def result(self) -> T_co:
        """What it returned, once it has ended; raises what it raised.

        It has ended when this raises, too, also where whoever asks was cancelled meanwhile.
        """
        ...

    def cancel(self) -> object:
        """Let it end early if that is possible: one that has not begun, or a task. Its result is asked for all the same."""
        ...


class Bell(Protocol):
    """What somebody waits for who knows nothing of threads and tasks."""

    def ring(self) -> object:
        """Wake whoever waits; from any thread."""
        ...

    def wait(self, seconds: float) -> object:
        """Wait until it has rung.

        Args:
            seconds: at most.
        """
        ...


class Waiting(Protocol):
    """How a session waits."""

    def start(self, call: Callable[[], T]) -> Pending[T]:
        """Let a call go on while this one continues; whoever starts it asks for its result, come what may.

        Args:
            call: what to do. It uses connections that nobody else uses until it has ended.
        """
        ...

    def pause(self, seconds: float) -> None:
        """Do nothing for a time.

        Args:
            seconds: how long.
        """
        ...

    def bell(self) -> Bell:
        """A bell to wait for."""
        ...

    def aside(self, call: Callable[[], T]) -> T:
        """Make a call that blocks its thread, on the catalog for example, without holding up anybody else.

        It has ended when this returns or raises, also where whoever waits was cancelled meanwhile.

        Args:
            call: what to do.
        """
        ...


class InThreads:
    """For sessions that are used from threads, which may be blocked.

    Args:
        executor: threads in which calls go on.
    """

    def __init__(self, executor: Callable[[], Executor]) -> None:
        self._executor = executor

    def start(self, call: Callable[[], T]) -> Future[T]:
        """See `Waiting.start`."""
        return self._executor().submit(call)

    def pause(self, seconds: float) -> None:
        """See `Waiting.pause`."""
        time.sleep(seconds)

    def bell(self) -> Bell:
        """See `Waiting.bell`."""
        return ThreadBell()

    def aside(self, call: Callable[[], T]) -> T:
        """See `Waiting.aside`."""
        return call()


class ThreadBell:
    """For a thread that waits."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """See `Bell.ring`."""
        self._rung.set()

    def wait(self, seconds: float) -> None:
        """See `Bell.wait`."""
        self._rung.wait(seconds)


def together(waiting: Waiting, calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls at the same time, the first one here.

    Args:
        waiting: how.
        calls: what to do.

    Returns:
        What they returned, in their order.

    Raises:
        Whatever the first call that failed raised, once all have ended.
    """
    pending: list[Pending[Any]] = [waiting.start(call) for call in calls[1:]]
    failure: BaseException | None = None
    found: list[T] = []
    for at, call in enumerate(calls):
        try:
            found.append(call() if at == 0 else pending[at - 1].result())
        except BaseException as error:  # noqa: BLE001 - raised below, when no call uses its connection any more
            failure = failure or error
            if not isinstance(error, Exception):
                # Cancelled, or interrupted: nobody waits for the others' answers.
                for one in pending:
                    one.cancel()
    if failure is not None:
        raise failure
    return found
