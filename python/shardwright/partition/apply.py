"""A plan is carried out: declared in the catalog, then step by step on each shard, the canary first.

Whatever a shard does, the others go on: one that is down, in recovery or locked is deferred, and the next run takes it
up from what it then finds. Only a canary on which a step fails stops the rest of its table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import psycopg

from shardwright import engines, errors, failpoints
from shardwright.catalog import windows
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import planner
from shardwright.partition.fleet import Fleet
from shardwright.partition.outcomes import Outcome, Report, reason_of, record
from shardwright.partition.plan import RETENTION, Plan, Step, TablePlan, changes
from shardwright.partition.site import LOCK_CLASS, PATIENCE, PartitionSite
from shardwright.partition.steps import archive, attach, create, detach, drop, finalize, guard, lift

_log = logging.getLogger("shardwright.partition")

#: What does a step, by its kind.
STEPS: dict[str, Callable[[PartitionSite, Step], None]] = {
    "finalize": finalize.run,
    "create": create.run,
    "attach": attach.run,
    "guard": guard.run,
    "detach": detach.run,
    "archive": archive.run,
    "drop": drop.run,
    "lift": lift.run,
}


def plan(catalog_dsn: str, names: Collection[tuple[str, str]] = (), *, now: datetime | None = None) -> Plan:
    """Look at everything and plan; nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        names: schema and name of the only tables that count; all with a policy by default.
        now: the moment to plan for; the databases' clock unless given.

    Raises:
        UnknownTable, BadDeclaration: a named table is not registered, or has no policy.
        CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be asked.
    """
    with Fleet(catalog_dsn, names) as fleet:
        return plan_of(fleet, now)


def plan_of(fleet: Fleet, now: datetime | None = None) -> Plan:
    """As `plan`, for a fleet that is open.

    Args:
        fleet: catalog and shards.
        now: the moment to plan for.
    """
    made = planner.make_plan(fleet.look(now))
    return replace(made, findings=(*fleet.findings, *made.findings))


def apply(
    catalog_dsn: str,
    saved: Plan,
    *,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> Report:
    """Do exactly what a plan says, if it is still what a plan made now would say.

    It is planned anew for the saved plan's moment, so that time that passed is no change. Shards that could not be asked
    then or cannot now are left to the next run.

    Args:
        catalog_dsn: where the catalog is.
        saved: the plan.
        on_progress: called between steps; it may raise to stop the work.
        patience: seconds that a step waits for its locks.

    Raises:
        PlanStale: something changed since; nothing was done.
    """
    failpoints.check_setting()
    ids = [table.table_id for table in saved.tables]
    with Fleet(catalog_dsn, ids=ids, on_progress=on_progress, patience=patience) as fleet:
        present = plan_of(fleet, saved.now)
        both = set(saved.shards) & set(present.shards)
        old, new = _only(saved, both), _only(present, both)
        if old.fingerprint != new.fingerprint:
            said = changes(old, new)
            raise errors.PlanStale(
                f"plan {saved.fingerprint} is not what there is to do any more: "
                + "; ".join(said[:5])
                + (f"; and {len(said) - 5} more" if len(said) > 5 else ""),
                fix="shardwright partition plan",
                changes=said,
            )
        return execute(fleet, new)


def _only(whole: Plan, shards: Collection[str]) -> Plan:
    """A plan without the steps of other shards."""
    tables = [
        replace(
            table,
            steps={shard: steps for shard, steps in table.steps.items() if shard in shards},
            order=tuple(shard for shard in table.order if shard in shards),
            forget=table.forget if len(shards) == len(table.order) else (),
        )
        for table in whole.tables
    ]
    return replace(whole, tables=tuple(tables), shards=tuple(shard for shard in whole.shards if shard in shards))


# ---------------------------------------------------------------- all tables


def execute(fleet: Fleet, planned: Plan) -> Report:
    """Carry a plan out that was made a moment ago.

    Args:
        fleet: catalog and shards, as they were looked at for the plan.
        planned: what to do.
    """
    outcomes: list[Outcome] = []
    for table in planned.tables:
        found = _table(fleet, planned, table, outcomes)
        found += [
            Outcome(table.table_id, table.table, shard, "deferred", reason={"message": why, "fix": "it is asked again"})
            for shard, why in planned.deferred.items()
            if fleet.registered[table.table_id].is_on(shard)
        ]
        try:
            record(fleet.catalog, planned, found)
        except psycopg.Error as error:
            _log.warning("the outcome for %s could not be kept: %s", table.table, _said(error))
        outcomes += found
    return Report(planned, tuple(outcomes))


def _table(fleet: Fleet, planned: Plan, table: TablePlan, before: Sequence[Outcome]) -> list[Outcome]:
    """One table on all shards."""
    if table.is_empty:
        return [Outcome(table.table_id, table.table, shard, "done") for shard in table.order]
    try:
        _declare(fleet.catalog, table)
    except (errors.ConflictError, psycopg.Error) as error:
        return [
            Outcome(table.table_id, table.table, shard, "deferred", reason=reason_of(error)) for shard in table.order
        ]
    failpoints.reach("partition.declared")
    held = {
        shard: next((one for one in before if one.table_id in table.children and one.shard == shard
                     and one.outcome != "done"), None)
        for shard in table.order
    }  # fmt: skip
    run = partial(_shard, fleet, table, held)
    found: list[Outcome] = []
    leading = [shard for shard in table.order if shard in table.leaders]
    following = [shard for shard in table.order if shard not in table.leaders]
    waiting = leading if table.leaders else following
    while waiting:  # the canary: the first one that is not merely deferred
        found.append(run(waiting.pop(0)))
        if found[-1].outcome != "deferred":
            break
    # What keeps a window from going (an archive that cannot be written) must not keep others from getting theirs.
    if found and found[-1].outcome == "failed" and found[-1].kind not in RETENTION:
        why = f"the canary, shard {found[-1].shard}, did not succeed"
        left = [shard for shard in table.order if shard not in {one.shard for one in found}]
        return found + [_deferred(table, shard, why, "mend what failed there") for shard in left]
    if table.leaders:
        found += fleet.each(leading, run)
        done = {one.shard for one in found if one.outcome == "done"}
        if behind := [shard for shard in table.leaders if shard not in done]:
            why = f"rows move to shard {behind[0]}, which must have the windows first"
            return found + [_deferred(table, shard, why, "it is tried again with that shard") for shard in following]
    return found + fleet.each(following, run)


def _deferred(table: TablePlan, shard: str, why: str, fix: str) -> Outcome:
    return Outcome(table.table_id, table.table, shard, "deferred", reason={"message": why, "fix": fix})


def _declare(catalog: psycopg.Connection, table: TablePlan) -> None:
    """Bring the declared list up to date, in one transaction, one worker at a time.

    Raises:
        LockTimeout: another one does it at this moment.
        OperationConflict: the list was changed since the plan was made.
    """
    if not (table.add or table.resize or table.retire or table.forget):
        return
    with catalog.transaction():
        row = catalog.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", (LOCK_CLASS, table.table_id)).fetchone()
        if row is None or not row[0]:
            raise errors.LockTimeout(
                f"another worker looks after the partitions of {table.table}", fix="wait for it, then run this again"
            )
        windows.forget(catalog, table.table_id, table.forget)
        windows.retire(catalog, table.table_id, table.retire)
        for one in table.resize:
            windows.resize(catalog, table.table_id, one.name, one.lower, one.upper)
        windows.add(
            catalog,
            table.table_id,
            [CatalogWindow(table.table_id, one.name, one.lower, one.upper, one.role) for one in table.add],
        )


# ---------------------------------------------------------------- one shard


def _shard(fleet: Fleet, table: TablePlan, held: Mapping[str, Outcome | None], shard: str) -> Outcome:
    """One table on one shard: its steps until one does not succeed."""
    steps = table.steps.get(shard, ())
    done = 0
    step: Step | None = None

    def ended(outcome: str, reason: Mapping[str, Any]) -> Outcome:
        _log.info("%s on shard %s: %s: %s", table.table, shard, outcome, reason.get("message"))
        return Outcome(table.table_id, table.table, shard, outcome, done, reason)

    if not steps:
        return Outcome(table.table_id, table.table, shard, "done")
    try:
        site = fleet.site(table.table_id, table.key, shard)
        with site.locked():
            for step in steps:
                if step.kind in RETENTION and (child := held.get(shard)) is not None:
                    return ended(
                        "deferred",
                        {"message": f"{child.table} refers to it and still has windows", "fix": "it is tried again"},
                    )
                site.on_progress()
                STEPS[step.kind](site, step)
                done += 1
                _log.info("%s on shard %s: %s %s", table.table, shard, step.kind, step.name)
    except errors.Interrupted:
        raise
    except (errors.ConflictError, errors.CannotConnect, errors.NotPrimary, psycopg.OperationalError) as error:
        return ended("deferred", reason_of(error, step))
    except (errors.ShardwrightError, psycopg.Error) as error:
        return ended("failed", reason_of(error, step))
    return Outcome(table.table_id, table.table, shard, "done", done)


def _said(error: psycopg.Error) -> str:
    return engines.redact(" ".join(str(error).split()))
