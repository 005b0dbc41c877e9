"""Putting tables under our care: made where they are missing, guarded where they are, registered in the end.

A table that has rows is adopted in place: not a row is copied. Its guards come under a short lock while the
application goes on, and only then are its rows checked, so none can slip in between. Whatever is refused leaves the
shards as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

import psycopg

from shardwright import errors
from shardwright.catalog import ddl, fitness, maps, privileges, probe, references, roster, tables
from shardwright.catalog.created import is_created
from shardwright.catalog.layout import Layout, find_layout
from shardwright.catalog.roster import Shard
from shardwright.catalog.sites import Site, check_rows, guard_state, open_sites, put, undo
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.judging import Neighbour
from shardwright.routing.policy import Policy
from shardwright.routing.shard_map import ShardMap
from shardwright.routing.tables import Declaration

_log = logging.getLogger(__name__)


#: Raises UnfitTable or BadDeclaration.
Judge: TypeAlias = Callable[[Layout, Policy], None]


@dataclass(frozen=True)
class Wanted:
    """A table that is to be registered, and as what."""

    schema: str
    table: str
    declaration: Declaration

    @property
    def name(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema}.{self.table}"


def adopt(
    catalog: psycopg.Connection,
    wanted: Sequence[Wanted],
    *,
    judge: Judge | None = None,
    recording: Callable[[Sequence[RegisteredTable]], None] = lambda tables: None,
) -> list[RegisteredTable]:
    """Register tables: make them where they are missing, guard them, check their rows, write them into the catalog.

    May be run again, after a failure or after the tables changed: then only what is missing is done, and the catalog's
    layouts are brought up to date.

    Args:
        catalog: connection to the catalog.
        wanted: the tables; each exists on one shard at least.
        judge: refuses a policy that does not go with its column; time partitions know, and are not known here.
        recording: called in the transaction that writes the tables into the catalog, which fails with it.

    Returns:
        The tables as registered, in the order given.

    Raises:
        BadDeclaration: one was registered as something else, or asks for another home than the reference tables have.
        UnfitTable: one cannot be what it is declared to be, or differs between shards.
        UnknownTable, UnknownKeyspace, UnknownShard: as their names say.
        MisplacedRows: a shard has rows that it does not own.
        OperationConflict: an operation is live.
        LockTimeout: an application's transactions did not let us have a lock.
    """
    with roster.changing(catalog), ExitStack() as stack, privileges.needed("a shard"):
        roster.refuse_live_operations(catalog, "registering tables")
        shard_map, cluster = maps.load_map(catalog), roster.cluster_id(catalog)
        sites = open_sites(stack, roster.list_shards(catalog))
        known = tables.list_tables(catalog)
        planned = plan(catalog, wanted, sites)
        found = [_layouts(table, sites) for table in planned]
        planned = [
            replace(table, id=_number(catalog, table, sites, known), layout=next(iter(layouts.values())))
            for table, layouts in zip(planned, found, strict=True)
        ]
        for table, layouts in zip(planned, found, strict=True):
            _check_fit(table, layouts, sites, shard_map)
            if judge is not None and table.policy is not None:
                judge(table.layout, table.policy)
        _check_neighbours(planned, known, sites)
        try:
            _put_all(planned, sites, shard_map, cluster)
            connect_references(cluster, sites, [*known, *planned])
        except BaseException:
            _take_back(cluster, sites, known)
            raise
        with catalog.transaction():
            for table in planned:
                tables.record(catalog, table)
            recording(planned)
        return planned


def _put_all(planned: Sequence[RegisteredTable], sites: Mapping[str, Site], shard_map: ShardMap, cluster: str) -> None:
    for table in planned:
        for site in sites.values():
            if table.is_on(site.shard.name):
                put(site, table, shard_map)
    for table in planned:
        for site in sites.values():
            if table.is_on(site.shard.name):
                ddl.build_foreign_keys(site.connection, table.layout)
                check_rows(site, table, shard_map, cluster)


def _take_back(cluster: str, sites: Mapping[str, Site], known: Sequence[RegisteredTable]) -> None:
    """After a refusal: streams carry the tables that were known before, and what was made is gone."""
    try:
        connect_references(cluster, sites, known)
    except (errors.ShardwrightError, psycopg.Error) as error:
        _log.warning("the reference tables' streams were not set back: %s", error)
    for site in sites.values():
        undo(site)


def plan(
    catalog: psycopg.Connection, wanted: Sequence[Wanted], sites: Mapping[str, Site] | None = None
) -> list[RegisteredTable]:
    """What tables would be in the catalog, still without number and layout: everything that can be judged without a shard.

    Args:
        catalog: connection to the catalog.
        wanted: the tables.
        sites: every shard, by name: a reference table's home is by default a shard that has it.

    Raises:
        BadDeclaration, UnknownKeyspace, UnknownShard: as `adopt`.
    """
    shard_map, known = maps.load_map(catalog), tables.list_tables(catalog)
    names = [shard.name for shard in roster.list_shards(catalog)]
    if not names:
        raise errors.UnknownShard("the cluster has no shard yet", fix="shardwright shard add NAME DSN")
    home = _reference_home(wanted, known, names, sites)
    return [_plan(catalog, one, shard_map, home, known) for one in wanted]


def equip(catalog: psycopg.Connection, shard: Shard) -> None:
    """Make every registered table on a shard that joins, with guards, and subscribe it to the reference tables.

    The caller holds `roster.changing`.

    Args:
        catalog: connection to the catalog.
        shard: the shard; its migrations are applied.

    Raises:
        UnfitTable: a table cannot be made there, or one of that name is different there.
        MisplacedRows: it has rows that it does not own.
    """
    known = tables.list_tables(catalog)
    if not known:
        return
    shard_map, cluster = maps.load_map(catalog), roster.cluster_id(catalog)
    with ExitStack() as stack:
        others = [one for one in roster.list_shards(catalog) if one.name != shard.name]
        here = open_sites(stack, [shard])[shard.name]
        sites = {**open_sites(stack, others), shard.name: here}
        ours = [_freshened(catalog, table, sites) for table in known if table.is_on(shard.name)]
        try:
            for table in ours:
                layout = find_layout(here.connection, table.schema_name, table.table_name)
                if layout is not None:
                    _check_equal(table, {shard.name: layout}, sites)
                put(here, table, shard_map)
            for table in ours:
                ddl.build_foreign_keys(here.connection, table.layout)
                check_rows(here, table, shard_map, cluster)
            connect_references(cluster, sites, known)
        except BaseException:
            home = next((sites[str(table.home_shard)] for table in known if table.kind == "reference"), None)
            if home is not None and home is not here:
                name = references.subscription_name(cluster, shard.name)
                references.unsubscribe(here.connection, home.connection, name)
            undo(here)
            raise


def connect_references(cluster: str, sites: Mapping[str, Site], known: Iterable[RegisteredTable]) -> None:
    """Make the reference tables' publication on their home and the other shards' subscriptions, as far as missing.

    Without any reference table there is neither.

    Args:
        cluster: the cluster's id.
        sites: every shard, by name.
        known: all registered tables, and those that are about to be.
    """
    wanted = {(table.schema_name, table.table_name): table for table in known if table.kind == "reference"}
    if not wanted:
        for site in sites.values():
            for home in sites.values():
                references.unsubscribe(
                    site.connection, home.connection, references.subscription_name(cluster, site.shard.name)
                )
            references.publish(site.connection, cluster, [])
        return
    home = sites[str(next(iter(wanted.values())).home_shard)]
    references.publish(home.connection, cluster, list(wanted))
    for site in sites.values():
        if site is not home:
            references.subscribe(home.connection, home.shard, site.connection, site.shard, cluster)


def _reference_home(
    wanted: Sequence[Wanted],
    known: Sequence[RegisteredTable],
    names: Sequence[str],
    sites: Mapping[str, Site] | None,
) -> str:
    """The one home of all reference tables."""
    references_wanted = [one for one in wanted if one.declaration.kind == "reference"]
    asked = {one.declaration.home: one for one in references_wanted if one.declaration.home is not None}
    settled = next((table.home_shard for table in known if table.kind == "reference"), None)
    for home, one in asked.items():
        other = settled or next(iter(asked))
        if home != other:
            raise errors.BadDeclaration(
                f"reference table {one.name} asks for home {home}, and the cluster's reference tables live on {other}",
                fix=f"declare reference() or reference(home={other!r}): they have one home, so that one transaction "
                "can write several",
                table=one.name,
            )
    if settled or asked:
        return str(settled or next(iter(asked)))
    for one in references_wanted:
        for name, site in (sites or {}).items():
            if probe.has_table(site.connection, one.schema, one.table):
                return name
    return names[0]


def _plan(
    catalog: psycopg.Connection,
    wanted: Wanted,
    shard_map: ShardMap,
    reference_home: str,
    known: Sequence[RegisteredTable],
) -> RegisteredTable:
    """What the table will be in the catalog, still without number and layout."""
    declared = wanted.declaration
    if declared.keyspace is not None:
        shard_map.keyspace(declared.keyspace)
    home = reference_home if declared.kind == "reference" else declared.home
    if home is not None:
        roster.get_shard(catalog, home)
    planned = RegisteredTable(
        0,
        wanted.schema,
        wanted.table,
        declared.kind,
        declared.keyspace,
        declared.key_column,
        home,
        _NO_LAYOUT,
        declared.policy,
    )
    for table in known:
        if table.name == planned.name and _role(table) != _role(planned):
            raise errors.BadDeclaration(
                f"table {table.name} is registered as {_role(table)} and declared as {_role(planned)}",
                fix="a table's kind, keyspace, key and home are fixed; declare it as it was registered",
                table=table.name,
            )
    return planned


_NO_LAYOUT = Layout("", "", (), (), (), (), (), (), (), "d", None, None, "", ())


def _role(table: RegisteredTable) -> str:
    if table.kind == "sharded":
        return f"sharded by {table.key_column} in {table.keyspace}"
    return "local" if table.kind == "local" else f"{table.kind} on {table.home_shard}"


def _layouts(table: RegisteredTable, sites: Mapping[str, Site]) -> dict[str, Layout]:
    """The table as it is on each shard that has it: first the home of a reference table, then where we did not make it."""
    found: dict[str, tuple[tuple[bool, bool], Layout]] = {}
    for name, site in sites.items():
        layout = find_layout(site.connection, table.schema_name, table.table_name) if table.is_on(name) else None
        if layout is not None:
            made = is_created(site.connection, table.schema_name, table.table_name)
            found[name] = ((name != table.home_shard, made), layout)
    if not found:
        where = f"on shard {table.home_shard}" if table.kind == "global" else "on any shard"
        raise errors.UnknownTable(
            f"there is no table {table.name} {where}", fix="create it there, or register its model", table=table.name
        )
    return {name: layout for name, (_, layout) in sorted(found.items(), key=lambda item: item[1][0])}


def _number(
    catalog: psycopg.Connection, table: RegisteredTable, sites: Mapping[str, Site], known: list[RegisteredTable]
) -> int:
    for registered in known:
        if registered.name == table.name:
            return registered.id
    taken = {registered.id for registered in known}
    for site in sites.values():
        state = guard_state(site.connection, table)
        if state is not None and state[0] not in taken:
            return state[0]
    return tables.next_id(catalog)


def _check_equal(table: RegisteredTable, layouts: Mapping[str, Layout], sites: Mapping[str, Site]) -> None:
    for shard, layout in layouts.items():
        differences = table.layout.differences(layout)
        if differences and is_created(sites[shard].connection, table.schema_name, table.table_name):
            # Foreign keys come last: a run that broke off left a table of ours without them.
            differences = [
                line for line in differences if not (line.startswith("foreign ") and line.endswith("/ absent"))
            ]
        if differences:
            raise errors.UnfitTable(
                f"table {table.name} is different on shard {shard}: {'; '.join(differences[:5])}",
                fix="make the definitions equal, then run this again",
                table=table.name,
                shard=shard,
                differences=differences,
            )


def _check_fit(
    table: RegisteredTable, layouts: Mapping[str, Layout], sites: Mapping[str, Site], shard_map: ShardMap
) -> None:
    role = fitness.Role(
        table.kind,
        shard_map.keyspace(table.keyspace) if table.keyspace is not None else None,
        table.key_column,
        table.policy,
    )
    for shard, layout in layouts.items():
        fitness.check(sites[shard].connection, layout, role, shard)
    _check_equal(table, layouts, sites)


def _check_neighbours(
    planned: Sequence[RegisteredTable], known: Sequence[RegisteredTable], sites: Mapping[str, Site]
) -> None:
    others = {
        (table.schema_name, table.table_name): Neighbour(table.kind, table.keyspace, table.key_column, table.home_shard)
        for table in (*known, *planned)
    }
    for table in planned:
        fitness.check_references(table.layout, others[table.schema_name, table.table_name], others)
        if table.kind != "sharded":
            continue
        for site in sites.values():
            for schema, name, constraint in ddl.pointing_here(site.connection, table.layout):
                if (schema, name) not in others:
                    raise errors.UnfitTable(
                        f"foreign key {constraint} of {schema}.{name} on shard {site.shard.name} points to {table.name}, "
                        "whose rows will move away from it",
                        fix=f"register {schema}.{name} too, sharded by the same key, or drop the foreign key",
                        table=table.name,
                    )


def _freshened(catalog: psycopg.Connection, table: RegisteredTable, sites: Mapping[str, Site]) -> RegisteredTable:
    """The table with the layout that it has on a shard now: it may have been altered since it was registered."""
    for site in sites.values():
        layout = find_layout(site.connection, table.schema_name, table.table_name)
        if layout is not None and guard_state(site.connection, table) is not None:
            fresh = replace(table, layout=layout)
            if layout != table.layout:
                tables.record(catalog, fresh)
            return fresh
    return table
