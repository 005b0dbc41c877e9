"""Making a table partitioned on one shard, step by step; each step can be run again, and goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psycopg

from shardwright import errors, failpoints
from shardwright.catalog import guards, sites
from shardwright.partition import calendar, carried, codecs, convert_plan, jobs, leaves, moments, ordinary, swap
from shardwright.partition.convert_plan import ConvertPlan
from shardwright.partition.jobs import Job
from shardwright.partition.site import PartitionSite
from shardwright.routing.predicates import quote_identifier as ident
from shardwright.routing.shard_map import ShardMap

#: A shard is not begun with when the cut is as near as that.
AT_LEAST: Final = timedelta(minutes=10)

#: Called with the shard and what goes on there.
Watch = Callable[[str, str], None]


@dataclass
class ShardReport:
    """What became of one shard."""

    shard: str
    step: str
    lock_ms: float | None = None
    lock_tries: int = 0
    validate_seconds: float | None = None


def is_converted(site: PartitionSite, planned: ConvertPlan) -> bool:
    """Whether the swap was committed on a shard, whatever the job says.

    Args:
        site: the table and shard.
        planned: what it is turned into.
    """
    standing = leaves.find(site, planned.whole.name)
    return standing is not None and standing.attached and standing.marked


def convert_one(site: PartitionSite, job: Job, planned: ConvertPlan, shard_map: ShardMap, watch: Watch) -> ShardReport:
    """Bring one shard to `valid`, from wherever it is.

    Args:
        site: the table and shard.
        job: how far it is.
        planned: what the table is turned into.
        shard_map: says what the shard owns, for guards.
        watch: told what goes on.

    Raises:
        UnfitTable: rows or a definition keep it from being converted. Nothing was changed on this shard.
        OperationConflict: the cut has passed.
        LockTimeout: run it again.
    """
    report = ShardReport(site.shard.name, job.step)
    name = (site.schema, site.table.table_name)
    if not is_converted(site, planned):
        job = _prepare(site, job, planned, watch, report)
        watch(site.shard.name, "swapping")
        to = convert_plan.conversion(site, planned, ordinary.read(site.connection, *name))

        def done(before: ordinary.OrdinaryTable) -> None:
            _finish(site, planned, shard_map)
            failpoints.reach("partition.convert_swapping")

        held, _ = swap.swap(site.connection, *name, to, planned.policy, done=done, patience=site.patience)
        report.lock_ms, report.lock_tries = round(held.lock_ms, 3), held.tries
        failpoints.reach("partition.convert_swapped")
    if job.step not in ("swapped", "valid"):
        job = jobs.advance(site.catalog, job, "swapped", lock_ms=report.lock_ms)
    if job.step == "swapped":
        watch(site.shard.name, "validating foreign keys")
        for key in job.state.get("inbound", ()):
            swap.validate(site.connection, key[0], key[1], key[2], site.patience)
        # Autovacuum does not analyze a partitioned table.
        site.connection.execute(f"ANALYZE {carried.qualified(*name)}".encode())
        failpoints.reach("partition.convert_keys_valid")
        job = jobs.advance(site.catalog, job, "valid")
    report.step = job.step
    return report


def _prepare(site: PartitionSite, job: Job, planned: ConvertPlan, watch: Watch, report: ShardReport) -> Job:
    name = (site.schema, site.table.table_name)
    if planned.cut <= calendar.now_on_axis(planned.policy, site.key, site.clock() + AT_LEAST):
        raise errors.OperationConflict(
            f"the cut of {site.table.name}, {moments.text_of(planned.cut, 'timestamp')}, has come before shard "
            f"{site.shard.name} was converted: what is written from now on would not fit",
            fix=f"shardwright partition convert {site.table.name} --abort, then begin anew with a later cut: --until MOMENT",
        )
    found = ordinary.read(site.connection, *name)
    if planned.extend_key:
        watch(site.shard.name, "building the new primary key")
        swap.build_key(site.connection, found, planned.policy.column)
        failpoints.reach("partition.convert_key_built")
    keys = [list(one) for one in carried.validations(found)]
    body = convert_plan.check_body(site, planned)
    watch(site.shard.name, "checking that all rows lie before the cut")
    if not any(one["name"] == carried.CHECK_NAME for one in found.constraints):
        swap.add_check(site.connection, *name, body, site.patience)
    failpoints.reach("partition.convert_checked")
    started = time.monotonic()
    try:
        swap.validate(site.connection, *name, carried.CHECK_NAME, site.patience)
    except psycopg.errors.CheckViolation as error:
        swap.drop_check(site.connection, *name, site.patience)
        what, fix = convert_plan.offending(
            site, planned, *swap.offenders(site.connection, *name, planned.policy.column, body)
        )
        raise errors.UnfitTable(
            f"table {site.table.name} on shard {site.shard.name} {what}", fix=fix, table=site.table.name
        ) from error
    report.validate_seconds = round(time.monotonic() - started, 3)
    failpoints.reach("partition.convert_validated")
    return jobs.advance(site.catalog, job, "checked", inbound=keys)


def _finish(site: PartitionSite, planned: ConvertPlan, shard_map: ShardMap) -> None:
    """Guards and marks, in the transaction of the swap."""
    table, connection = site.table, site.connection
    if table.is_guarded_on(site.shard.name):
        owned = sites.owned_here(table, shard_map, site.shard.name)
        guards.install(connection, table.guarded(shard_map), owned)
    lasting = codecs.lasting_check_sql(site.key, ident(planned.policy.column))
    for one in (planned.whole, *planned.after):
        leaf = carried.qualified(site.schema, one.name)
        if lasting is not None:
            text = (
                f"RENAME CONSTRAINT {carried.CHECK_NAME} TO {leaves.LASTING_CHECK}"
                if one is planned.whole
                else f"ADD CONSTRAINT {leaves.LASTING_CHECK} CHECK {lasting}"
            )
            connection.execute(f"ALTER TABLE {leaf} {text}".encode())
        site.mark(one, "attached")
