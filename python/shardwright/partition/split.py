"""Cutting a fat partition into windows on every shard, while its rows stay visible and writable.

Each shard is filled for itself; then all give way one after the other, the canary first, and only when the last one has
is the catalog's list changed. What a crash leaves is taken up by the next run; until the first exchange all of it can be
given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from shardwright import errors, failpoints
from shardwright.catalog import roster, windows
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import jobs, ordinary, splitting
from shardwright.partition.fleet import Fleet
from shardwright.partition.jobs import Job
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PATIENCE, PartitionSite
from shardwright.partition.split_plan import SplitPlan, make, refuse_moves, the_table
from shardwright.partition.splitting import Settings, ShardReport, Watch

#: Class of the advisory lock, in the catalog, of whoever converts or splits a table: (this, table's number).
LOCK_CLASS = 1397249862

DEFAULTS = Settings()


@dataclass
class SplitReport:
    """What a run did."""

    table: str
    partition: str
    pieces: int
    shards: list[ShardReport] = field(default_factory=list)
    #: Whether the fat partition was dropped at once.
    dropped: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "table": self.table,
            "partition": self.partition,
            "pieces": self.pieces,
            "dropped": self.dropped,
            "shards": [
                {
                    "shard": one.shard,
                    "step": one.step,
                    "rows": one.rows,
                    "rows_per_s": None if one.rows_per_s is None else round(one.rows_per_s),
                    "replay_rounds": one.replay_rounds,
                    "replayed_keys": one.replayed_keys,
                    "lock_ms": None if one.lock_ms is None else round(one.lock_ms, 1),
                    "lock_tries": one.lock_tries,
                    "verified_rows": sum(row[1] for row in one.compared) if one.compared else None,
                    "restarts": one.restarts,
                }
                for one in self.shards
            ],
        }


def plan(
    catalog_dsn: str, schema: str, table: str, partition: str | None = None, *, since: int | None = None
) -> SplitPlan:
    """Look at every shard and say what a partition would be cut into. Nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        partition: which; the only one of role `whole` unless given.
        since: what lies before the window of this moment (of the policy's axis) stays one piece.

    Raises:
        UnknownTable, BadDeclaration: the table is not registered, or has no policy.
        UnfitTable: it cannot be cut; every reason on every shard.
        OperationConflict: its rows are moving, or a split of it is under way.
    """
    with Fleet(catalog_dsn, [(schema, table)]) as fleet:
        return make(fleet, partition, since)


def split(
    catalog_dsn: str,
    schema: str,
    table: str,
    partition: str | None = None,
    *,
    since: int | None = None,
    settings: Settings = DEFAULTS,
    drop_now: bool = False,
    watch: Watch = lambda shard, step, progress: None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> SplitReport:
    """Cut a partition into windows on every shard, or go on with a split that was interrupted.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        partition: which; the only one of role `whole` unless given.
        since: what lies before the window of this moment (of the policy's axis) stays one piece.
        settings: how to work.
        drop_now: drop the fat partition at once; else it is kept, detached, for the policy's grace.
        watch: told what goes on.
        on_progress: called between small steps; it may raise to stop the work.
        patience: seconds of tries for each lock.

    Raises:
        UnknownTable, BadDeclaration, UnfitTable: as `plan`.
        OperationConflict: its rows are moving, or another process works on the table.
        LockTimeout, NotDrained: run it again; nothing is lost.
        VerificationDiffers: the pieces differ; nothing was exchanged on that shard.
    """
    failpoints.check_setting()
    with Fleet(catalog_dsn, [(schema, table)], on_progress=on_progress, patience=patience) as fleet:
        number, key = the_table(fleet)
        with alone(fleet.catalog, number):
            found = _begin(fleet, partition, since)
            fat, cut = _of(next(iter(found.values())))
            report = SplitReport(fleet.registered[number].name, fat.name, len(cut))
            sites = {name: fleet.site(number, key, name) for name in found}
            reports = {name: ShardReport(name, job.step) for name, job in found.items()}
            report.shards = list(reports.values())
            for name, job in found.items():
                found[name] = _fill(sites[name], job, fat, cut, settings, watch, reports[name])
            _exchange_all(fleet, sites, found, fat, cut, settings, reports)
            for name, job in found.items():
                work = splitting.cutting(sites[name], fat, cut)
                inbound = [(one[0], one[1], one[2]) for one in job.state.get("inbound", ())]
                splitting.settle(sites[name], work, inbound, settings, watch)
                jobs.end(fleet.catalog, number, name)
                reports[name].step = "done"
            if drop_now:
                for name in fleet.shards:
                    if fleet.registered[number].is_on(name):
                        _drop(fleet.site(number, key, name), fat)
                windows.forget(fleet.catalog, number, [fat.name])
                report.dropped = True
            return report


def abort(catalog_dsn: str, schema: str, table: str, *, patience: float = PATIENCE) -> list[str]:
    """Give a split up: what was made is dropped. Possible until a shard has exchanged.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        patience: seconds of tries for each lock.

    Returns:
        The shards on which there was something to give up.

    Raises:
        WrongPhase: a shard has exchanged already, or no split is under way.
    """
    with Fleet(catalog_dsn, [(schema, table)], patience=patience) as fleet:
        number, key = the_table(fleet)
        with alone(fleet.catalog, number):
            found = {name: job for name, job in jobs.list_jobs(fleet.catalog, number).items() if job.kind == "split"}
            if not found:
                raise errors.WrongPhase(
                    f"no split of {fleet.registered[number].name} is under way", fix="shardwright partition status"
                )
            fat, cut = _of(next(iter(found.values())))
            sites = {name: fleet.site(number, key, name) for name in found}
            for name, site in sites.items():
                if splitting.has_given_way(site, fat.name):
                    raise errors.WrongPhase(
                        f"{fat.name} has given way on shard {name}: there is no way back",
                        fix=f"shardwright partition split {schema}.{table}, which goes on with the other shards",
                        shard=name,
                    )
            for name, site in sites.items():
                splitting.give_up(site, splitting.cutting(site, fat, cut))
                jobs.end(fleet.catalog, number, name)
            return list(found)


@contextmanager
def alone(catalog: psycopg.Connection, table_id: int) -> Iterator[None]:
    """Hold the lock of whoever converts, splits or adopts a table, in the catalog, for as long as it takes.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        table_id: the table.

    Raises:
        OperationConflict: another session does.
    """
    row = catalog.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, table_id)).fetchone()
    if row is None or not row[0]:
        raise errors.OperationConflict(
            "another session converts, splits or adopts this table", fix="wait for it, then run this again"
        )
    try:
        yield
    finally:
        if not catalog.closed:
            catalog.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK_CLASS, table_id))


# ---------------------------------------------------------------- beginning


def _begin(fleet: Fleet, partition: str | None, since: int | None) -> dict[str, Job]:
    """The jobs of all shards, the canary's first: those that are there, or new ones after a preflight."""
    number, _ = the_table(fleet)
    table = fleet.registered[number]
    found = jobs.list_jobs(fleet.catalog, number)
    if not any(job.step in ("exchanged", "recorded") for job in found.values()):
        refuse_moves(fleet.catalog, table.keyspace, table.name)
    if not found:
        made = make(fleet, partition, since)
        state = {
            "partition": [made.fat.name, made.fat.lower, made.fat.upper, made.fat.role],
            "pieces": [[one.name, one.lower, one.upper, one.role] for one in made.pieces],
        }
        new = [Job(number, name, "split", "planned", state) for name in made.bytes]
        with roster.changing(fleet.catalog):  # a reshard that starts sees these, or they see it
            refuse_moves(fleet.catalog, table.keyspace, table.name)
            jobs.begin(fleet.catalog, new)
        found = jobs.list_jobs(fleet.catalog, number)
    other = next((job for job in found.values() if job.kind != "split"), None)
    if other is not None:
        raise errors.OperationConflict(
            f"a {other.kind} of {table.name} is under way", fix=f"shardwright partition {other.kind} {table.name}"
        )
    fat, _ = _of(next(iter(found.values())))
    if partition is not None and partition != fat.name:
        raise errors.OperationConflict(
            f"a split of {fat.name} is under way",
            fix=f"shardwright partition split {table.name}, or with --abort; then {partition}",
        )
    return {name: found[name] for name in sorted(found)}


def _of(job: Job) -> tuple[Partition, list[Partition]]:
    return Partition(*job.state["partition"]), [Partition(*one) for one in job.state["pieces"]]


# ---------------------------------------------------------------- going on


def _fill(
    site: PartitionSite,
    job: Job,
    fat: Partition,
    cut: Sequence[Partition],
    settings: Settings,
    watch: Watch,
    report: ShardReport,
) -> Job:
    if job.step in ("exchanged", "recorded") or splitting.has_given_way(site, fat.name):
        report.step = "exchanged"
        return job if job.step in ("exchanged", "recorded") else jobs.advance(site.catalog, job, "exchanged")
    work = splitting.cutting(site, fat, cut)
    if "inbound" not in job.state:
        parent = ordinary.read(site.connection, site.schema, site.table.table_name)
        keys = [[one["schema"], one["table"], one["name"]] for one in parent.inbound if one["validated"]]
        job = jobs.advance(site.catalog, job, job.step, inbound=keys)
    return splitting.fill(site, work, job, settings, watch, report)


def _exchange_all(
    fleet: Fleet,
    sites: dict[str, PartitionSite],
    found: dict[str, Job],
    fat: Partition,
    cut: Sequence[Partition],
    settings: Settings,
    reports: dict[str, ShardReport],
) -> None:
    """On every shard, then in the catalog; no tick looks at the table on a shard meanwhile."""
    number = next(iter(found.values())).table_id
    with ExitStack() as stack:
        for site in sites.values():
            stack.enter_context(site.locked())
        refuse_moves(fleet.catalog, fleet.registered[number].keyspace, fleet.registered[number].name)
        for name, job in found.items():
            if job.step == "ready":
                work = splitting.cutting(sites[name], fat, cut)
                found[name], _ = splitting.give_way(sites[name], work, job, settings, reports[name])
        if any(job.step != "recorded" for job in found.values()):
            with fleet.catalog.transaction():
                if any(
                    one.name == fat.name and one.state == "wanted"
                    for one in windows.list_windows(fleet.catalog, number)
                ):
                    windows.retire(fleet.catalog, number, [fat.name])
                windows.add(
                    fleet.catalog,
                    number,
                    [CatalogWindow(number, one.name, one.lower, one.upper, one.role) for one in cut],
                )
                for name, job in found.items():
                    found[name] = jobs.advance(fleet.catalog, job, "recorded")
            failpoints.reach("partition.split_recorded")


def _drop(site: PartitionSite, fat: Partition) -> None:
    from shardwright.partition.plan import Step
    from shardwright.partition.steps import drop

    drop.run(site, Step("drop", fat.name, fat.lower, fat.upper, fat.role))
