"""How sessions wait that are used from tasks of an event loop. See `waiting`."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

T = TypeVar("T")


class InLoop:
    """For sessions that are used from tasks. Everything here is called in one of SQLAlchemy's greenlets.

    Args:
        executor: threads for calls that block.
    """

    def __init__(self, executor: Callable[[], Executor]) -> None:
        self._executor = executor

    def start(self, call: Callable[[], T]) -> Started[T]:
        """See `Waiting.start`."""
        return Started(asyncio.get_running_loop().create_task(greenlet_spawn(call)))

    def pause(self, seconds: float) -> None:
        """See `Waiting.pause`."""
        await_only(asyncio.sleep(seconds))

    def aside(self, call: Callable[[], T]) -> T:
        """See `Waiting.aside`."""
        within = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await_only(_end_of(loop.run_in_executor(self._executor(), partial(within.run, call))))


class Started(Generic[T]):
    """A call that goes on in a task of its own.

    Args:
        task: the task.
    """

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task

    def cancel(self) -> bool:
        """See `Pending.cancel`."""
        return self._task.cancel()

    def result(self) -> T:
        """See `Pending.result`."""
        return await_only(_end_of(self._task, self.cancel))


async def _end_of(future: asyncio.Future[T], cancel: Callable[[], object] | None = None) -> T:
    """What a future gives, once it has ended, which it has in any case when this returns.

    Args:
        future: what is waited for.
        cancel: called when whoever waits is cancelled, to bring the end nearer.

    Raises:
        CancelledError: whoever waits was cancelled.
        BaseException: what the future ended with.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
            if cancel is not None:
                cancel()
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # so that nobody says that it was never looked at
        raise cancelled
    return future.result()


def in_greenlet(work: Callable[[], Awaitable[T]]) -> Callable[[], T]:
    """A plain function that awaits, for use in one of SQLAlchemy's greenlets.

    Args:
        work: gives what is awaited.
    """
    return lambda: await_only(work())
