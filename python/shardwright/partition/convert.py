"""An ordinary table becomes partitioned on every shard that has it, without copying: the canary first.

What is decided (the cut, names, the policy) is kept in the catalog before anything is made, so that every shard gets
the same whenever it is reached. A shard that is converted stays so; the next run goes on with the others. The catalog's
policy, layout and windows change when the last one is through, and from then on ticks look after the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import psycopg

from shardwright import engines, errors, failpoints
from shardwright.catalog import adoption, maps, roster, tables, windows
from shardwright.catalog.layout import layout_of
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import codecs, convert_plan, converting, jobs, ordinary, swap
from shardwright.partition.convert_plan import ConvertPlan
from shardwright.partition.converting import ShardReport, Watch
from shardwright.partition.jobs import Job
from shardwright.partition.site import PATIENCE, PartitionSite
from shardwright.partition.split import alone
from shardwright.partition.split_plan import refuse_moves
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

_log = logging.getLogger(__name__)

_NAME = "shardwright convert"


@dataclass
class ConvertReport:
    """What a run did."""

    plan: ConvertPlan
    shards: list[ShardReport] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {**self.plan.to_json(), "shards": [vars(one) for one in self.shards]}


def plan(
    catalog_dsn: str,
    schema: str,
    table: str,
    declared: Declaration,
    *,
    extend_key: bool = False,
    until: datetime | None = None,
) -> ConvertPlan:
    """Look at every shard and say what a table would be turned into, with the statements. Nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        declared: its policy, and what it is to be where it is not registered yet.
        extend_key: add the partition column to the primary key where it lacks it.
        until: the cut lies at the end of this moment's window; two days from now unless given.

    Raises:
        BadDeclaration, UnknownTable: there is no policy or no such table.
        UnfitTable: it cannot be converted; every reason on every shard.
        OperationConflict: its rows are moving, or a conversion of it is under way.
    """
    with _fleet(catalog_dsn, schema, table, declared) as (catalog, registered, opened):
        refuse_moves(catalog, registered.keyspace, registered.name)
        _refuse_converted(registered, opened)
        return convert_plan.make(opened, extend_key=extend_key, until=until)


def convert(
    catalog_dsn: str,
    schema: str,
    table: str,
    declared: Declaration,
    *,
    extend_key: bool = False,
    until: datetime | None = None,
    watch: Watch = lambda shard, what: None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> ConvertReport:
    """Make a table partitioned on every shard that has it, or go on with a conversion that was interrupted.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        declared: its policy, and what it is to be where it is not registered yet.
        extend_key: add the partition column to the primary key where it lacks it.
        until: the cut lies at the end of this moment's window; two days from now unless given.
        watch: told what goes on.
        on_progress: called between steps; it may raise to stop the work.
        patience: seconds of tries for each lock.

    Raises:
        BadDeclaration, UnknownTable, UnfitTable: as `plan`; nothing was changed on the shard that the message names.
        OperationConflict: its rows are moving, or another process works on the table.
        LockTimeout: run it again.
    """
    failpoints.check_setting()
    with _fleet(catalog_dsn, schema, table, declared, on_progress=on_progress, patience=patience) as found:
        catalog, registered, opened = found
        if registered.id == 0:
            # Refused before it is registered, which may make it on other shards.
            convert_plan.make(opened, extend_key=extend_key, until=until)
            adoption.adopt(catalog, [adoption.Wanted(schema, table, replace(declared, policy=None))])
    with _fleet(catalog_dsn, schema, table, declared, on_progress=on_progress, patience=patience) as found:
        catalog, registered, opened = found
        with alone(catalog, registered.id):
            work = _begin(catalog, registered, opened, extend_key, until)
            planned = ConvertPlan.of(registered.name, next(iter(work.values())).state)
            report = ConvertReport(planned)
            with ExitStack() as stack:
                for site in opened:
                    stack.enter_context(site.locked())
                shard_map = maps.load_map(catalog)
                for site in opened:
                    report.shards.append(converting.convert_one(site, work[site.shard.name], planned, shard_map, watch))
                    on_progress()
                _record(catalog, registered, opened, planned)
            return report


def abort(catalog_dsn: str, schema: str, table: str, *, patience: float = PATIENCE) -> list[str]:
    """Give a conversion up: what was made is dropped. Possible until a shard is converted.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        patience: seconds of tries for each lock.

    Returns:
        The shards on which there was something to give up.

    Raises:
        WrongPhase: a shard is converted already, or no conversion is under way.
    """
    with engines.connect_catalog(catalog_dsn, _NAME) as catalog, ExitStack() as stack:
        registered = tables.get_table(catalog, schema, table)
        with alone(catalog, registered.id):
            work = {name: job for name, job in jobs.list_jobs(catalog, registered.id).items() if job.kind == "convert"}
            if not work:
                raise errors.WrongPhase(
                    f"no conversion of {registered.name} is under way", fix="shardwright partition status"
                )
            planned = ConvertPlan.of(registered.name, next(iter(work.values())).state)
            shards = {shard.name: shard for shard in roster.list_shards(catalog)}
            opened = [
                _site(stack, catalog, shards[name], registered, planned.policy, lambda: None, patience) for name in work
            ]
            for site in opened:
                if converting.is_converted(site, planned):
                    raise errors.WrongPhase(
                        f"{registered.name} is converted on shard {site.shard.name}: there is no way back",
                        fix=f"shardwright partition convert {registered.name}, which goes on with the other shards",
                        shard=site.shard.name,
                    )
            for site in opened:
                found = ordinary.find(site.connection, schema, table)
                if found is not None and found.relkind == "r":
                    swap.drop_check(site.connection, schema, table, patience)
                    if planned.extend_key:
                        swap.drop_key(site.connection, found, planned.policy.column)
                jobs.end(catalog, registered.id, site.shard.name)
            return list(work)


# ---------------------------------------------------------------- beginning


@contextmanager
def _fleet(
    catalog_dsn: str,
    schema: str,
    table: str,
    declared: Declaration,
    *,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> Iterator[tuple[psycopg.Connection, RegisteredTable, list[PartitionSite]]]:
    """The catalog, the table as it is or will be registered, and the table on every shard that has it."""
    with engines.connect_catalog(catalog_dsn, _NAME) as catalog, ExitStack() as stack:
        shards = roster.list_shards(catalog)
        registered = _registered(catalog, schema, table, declared, shards)
        begun = next((job for job in jobs.list_jobs(catalog, registered.id).values() if job.kind == "convert"), None)
        policy = declared.policy or (Policy.from_json(begun.state["policy"]) if begun is not None else None)
        if policy is None:
            raise errors.BadDeclaration(
                f"nothing says how {registered.name} is to be partitioned",
                fix='--by COLUMN --every "1 month", or --declared with a file or a model',
            )
        if registered.kind == "reference":
            raise errors.UnfitTable(
                f"{registered.name} is a reference table: its copies are fed by replication under its name",
                fix="shardwright table forget it, register it with --global on its home, convert it there, forget it again, "
                "and register it as a reference table with its policy",
                table=registered.name,
            )
        opened = [
            _site(stack, catalog, shard, registered, policy, on_progress, patience)
            for shard in shards
            if registered.is_on(shard.name)
        ]
        yield catalog, registered, [site for site in opened if registered.id or _has_table(site)]


def _registered(
    catalog: psycopg.Connection, schema: str, table: str, declared: Declaration, shards: Sequence[Shard]
) -> RegisteredTable:
    for found in tables.list_tables(catalog):
        if (found.schema_name, found.table_name) == (schema, table):
            return found
    for shard in shards:
        with engines.connect_shard(shard, _NAME) as connection:
            if ordinary.find(connection, schema, table) is not None:
                layout = layout_of(connection, schema, table)
                kind, space, key, home = declared.kind, declared.keyspace, declared.key_column, declared.home
                return RegisteredTable(0, schema, table, kind, space, key, home, layout)
    raise errors.UnknownTable(
        f"there is no table {schema}.{table} on any shard", fix="check the name; names are case-sensitive here",
        table=f"{schema}.{table}",
    )  # fmt: skip


def _has_table(site: PartitionSite) -> bool:
    return ordinary.find(site.connection, site.schema, site.table.table_name) is not None


def _site(
    stack: ExitStack,
    catalog: psycopg.Connection,
    shard: Shard,
    registered: RegisteredTable,
    policy: Policy,
    on_progress: Callable[[], None],
    patience: float,
) -> PartitionSite:
    column = next((one for one in registered.layout.columns if one.name == policy.column), None)
    if column is None:
        raise errors.BadDeclaration(
            f"table {registered.name} has no column {policy.column}",
            fix=f"its columns are {', '.join(one.name for one in registered.layout.columns)}",
            table=registered.name,
        )
    key = codecs.resolve_key(policy, column.type)
    connection = stack.enter_context(engines.connect_shard(shard, _NAME))
    return PartitionSite(shard, registered, policy, key, connection, catalog, on_progress, patience)


def _refuse_converted(registered: RegisteredTable, opened: Sequence[PartitionSite]) -> None:
    if registered.policy is not None and all(
        ordinary.read(site.connection, site.schema, registered.table_name).relkind == "p" for site in opened
    ):
        raise errors.BadOption(
            f"{registered.name} is partitioned on every shard already", fix="shardwright partition status"
        )


def _begin(
    catalog: psycopg.Connection,
    registered: RegisteredTable,
    opened: Sequence[PartitionSite],
    extend_key: bool,
    until: datetime | None,
) -> dict[str, Job]:
    """The jobs of all shards: those that are there, or new ones after a preflight."""
    refuse_moves(catalog, registered.keyspace, registered.name)
    found = jobs.list_jobs(catalog, registered.id)
    other = next((job for job in found.values() if job.kind != "convert"), None)
    if other is not None:
        raise errors.OperationConflict(
            f"a {other.kind} of {registered.name} is under way",
            fix=f"shardwright partition {other.kind} {registered.name}",
        )
    if found:
        planned = ConvertPlan.of(registered.name, next(iter(found.values())).state)
        if opened[0].policy != planned.policy:
            raise errors.OperationConflict(
                f"a conversion of {registered.name} with another policy is under way: {planned.policy.to_json()}",
                fix=f"give that policy again, or shardwright partition convert {registered.name} --abort",
            )
        return found
    _refuse_converted(registered, opened)
    planned = convert_plan.make(opened, extend_key=extend_key, until=until)
    new = [Job(registered.id, site.shard.name, "convert", "planned", planned.state()) for site in opened]
    with roster.changing(catalog):  # a reshard that starts sees these, or they see it
        refuse_moves(catalog, registered.keyspace, registered.name)
        jobs.begin(catalog, new)
    failpoints.reach("partition.convert_planned")
    return jobs.list_jobs(catalog, registered.id)


def _record(
    catalog: psycopg.Connection, registered: RegisteredTable, opened: Sequence[PartitionSite], planned: ConvertPlan
) -> None:
    """Every shard is converted: the catalog says so, at once."""
    layout = layout_of(opened[0].connection, registered.schema_name, registered.table_name)
    with roster.changing(catalog), catalog.transaction():
        tables.record(catalog, replace(registered, layout=layout, policy=planned.policy))
        windows.add(
            catalog,
            registered.id,
            [
                CatalogWindow(registered.id, one.name, one.lower, one.upper, one.role)
                for one in (planned.whole, *planned.after)
            ],
        )
        jobs.end(catalog, registered.id)
    failpoints.reach("partition.convert_recorded")
