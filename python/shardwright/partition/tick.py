"""A tick: plan and apply for every table with a policy. Made to be called again and again, by cron or a worker."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from shardwright import failpoints
from shardwright.partition import apply
from shardwright.partition.fleet import Fleet
from shardwright.partition.outcomes import Report
from shardwright.partition.site import MOST_MOVED, PATIENCE


def tick(
    catalog_dsn: str,
    names: Collection[tuple[str, str]] = (),
    *,
    now: datetime | None = None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
    most_moved: int = MOST_MOVED,
) -> Report:
    """Bring every shard in step with policies and the clock. One table or shard that fails never stops the others.

    Args:
        catalog_dsn: where the catalog is.
        names: schema and name of the only tables that count; all with a policy by default.
        now: the moment to plan for; the databases' clock unless given.
        on_progress: called between steps; it may raise to stop the work.
        patience: seconds that a step waits for its locks.
        most_moved: rows of a guard that a step may move while the table is locked.

    Returns:
        What was planned and what became of it.

    Raises:
        UnknownTable, BadDeclaration: a named table is not registered, or has no policy.
        CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be asked.
    """
    failpoints.check_setting()
    with Fleet(catalog_dsn, names, on_progress=on_progress, patience=patience, most_moved=most_moved) as fleet:
        return apply.execute(fleet, apply.plan_of(fleet, now))
