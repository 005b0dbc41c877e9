"""How a demo tells people what it does, and how it is interrupted."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from shardwright.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

    from shardwright.demo.operator import Audience
    from shardwright.reshard.status import Status


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP: each raises KeyboardInterrupt at once, and is remembered.

    A signal may be handled while Python runs a finaliser, which swallows what the handler raises. So the demo asks, too.
    """

    def __enter__(self) -> Interrupts:
        self._seen = False
        self._before = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._seen:
            raise KeyboardInterrupt


class _Lines:
    """Tells an audience that reads a pipe: a line for each stage and fact, with the seconds since the start."""

    def __init__(self, output: Output, check: Callable[[], None]) -> None:
        self._output = output
        self.check = check
        self._started = time.monotonic()

    def stage(self, text: str) -> None:
        self.check()
        self._output.note(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def fact(self, text: str) -> None:
        self._output.note(f"          {text}")

    def status(self, now: Status) -> None:
        """Too often for a pipe; the facts say the same."""

    def live(self, text: str, done: int = 0, total: int = 0) -> None:
        """Too often for a pipe."""


class _Screen:
    """Tells people at a terminal: stages and facts go by, and the last line lives."""

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self._progress = progress
        self.check = check
        self._started = time.monotonic()
        self._live = progress.add_task("", total=None)

    def stage(self, text: str) -> None:
        self.check()
        at = f"[{time.monotonic() - self._started:5.1f} s]"
        self._progress.console.print(f"{at} {text}", style="bold", highlight=False, markup=False)
        self._progress.reset(self._live, description="", total=None)

    def fact(self, text: str) -> None:
        self._progress.console.print(f"          {text}", style="dim", highlight=False, markup=False)

    def status(self, now: Status) -> None:
        done, total = now.rows_done, sum(move.rows_total for move in now.moves)
        switched, batches = sum(m.batches_switched for m in now.moves), sum(m.batches for m in now.moves)
        more = {
            "copying": f": {done:,} of {total:,} rows",
            "switching": f": {switched} of {batches} batches",
            "reverting": f": {batches - switched} of {batches} batches",
        }.get(now.phase, "")
        self._progress.update(self._live, description=f"{now.phase}{more}")

    def live(self, text: str, done: int = 0, total: int = 0) -> None:
        self._progress.update(self._live, description=text, completed=done, total=total or None)


@contextmanager
def audience(output: Output, check: Callable[[], None]) -> Iterator[Audience]:
    """Whom a demo tells how it goes: people at a terminal, or a pipe.

    Args:
        output: where lines go.
        check: called often; raises to end the demo.
    """
    if not sys.stderr.isatty():
        yield _Lines(output, check)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TimeElapsedColumn(), BarColumn(20), TextColumn("{task.description}", markup=False)
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        yield _Screen(progress, check)
