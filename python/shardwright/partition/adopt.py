"""Partitions that others made come under our care by their bounds, on every shard, without touching a row.

The catalog is told first, in one transaction: the table, its policy, and the list of what was found. From then on no tick
makes anything over it. Then each shard's partitions are marked, the canary's first, and a DEFAULT partition gives way to
guards. A crash leaves partitions that are listed and not marked, which are never taken away; the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shardwright import errors, failpoints
from shardwright.catalog import adoption, roster, windows
from shardwright.catalog.tables import RegisteredTable
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import adopting, registering
from shardwright.partition.adopt_look import Look, look
from shardwright.partition.adopt_plan import AdoptPlan, ShardPlan
from shardwright.partition.adopting import ShardReport
from shardwright.partition.outcomes import Report
from shardwright.partition.site import PATIENCE, PartitionSite
from shardwright.partition.split import alone
from shardwright.partition.tick import tick
from shardwright.partition.wishes import Wish


@dataclass
class AdoptReport:
    """What a run did."""

    plan: AdoptPlan
    shards: list[ShardReport] = field(default_factory=list)
    #: What became of the windows from now on.
    windows: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            **self.plan.to_json(),
            "done": [vars(one) for one in self.shards],
            "ticked": self.windows.to_json() if self.windows is not None else None,
        }


def plan(catalog_dsn: str, schema: str, table: str, wish: Wish, *, now: datetime | None = None) -> AdoptPlan:
    """Look at every shard and say what would be taken over, and how it goes on. Nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        wish: the policy, and what it is to be where it is not registered yet.
        now: the moment to plan for; the databases' clock unless given.

    Raises:
        UnknownTable, BadDeclaration, BadOption: there is no such table or policy, or it is ours already.
        UnfitTable, CannotConnect, NotPrimary: it cannot be taken over; every reason on every shard.
        OperationConflict: an operation is live, or the table is converted or split.
    """
    with look(catalog_dsn, schema, table, wish, now=now, patience=PATIENCE) as found:
        _refuse_ours(found)
        return found.plan


def adopt(
    catalog_dsn: str,
    schema: str,
    table: str,
    wish: Wish,
    *,
    fingerprint: str | None = None,
    now: datetime | None = None,
    watch: Callable[[str, str], None] = lambda shard, what: None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> AdoptReport:
    """Take a partitioned table over on every shard that has it, or go on with that; then look after it for the first time.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        wish: the policy, and what it is to be where it is not registered yet.
        fingerprint: of the plan that is meant; any unless given.
        now: the moment to plan for; the databases' clock unless given.
        watch: told what goes on.
        on_progress: called between steps; it may raise to stop the work.
        patience: seconds of tries for each lock.

    Raises:
        UnknownTable, BadDeclaration, BadOption, UnfitTable, CannotConnect, NotPrimary, OperationConflict: as `plan`;
            nothing was changed.
        PlanStale: it is another plan by now, or a shard's partitions changed since it was looked at.
        MisplacedRows: a shard has rows that it does not own. Nothing was changed.
        LockTimeout: run it again.
    """
    failpoints.check_setting()
    with look(catalog_dsn, schema, table, wish, now=now, on_progress=on_progress, patience=patience) as found:
        _refuse_ours(found)
        if fingerprint is not None and fingerprint != found.plan.fingerprint:
            raise errors.PlanStale(
                f"plan {fingerprint} is not what there is to do any more: it is {found.plan.fingerprint} now",
                fix=f"shardwright partition adopt {schema}.{table} --dry-run",
                changes=[],
            )
        report = AdoptReport(found.plan)
        # A reshard that starts finds all of it, or nothing.
        with roster.changing(found.catalog):
            registered = _record(found, schema, table)
            with alone(found.catalog, registered.id):
                for site in found.sites:
                    site.table = registered
                    report.shards.append(_take(site, found.plan.shards[site.shard.name], watch))
                    on_progress()
        report.windows = tick(catalog_dsn, [(schema, table)], now=now, on_progress=on_progress, patience=patience)
        if registered.kind == "reference":
            registering.resume_references(found.catalog)
        return report


def _take(site: PartitionSite, planned: ShardPlan, watch: Callable[[str, str], None]) -> ShardReport:
    """One shard, from wherever it is."""
    done = ShardReport(site.shard.name)
    with site.locked():
        watch(site.shard.name, f"marking {len(planned.take)} partitions")
        adopting.keep_version(site, planned)
        done.taken = adopting.mark(site, planned)
        if planned.default is not None:
            watch(site.shard.name, f"replacing {planned.default.name}")
            adopting.replace_default(site, planned.default, done)
    return done


def _refuse_ours(found: Look) -> None:
    if found.plan.is_empty:
        raise errors.BadOption(
            f"{found.plan.table} is ours already: every partition of it is listed, and has our mark",
            fix="shardwright partition status",
        )


def _record(found: Look, schema: str, table: str) -> RegisteredTable:
    """The catalog gets the table, its policy and its windows, at once."""

    def declare(registered: Sequence[RegisteredTable]) -> None:
        number = registered[0].id
        windows.add(
            found.catalog,
            number,
            [CatalogWindow(number, one.name, one.lower, one.upper, one.role) for one in found.plan.add],
        )

    wanted = adoption.Wanted(schema, table, found.declaration)
    [registered] = adoption.adopt(found.catalog, [wanted], judge=registering.judge, recording=declare)
    failpoints.reach("partition.adopt_recorded")
    return registered
