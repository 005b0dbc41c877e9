"""A worker: takes operations that nobody works on, and brings each to its goal."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from shardwright import engines, errors
from shardwright.catalog import decisions, operations, recovery
from shardwright.catalog.operations import Operation
from shardwright.reshard import runner
from shardwright.reshard.phases import Goal, Phase, next_event

#: Seconds between two looks for transactions that sessions left.
RECOVER_SECONDS = 10.0

#: Seconds after which a transaction is taken for abandoned.
ABANDONED_SECONDS = 30.0


def work(
    catalog_dsn: str,
    *,
    once: bool = False,
    poll: float = 1.0,
    on_event: Callable[[str], None] = print,
    on_progress: Callable[[], None] = lambda: None,
) -> errors.ShardwrightError | None:
    """A worker's loop: takes whatever live operation is not at its goal and not leased, and drives it.

    Between two operations it ends transactions on several shards that their sessions left, as `tx recover` does.

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
    recovers_at = 0.0
    while True:
        on_progress()
        if time.monotonic() >= recovers_at:
            _recover(catalog_dsn, on_event)
            recovers_at = time.monotonic() + RECOVER_SECONDS
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


def _recover(catalog_dsn: str, on_event: Callable[[str], None]) -> None:
    """End what sessions left that died while they committed on several shards."""
    try:
        with engines.connect_catalog(catalog_dsn, "shardwright worker") as catalog:
            if not decisions.unsettled(catalog, ABANDONED_SECONDS):
                return
            ended, unreachable = recovery.recover(catalog, older_than=ABANDONED_SECONDS)
    except (errors.PreconditionError, psycopg.Error) as error:
        on_event(f"transactions on several shards: {engines.redact(' '.join(str(error).split()))}")
        return
    for one in ended:
        where = f"ended on {', '.join(one.ended_on)}" if one.ended_on else "nothing was left to end"
        on_event(f"transaction {one.id}: {one.outcome}, {where}")
    for shard, why in unreachable.items():
        on_event(f"transactions on several shards: shard {shard} was not asked: {why}")


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
