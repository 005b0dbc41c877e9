"""Ticks of time partitions by a worker's schedule, in a thread of their own.

Beside the operations and not between them: bringing an operation on may take hours, and windows are to be there when
their time comes. The two only meet on the shards, where a tick yields: it defers what it gets no lock for.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg
from cronsim import CronSim, CronSimError

from shardwright import engines, errors
from shardwright.partition.outcomes import Report
from shardwright.partition.plan import HUMAN
from shardwright.partition.tick import tick

#: A tick begins at most so many seconds after its moment, at random, so that workers do not all begin at once; and no
#: more than a tenth of the time to the next one.
MOST_JITTER = 60.0

#: Seconds that whoever ends a worker waits for a step that is under way; each is one transaction, and may be broken off.
_GRACE = 3.0


class Schedule:
    """Moments by a cron expression, in UTC."""

    def __init__(self, expression: str) -> None:
        """Read it.

        Args:
            expression: five fields, ``0 * * * *``.

        Raises:
            BadOption: it is none.
        """
        self.expression = expression
        try:
            CronSim(expression, datetime.now(UTC))
        except CronSimError as error:
            raise errors.BadOption(
                f"not a cron expression: {expression!r} ({error})", fix='--schedule "0 * * * *", every hour'
            ) from error

    def after(self, moment: datetime) -> datetime:
        """The next moment, with its jitter.

        Args:
            moment: aware.
        """
        moments = CronSim(self.expression, moment.astimezone(UTC))
        first, second = next(moments), next(moments)
        most = min(MOST_JITTER, (second - first).total_seconds() / 10)
        return datetime.fromtimestamp(first.timestamp() + random.uniform(0, most), UTC)


class Ticks:
    """Ticks now and by the schedule, from a thread, while this context lasts."""

    def __init__(self, catalog_dsn: str, schedule: Schedule, on_event: Callable[[str], None]) -> None:
        """Nothing happens yet.

        Args:
            catalog_dsn: where the catalog is.
            schedule: when.
            on_event: called with one line for each thing that happens, from the thread.
        """
        self._dsn = catalog_dsn
        self._schedule = schedule
        self._on_event = on_event
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="partitions", daemon=True)

    def __enter__(self) -> Ticks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_GRACE)

    def _run(self) -> None:
        while True:
            try:
                run(self._dsn, self._on_event, self._check)
            except errors.Interrupted:
                return
            at = self._schedule.after(datetime.now(UTC))
            if self._stop.wait((at - datetime.now(UTC)).total_seconds()):
                return

    def _check(self) -> None:
        if self._stop.is_set():
            raise errors.Interrupted("interrupted")


def run(catalog_dsn: str, on_event: Callable[[str], None], on_progress: Callable[[], None]) -> int:
    """One tick, told line by line.

    Args:
        catalog_dsn: where the catalog is.
        on_event: called with each line.
        on_progress: called between steps; it may raise to stop the work.

    Returns:
        The exit code that `shardwright partition tick` would have.

    Raises:
        Interrupted: `on_progress` asked for the end.
    """
    try:
        report = tick(catalog_dsn, on_progress=on_progress)
    except errors.Interrupted:
        raise
    except (errors.ShardwrightError, psycopg.Error) as error:
        on_event(f"partitions: {engines.redact(' '.join(str(error).split()))}; tried again at the next tick")
        return error.exit_code if isinstance(error, errors.ShardwrightError) else 1
    for line in told(report):
        on_event(line)
    return report.exit_code


def told(report: Report) -> list[str]:
    """What is worth a line: nothing where all was well and nothing was to be done.

    Args:
        report: of a tick.
    """
    lines = [
        f"partitions of {one.table} on shard {one.shard}: {one.outcome}: {one.reason.get('message', '')}"
        for one in report.outcomes
        if one.outcome != "done"
    ]
    lines += [
        f"partitions need you: {one.message}; fix: {one.fix}" for one in report.plan.findings if one.severity == HUMAN
    ]
    done = sum(one.done for one in report.outcomes)
    return [*lines, f"partitions: {done} steps done"] if done else lines
