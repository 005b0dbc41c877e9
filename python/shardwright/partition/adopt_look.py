"""Catalog and all shards, looked at before a partitioned table is taken over: the plan, or every reason against it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog import ddl, fitness, maps, roster, tables, windows
from shardwright.catalog.layout import Layout, layout_of
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.partition import adopt_plan, adoptable, codecs, handmade, jobs, occupied, partman, swap, wishes
from shardwright.partition.adopt_plan import AdoptPlan, Facts
from shardwright.partition.convertible import Reason
from shardwright.partition.declare import Declared
from shardwright.partition.handmade import FoundTable
from shardwright.partition.partman import PartmanSet
from shardwright.partition.shapes import Partition, PartitionedTable
from shardwright.partition.site import PartitionSite
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier as ident
from shardwright.routing.tables import Declaration

_NAME = "shardwright adopt"


@dataclass
class Look:
    """A table on all shards, fit to be taken over."""

    catalog: psycopg.Connection
    #: What it is, or is going to be registered as.
    declaration: Declaration
    plan: AdoptPlan
    #: The table on every shard that has it, the canary first.
    sites: list[PartitionSite]


@dataclass
class _Problems:
    """What keeps a table from being taken over, on all shards."""

    table: str
    found: list[tuple[str, Reason]] = field(default_factory=list)
    #: Why shards could not be asked.
    down: list[errors.PreconditionError] = field(default_factory=list)

    def add(self, shard: str, reasons: Sequence[Reason]) -> None:
        self.found += [(shard, reason) for reason in reasons if (shard, reason) not in self.found]

    def check(self) -> None:
        """Raises UnfitTable with every reason, where there is one; what a shard that is down said, where that is all."""
        if len(self.down) == len(self.found) == 1:
            raise self.down[0]
        if not self.found:
            return
        said = [f"shard {shard}: it {reason.what}\n  fix: {reason.fix}" for shard, reason in self.found]
        raise errors.UnfitTable(
            f"table {self.table} cannot be taken over: {len(said)} reason{'s' if len(said) > 1 else ''}\n"
            + "\n".join(said),
            fix=self.found[0][1].fix if len(said) == 1 else "see each line; nothing was changed",
            table=self.table,
            reasons=[{"shard": shard, "what": reason.what, "fix": reason.fix} for shard, reason in self.found],
        )


@dataclass
class _Fleet:
    """Catalog and shards, as far as they are known."""

    catalog: psycopg.Connection
    registered: RegisteredTable | None
    problems: _Problems
    shards: dict[str, Shard] = field(default_factory=dict)
    connections: dict[str, psycopg.Connection] = field(default_factory=dict)
    found: dict[str, FoundTable | None] = field(default_factory=dict)

    def having(self) -> Iterator[tuple[str, psycopg.Connection, FoundTable]]:
        """The shards that have the table."""
        for name, found in self.found.items():
            if found is not None:
                yield name, self.connections[name], found


@contextmanager
def look(
    catalog_dsn: str,
    schema: str,
    table: str,
    wish: Wish,
    *,
    now: datetime | None = None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float,
) -> Iterator[Look]:
    """Look at everything and plan; nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        wish: what is asked for.
        now: the moment to plan for; the databases' clock unless given.
        on_progress: given to the sites.
        patience: seconds of tries for each lock, given to the sites.

    Raises:
        UnknownTable, BadDeclaration, BadOption: there is no such table or policy, or another policy is kept.
        UnfitTable, CannotConnect, NotPrimary: it cannot be taken over; every reason on every shard.
        OperationConflict: an operation is live, or another work on the table is.
    """
    with engines.connect_catalog(catalog_dsn, _NAME) as catalog, ExitStack() as stack:
        fleet = _open(stack, catalog, schema, table, wish)
        first, connection, found = next(fleet.having())
        layout = layout_of(connection, schema, table)
        kept = {name: partman.find(one, schema, table) for name, one, _ in fleet.having()}
        declared = _declaration(fleet.registered, wish)
        column_type = next((one.type for one in layout.columns if one.name == found.columns[0]), None)
        known = fleet.registered.policy if fleet.registered is not None else None
        policy, policy_from, notes = wishes.resolve(
            f"{schema}.{table}", wish, known, [one for one in kept.values() if one is not None], found, column_type
        )
        declared = replace(declared, policy=policy)
        key = _judge(fleet, layout, declared, policy, first, kept)
        registered = fleet.registered or RegisteredTable(
            0, schema, table, declared.kind, declared.keyspace, declared.key_column, declared.home, layout
        )
        registered = replace(registered, policy=policy, layout=layout)
        sites = [
            PartitionSite(fleet.shards[name], registered, policy, key, one, catalog, on_progress, patience, now)
            for name, one, _ in fleet.having()
        ]
        _scan(fleet, sites)
        facts = _facts(fleet, sites, policy_from, now, notes)
        plan, problems = adopt_plan.make(facts)
        for name, reason in problems:
            fleet.problems.add(name, [reason])
        if not problems:
            _fits_nowhere(fleet, sites, plan)
        fleet.problems.check()
        yield Look(catalog, declared, plan, sites)


def _open(stack: ExitStack, catalog: psycopg.Connection, schema: str, table: str, wish: Wish) -> _Fleet:
    """Ask every shard whether it has a table of that shape."""
    name = f"{schema}.{table}"
    roster.refuse_live_operations(catalog, "taking partitions over")
    registered = next(
        (one for one in tables.list_tables(catalog) if (one.schema_name, one.table_name) == (schema, table)), None
    )
    if registered is not None:
        for job in jobs.list_jobs(catalog, registered.id).values():
            raise errors.OperationConflict(
                f"a {job.kind} of {name} is under way", fix=f"shardwright partition {job.kind} {name}"
            )
    fleet = _Fleet(catalog, registered, _Problems(name))
    declared = _declaration(registered, wish)
    for shard in roster.list_shards(catalog):
        if declared.kind == "global" and shard.name != declared.home:
            continue
        try:
            connection = stack.enter_context(engines.connect_shard(shard, _NAME))
        except errors.PreconditionError as error:
            fleet.problems.down.append(error)
            fleet.problems.add(shard.name, [Reason(f"cannot be looked at: {error.message}", error.fix)])
            continue
        fleet.shards[shard.name], fleet.connections[shard.name] = shard, connection
        found = fleet.found[shard.name] = handmade.find(connection, schema, table)
        if found is not None:
            fleet.problems.add(shard.name, adoptable.shape_reasons(schema, table, found))
    if not any(fleet.having()):
        fleet.problems.check()
        raise errors.UnknownTable(
            f"there is no table {name} on any shard", fix="check the name; names are case-sensitive here", table=name
        )
    if len(fleet.problems.found) > len(fleet.problems.down):
        fleet.problems.check()
    return fleet


def _declaration(registered: RegisteredTable | None, wish: Wish) -> Declaration:
    if registered is not None:
        kind, key = registered.kind, registered.key_column
        return Declaration(kind, key, registered.keyspace, registered.home_shard)
    return wish.declared or Declaration("local")


def _judge(
    fleet: _Fleet,
    layout: Layout,
    declared: Declaration,
    policy: Policy,
    first: str,
    kept: Mapping[str, PartmanSet | None],
) -> str:
    """The key, after every shard was judged by itself."""
    problems, schema, table = fleet.problems, layout.schema, layout.table
    column = next((one for one in layout.columns if one.name == policy.column), None)
    if column is None:
        known = ", ".join(one.name for one in layout.columns)
        raise errors.BadDeclaration(
            f"table {layout.name} has no column {policy.column}", fix=f"its columns are {known}"
        )
    try:
        key = codecs.resolve_key(policy, column.type)
    except errors.UnfitTable as error:
        problems.add(first, [Reason(f"does not go with the policy: {error.message}", error.fix)])
        problems.check()
        raise
    shard_map = maps.load_map(fleet.catalog)
    space = shard_map.keyspace(declared.keyspace) if declared.keyspace is not None else None
    role = fitness.Role(declared.kind, space, declared.key_column, policy)
    for name, connection, found in fleet.having():
        reasons = adoptable.reasons(schema, table, declared.kind, found, policy, key, kept[name])
        there = layout_of(connection, schema, table)
        if differing := layout.differences(there):
            reasons.append(
                Reason(f"differs from shard {first}: {'; '.join(differing[:3])}", "make the definitions equal")
            )
        if not reasons:
            try:
                fitness.check(connection, there, role, name)
            except errors.UnfitTable as error:
                reasons.append(Reason(f"cannot be {declared.kind}: {error.message}", error.fix))
        problems.add(name, reasons)
    if len(problems.found) > len(problems.down):
        problems.check()
    return key


def _scan(fleet: _Fleet, sites: Sequence[PartitionSite]) -> None:
    """Rows that keep it from being taken over."""
    for site in sites:
        found = fleet.found[site.shard.name]
        assert found is not None
        lasting = codecs.lasting_check_sql(site.key, ident(site.policy.column))
        if lasting is not None:
            count, some = swap.offenders(
                site.connection, site.schema, site.table.table_name, site.policy.column, lasting
            )
            if count:
                many = "1000 or more rows" if count >= 1000 else f"{count} rows"
                fleet.problems.add(
                    site.shard.name,
                    [
                        Reason(
                            f"has {many} whose {site.policy.column} is no UUID of version 7, such as {', '.join(some)}: they "
                            "lie in some window by accident",
                            "delete them or give them others",
                        )
                    ],
                )
    fleet.problems.check()


def _facts(
    fleet: _Fleet, sites: Sequence[PartitionSite], policy_from: str, now: datetime | None, notes: Sequence[str]
) -> Facts:
    site = sites[0]
    table, taken = site.table, set[str]()
    for one in fleet.connections.values():
        taken |= swap.names_in(one, site.schema)
    rows, extents = {}, {}
    defaults = [
        (one, found.default)
        for one in sites
        if (found := fleet.found[one.shard.name]) is not None and found.default is not None and found.default.rows
    ]
    if any(default.has_many for _, default in defaults):
        extents = {one.shard.name: occupied.extent(one, default.name) for one, default in defaults}
    else:
        rows = {one.shard.name: occupied.windows(one, default.name) for one, default in defaults}
    listed = windows.list_windows(fleet.catalog, table.id) if table.id else []
    # A name that is listed is taken on shards that have not made it yet.
    taken |= {one.name for one in listed}
    parts = [(one, Partition(one.name, one.lower, one.upper, one.role)) for one in listed]
    return Facts(
        PartitionedTable(
            table.id,
            table.schema_name,
            table.table_name,
            table.kind,
            site.policy,
            site.key,
            table.keyspace,
            table.home_shard,
        ),
        policy_from,
        now or max(one.clock() for one in sites),
        dict(fleet.found),
        Declared(
            tuple(part for one, part in parts if one.state == "wanted"),
            tuple((part, one.retired_at) for one, part in parts if one.retired_at is not None),
            {one.name: one.kept_until for one in listed if one.kept_until is not None},
        ),
        rows,
        {name: extent for name, extent in extents.items() if extent is not None},
        frozenset(taken),
        tuple(dict.fromkeys([*notes, *_index_notes(fleet)])),
    )


def _index_notes(fleet: _Fleet) -> Iterator[str]:
    """Indexes that only partitions have."""
    for name, _, found in fleet.having():
        having = [(leaf.name, index) for leaf in found.leaves for index in leaf.indexes]
        if having:
            leaf, index = having[0]
            yield (
                f"shard {name}: {len(having)} indexes belong to single partitions, such as {index.name} of {leaf}: windows "
                "made from now on do not get them; CREATE INDEX on the table gives one to all"
            )


def _fits_nowhere(fleet: _Fleet, sites: Sequence[PartitionSite], plan: AdoptPlan) -> None:
    """Rows of a DEFAULT partition that nothing takes: there are no guards, and no window is made so far away."""
    for site in sites:
        default = plan.shards[site.shard.name].default
        if site.policy.guards or default is None or not default.rows:
            continue
        column = site.column.as_string(site.connection)
        inside = [
            ddl.printed(codecs.check_sql(site.policy, site.key, column, one.lower, one.upper, site.column_type))
            for one in default.instead
        ]
        row = site.connection.execute(
            sql.SQL("SELECT count(*), min({column}::text), max({column}::text) FROM ONLY {} WHERE NOT ({})").format(
                site.leaf(default.name), sql.SQL(" OR ").join([*inside, sql.SQL("false")]), column=site.column
            )
        ).fetchone()
        if row is not None and row[0]:
            fleet.problems.add(
                site.shard.name,
                [
                    Reason(
                        f"has {row[0]} rows in its DEFAULT partition {default.name}, from {row[1]} to {row[2]}, for which the "
                        "policy makes no window, and it wants no guards",
                        f"guards = true in the policy; or correct them, they are in table {site.schema}.{default.name}",
                    )
                ],
            )
