"""Watching an operation that others bring on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shardwright import errors
from shardwright.cli.app import Common
from shardwright.cli.output import Answer, Output
from shardwright.cli.reshard_drive import explained
from shardwright.cli.reshard_screen import Pace, at_rest, line, screen

if TYPE_CHECKING:
    from shardwright.reshard.status import Status

_SCREEN_SECONDS = 0.5
_LINE_SECONDS = 1.0


def follow(common: Common, operation: int) -> int:
    """Show an operation until it is at rest: a screen on a terminal, lines in a pipe, lines of JSON with --json.

    Returns:
        The exit code.

    Raises:
        ShardwrightError: what made the operation fail, or what ended the watching.
    """
    try:
        with _shown(common.output) as show:
            for seen in _seen(common, operation, _SCREEN_SECONDS if common.output.is_terminal else _LINE_SECONDS):
                show(seen)
    except KeyboardInterrupt:
        stopped = errors.Interrupted("interrupted", fix=f"shardwright reshard watch {operation}")
        raise explained(common, operation, stopped, changed=False) from None
    return 0


@contextmanager
def _shown(output: Output) -> Iterator[Callable[[Status], None]]:
    pace = Pace()
    if output.as_json or not output.is_terminal:
        yield lambda seen: output.item(
            seen.as_json(), f"{datetime.now(UTC):%H:%M:%S} {line(seen, pace.quiet_for(seen))}"
        )
        return
    with output.live() as renew:

        def show(seen: Status) -> None:
            steps = [f"next: {step}" for step in seen.next_steps]
            renew(Answer(None, [*screen(seen, pace.quiet_for(seen)), "", *steps], next_steps=None))

        yield show


def _seen(common: Common, operation: int, seconds: float) -> Iterator[Status]:
    """The operation's status now, after each change of phase, and after each span of time; ends when it is at rest.

    Raises:
        ShardwrightError: the operation failed, and nobody works on it.
    """
    from shardwright.reshard import operate, status

    with common.connect() as catalog:
        catalog.execute("LISTEN shardwright_operation")
        while True:
            seen = status.of(catalog, operation)
            yield seen
            if seen.error is not None and seen.worker is None:
                raise explained(common, operation, operate.stored_error(seen.error), changed=False)
            if at_rest(seen):
                return
            for _ in catalog.notifies(timeout=seconds, stop_after=1):
                pass
