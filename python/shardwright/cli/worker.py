"""``shardwright worker``: brings operations on, from any host, until told to stop."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Common
from shardwright.cli.output import Output
from shardwright.cli.reshard_drive import Interrupts

app = App(
    name="worker",
    help="Run operations, and keep partitions in step, until told to stop.",
    help_epilogue="Example:\n\n    shardwright worker\n\n    shardwright worker --once --json",
)


@app.default
def worker(
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    poll: float = 1.0,
    schedule: str = "0 * * * *",
    no_partitions: Annotated[bool, Parameter(name="--no-partitions", negative=())] = False,
    common: Common = DEFAULTS,
) -> int:
    """Bring operations that nobody works on to their goals, one after the other. SIGTERM and Ctrl-C end it gracefully.

    Beside that it keeps time partitions in step with their policies, as `shardwright partition tick` does: when it starts,
    and then by its schedule.

    Any number of workers may run, on any hosts. One line is written for each event; with --json each is one of JSON.

    Args:
        once: end when there is nothing to do; the exit code is that of the last operation that failed, or of the tick.
        poll: seconds between two looks for work.
        schedule: when partitions are looked after: a cron expression in UTC; each tick begins up to a minute later.
        no_partitions: leave partitions alone.
    """
    if not 0 < poll <= 3600:
        raise errors.BadOption(f"--poll {poll}: between 0 and 3600 seconds", fix="shardwright worker --help")
    from shardwright.cli.worker_ticks import Schedule, Ticks, run

    when = Schedule(schedule)
    with common.connect():
        pass  # a wrong catalog ends the program here; one that goes away later is waited for
    from shardwright.reshard import work

    log = logging.getLogger("shardwright")
    handler = _Lines(common.output)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    events = logging.getLogger("shardwright.worker")
    try:
        with Interrupts() as interrupts:
            events.info("looks for work")
            kept = 0
            if once and not no_partitions:
                kept = run(common.dsn(), events.info, interrupts.check)
            ticks = Ticks(common.dsn(), when, events.info) if not once and not no_partitions else nullcontext()
            with ticks:
                failed = work.work(
                    common.dsn(), once=once, poll=poll, on_event=events.info, on_progress=interrupts.check
                )
            return failed.exit_code if failed is not None else kept
    except (errors.Interrupted, KeyboardInterrupt):
        return 0
    finally:
        events.info("ends")
        log.removeHandler(handler)


class _Lines(logging.Handler):
    """One line an event."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, message = record.levelname.lower(), " ".join(record.getMessage().split())
        self._output.item(
            {"at": at, "level": level, "logger": record.name, "message": message}, f"{at} {level} {message}"
        )
