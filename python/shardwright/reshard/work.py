"""A worker: takes operations that nobody works on, and brings each to its goal."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from shardwright import engines, errors
from shardwright.catalog import operations
from shardwright.catalog.operations import Operation
from shardwright.reshard import runner
from shardwright.reshard.phases import Goal, Phase, next_event


def work(
    catalog_dsn: str,
    *,
    once: bool = False,
    poll: float = 1.0,
    on_event: Callable[[str], None] = print,
    on_progress: Callable[[], None] = lambda: None,
) -> errors.ShardwrightError | None:
    """A worker's loop: takes whatever live operation is not at its goal and not leased, and drives it.

    Args:
        catalog_dsn: where the catalog is.
        once: end when there is nothing to do.
        poll: seconds between two looks.
        on_event: called with one line for each thing that happens.
        on_progress: called wherever the work may be broken off; it does so by raising `errors.Interrupted`.

    Returns:
        With `once`, the last error that stopped an operation; None where all went well.

    Raises:
        Interrupted: `on_progress` asked for the end.
        CannotConnect: with `once`, the catalog cannot be reached; else it is asked again and again.
    """
    given_up: dict[int, tuple[str, str]] = {}
    failed: errors.ShardwrightError | None = None
    while True:
        on_progress()
        busy = False
        for operation in _waiting(catalog_dsn, once, on_event):
            # a failed operation waits for its operator, who sets a goal or resumes it
            if operation.error is not None and given_up.get(operation.id) == (operation.phase, operation.goal):
                continue
            busy = True
            on_event(f"operation {operation.id}: {operation.phase}, goal {operation.goal}")
            stands = operation.phase, operation.goal
            try:
                done = runner.run(catalog_dsn, operation.id, on_progress=on_progress)
                on_event(f"operation {operation.id}: {done.phase}, as wanted")
            except (errors.LeaseHeld, errors.Superseded) as error:
                on_event(f"operation {operation.id}: {error.message}")
            except errors.Interrupted:
                raise
            except (errors.ShardwrightError, psycopg.Error) as error:
                said = engines.redact(" ".join(str(error).split()))
                failed = error if isinstance(error, errors.ShardwrightError) else errors.StreamStalled(said)
                on_event(f"operation {operation.id}: error[{failed.code}] {said}")
                for found in _waiting(catalog_dsn, once, on_event):
                    if found.id == operation.id:
                        stands = found.phase, found.goal
                given_up[operation.id] = stands
        if not busy:
            if once:
                return failed
            time.sleep(poll)


def _waiting(catalog_dsn: str, once: bool, on_event: Callable[[str], None]) -> list[Operation]:
    """The live operations that are not at their goal and that nobody works on."""
    try:
        with engines.connect_catalog(catalog_dsn, "shardwright worker") as catalog:
            live = operations.list_live(catalog)
    except (errors.PreconditionError, psycopg.Error) as error:
        if once:
            raise
        on_event(f"the catalog cannot be asked: {engines.redact(' '.join(str(error).split()))}")
        return []
    return [
        found
        for found in live
        if next_event(Phase(found.phase), Goal(found.goal)) is not None
        and (found.lease_left is None or found.lease_left < 0 or runner.is_gone(found.lease_holder))
    ]
