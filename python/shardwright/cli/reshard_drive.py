"""Bringing an operation on in the foreground: its display, its interruption, and what is said when it stops."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from shardwright import errors
from shardwright.cli.app import Common, unexpected
from shardwright.cli.output import Answer, Output
from shardwright.cli.reshard_screen import Pace, at_rest, line, screen, what_stands

if TYPE_CHECKING:
    from shardwright.reshard.status import Status

#: Seconds for which an interrupted step may go on to its next safe point before it is broken off.
GRACE_SECONDS = 1.5


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP as a wish, while this context lasts.

    The work ends at its next safe point, where `check` raises: a hand-over that is under way is then through or undone.
    A step that reaches none in time (a long comparison, a server that does not answer) is broken off by
    KeyboardInterrupt, and so it is by a second signal; the engine then undoes what it was about.
    """

    def __init__(self) -> None:
        """Nothing was asked for yet."""
        self.wanted = False
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Where the work may end.

        Raises:
            Interrupted: it shall.
        """
        if self.wanted:
            self._disarm()
            raise errors.Interrupted("interrupted")

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._wish)
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before:
            self._disarm()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            self._break_off(number, frame)
        self.wanted = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        self._disarm()
        raise KeyboardInterrupt

    def _disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def display(output: Output) -> Iterator[Callable[[Status], None]]:
    """Show an operation while it is worked on: in place on a terminal, as lines on stderr in a pipe, not at all in JSON."""
    pace = Pace()
    if output.as_json:
        yield lambda _: None
    elif output.is_terminal:
        with output.live() as renew:
            yield lambda status: renew(Answer(None, screen(status, pace.quiet_for(status)), next_steps=None))
    else:
        said, at = "", 0.0

        def note(status: Status) -> None:
            nonlocal said, at
            text, now = line(status, pace.quiet_for(status)), time.monotonic()
            if text != said and (text.partition(",")[0] != said.partition(",")[0] or now - at >= 1.0):
                said, at = text, now
                output.note(text)

        yield note


@contextmanager
def warnings_shown(output: Output) -> Iterator[None]:
    """Tell people what the engine warns of: a lease that could not be renewed, say."""
    log, handler = logging.getLogger("shardwright"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: output.note(f"warning: {record.getMessage()}")  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def drive(common: Common, operation: int, interrupts: Interrupts, *, take_over: bool = False) -> Answer:
    """Bring an operation to the goal that is set, in this process or by watching the worker that does.

    Raises:
        ShardwrightError: whatever stopped it, with what stands now and the next steps in its facts.
    """
    from shardwright.reshard import operate

    def work() -> Status:
        with display(common.output) as show, warnings_shown(common.output):
            return operate.drive(
                common.dsn(), operation, on_status=show, take_over=take_over, on_progress=interrupts.check
            )

    return answer(common.output, guarded(common, operation, work))


def answer(output: Output, status: Status, *, shown_live: bool = True) -> Answer:
    """The answer of a verb that ends with a status; a terminal that watched has the screen already."""
    shown = [] if shown_live and output.is_terminal else screen(status)
    return Answer(status.as_json(), shown, next_steps=status.next_steps)


def guarded(common: Common, operation: int, work: Callable[[], Status], *, changed: bool = True) -> Status:
    """Do something with an operation; whatever stops it is raised with what stands now.

    Args:
        common: where the catalog is.
        operation: its number.
        work: what is done.
        changed: whether it changes anything that stays.

    Raises:
        ShardwrightError: see `explained`.
    """
    try:
        return work()
    except KeyboardInterrupt:
        raise explained(common, operation, errors.Interrupted("interrupted"), changed=changed) from None
    except errors.ShardwrightError as error:
        raise explained(common, operation, error, changed=changed) from error
    except Exception as error:
        # psycopg's, from a connection that broke at a bad moment, or a mistake of ours: the operation is stated either way
        raise explained(common, operation, unexpected(error), changed=changed) from error


def explained(
    common: Common, operation: int, error: errors.ShardwrightError, *, changed: bool = True
) -> errors.ShardwrightError:
    """Complete an error with the state of its operation: what was changed, who owns the rows, what to do next.

    Args:
        common: where the catalog is.
        operation: its number.
        error: what happened.
        changed: whether this command, or the work that it watched, may have changed something that stays.
    """
    error.durable_change = error.durable_change or changed
    error.facts["operation"] = operation
    try:
        from shardwright.reshard import status

        with common.connect() as catalog:
            seen = status.of(catalog, operation)
    except Exception:  # noqa: BLE001 - the first error is the one to be told
        resume = f"shardwright reshard resume {operation}"
        error.facts["stands"] = ["the catalog cannot be asked now; what the operation did is kept there"]
        error.facts["next_steps"] = [f"shardwright reshard status {operation}", resume]
        error.fix = error.fix or f"bring the catalog back, then: {resume}"
        return error
    error.facts.update(
        phase=seen.phase,
        goal=seen.goal,
        worker=seen.worker,
        stands=what_stands(seen),
        left_behind=list(seen.left_behind),
        next_steps=list(seen.next_steps),
    )
    if isinstance(error, errors.Interrupted):
        done = at_rest(seen)
        error.message = f"interrupted{', but it was through' if done else ''}"
    error.fix = error.fix or next(iter(seen.next_steps), "")
    return error
