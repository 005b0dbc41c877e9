"""How sessions wait that are used from tasks of an event loop. See `waiting`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, Generic, TypeVar

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

    def bell(self) -> TaskBell:
        """See `Waiting.bell`."""
        return TaskBell()

    def aside(self, call: Callable[[], T]) -> T:
        """See `Waiting.aside`."""
        within = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await_only(_end_of(loop.run_in_executor(self._executor(), partial(within.run, call))))


class TaskBell:
    """For a task that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """See `Bell.ring`."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(self._rung.set)

    def wait(self, seconds: float) -> None:
        """See `Bell.wait`."""
        with contextlib.suppress(TimeoutError):
            await_only(asyncio.wait_for(self._rung.wait(), seconds))


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
        asyncio.CancelledError: whoever waits was cancelled.
        concurrent.futures.CancelledError: the future was.
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
    if future.cancelled():
        # Asked for, and no cancellation of whoever waits.
        raise concurrent.futures.CancelledError()
    return future.result()


#: Whether connections are closed without a word, because nobody can wait for the answer.
in_a_hurry: contextvars.ContextVar[bool] = contextvars.ContextVar("in_a_hurry", default=False)


def at_once(close: Callable[[], object]) -> None:
    """Close connections of an event loop without waiting for it, from wherever: it may have ended.

    Args:
        close: what does so, in one of SQLAlchemy's greenlets; it finds `in_a_hurry` set.
    """
    closing = greenlet_spawn(close)

    def begin() -> None:
        in_a_hurry.set(True)
        closing.send(None)

    try:
        contextvars.copy_context().run(begin)
    except StopIteration:
        return
    closing.close()
    raise AssertionError("closing a connection waited for its event loop")


async def to_its_end(work: Coroutine[Any, Any, T], grace: float, give_up: Callable[[], object]) -> T:
    """Await something that must not be cancelled half-way: whoever waits is cancelled when it has ended.

    Args:
        work: what is awaited.
        grace: seconds for which it may go on after that.
        give_up: called when it takes longer; it makes it end.

    Raises:
        CancelledError: whoever waits was cancelled; what became of it is its cause, if it failed.
        BaseException: what it raised.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        try:
            await asyncio.wait((task,), timeout=grace)
        finally:
            if not task.done():
                give_up()
        failed = await asyncio.gather(task, return_exceptions=True)
        if isinstance(failed[0], BaseException):
            raise cancelled from failed[0]
        raise


def in_greenlet(work: Callable[[], Awaitable[T]]) -> Callable[[], T]:
    """A plain function that awaits, for use in one of SQLAlchemy's greenlets.

    Args:
        work: gives what is awaited.
    """
    return lambda: await_only(work())
