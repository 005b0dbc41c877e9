"""Once every shard is at the same revisions: the catalog is told what they declared, and what tables look like now.

May be run again after a crash at any point: what a shard still says of a table is told again, and is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from shardwright import errors, failpoints
from shardwright.catalog import adoption, fitness, maps, roster, sites, tables
from shardwright.catalog.layout import Layout, find_layout
from shardwright.catalog.sites import Site
from shardwright.catalog.tables import RegisteredTable
from shardwright.migrate import declared
from shardwright.migrate.declared import Name
from shardwright.partition import registering
from shardwright.routing.policy import Policy


@dataclass(frozen=True)
class Settled:
    """What the catalog was told."""

    #: Tables that were registered for the first time.
    registered: tuple[str, ...]
    #: Tables with another policy than before.
    policies: tuple[str, ...]
    #: Tables whose layout in the catalog was brought up to date.
    layouts: tuple[str, ...]
    #: How registered tables differ between shards, one line each.
    drift: tuple[str, ...]


def settle(catalog: psycopg.Connection) -> Settled:
    """Tell the catalog. The caller holds `roster.changing`, and every shard is at the same revisions.

    Args:
        catalog: connection to the catalog.

    Raises:
        LayoutsDiffer: shards declared different things.
        UnfitTable, BadDeclaration, MisplacedRows, LockTimeout: a table cannot be registered as declared.
    """
    with ExitStack() as stack:
        opened = sites.open_sites(stack, roster.list_shards(catalog))
        said = {name: declared.read(site.connection) for name, site in opened.items()}
        known = {(table.schema_name, table.table_name): table for table in tables.list_tables(catalog)}
        wanted: list[adoption.Wanted] = []
        policies: list[tuple[Name, Policy]] = []
        for place, info in _agreed(said, known).items():
            if place not in known:
                wanted.append(_wanted(place, info, opened))
            elif "shardwright.partitioned" in info:
                policies.append((place, Policy.from_json(info["shardwright.partitioned"])))
        adopted = adoption.adopt(catalog, wanted, judge=registering.judge) if wanted else []
        changed = _set_policies(catalog, policies, known, opened)
        failpoints.reach("migrate.catalog_written")
        for name, site in opened.items():
            declared.forget(site.connection, said[name])
        refreshed, drift = refresh(catalog, opened)
        registered = tables.list_tables(catalog)
        if any(table.kind == "reference" for table in registered):
            # A stream stops at a row with a column that a copy did not have yet.
            adoption.connect_references(roster.cluster_id(catalog), opened, registered)
    return Settled(tuple(table.name for table in adopted), tuple(changed), tuple(refreshed), tuple(drift))


def _agreed(
    said: Mapping[str, Mapping[Name, dict[str, Any]]], known: Mapping[Name, RegisteredTable]
) -> dict[Name, dict[str, Any]]:
    """What all shards that have a table say of it. Where some say nothing, the catalog was told and a crash came between."""
    found: dict[Name, dict[str, Any]] = {}
    for place in sorted({place for one in said.values() for place in one}):
        table = known.get(place)
        here = [one for one in said if table is None or table.is_on(one)]
        saying = {name: said[name][place] for name in here if place in said[name]}
        if len(saying) < len(here):
            continue
        first = next(iter(saying.values()))
        if any(info != first for info in saying.values()):
            raise errors.LayoutsDiffer(
                f"migrations declared different things of {'.'.join(place)} on {', '.join(saying)}",
                fix="compare shardwright.declared on these shards, make the rows equal, then run this again",
                durable_change=True,
                table=".".join(place),
            )
        found[place] = first
    return found


def _wanted(place: Name, info: Mapping[str, Any], opened: Mapping[str, Site]) -> adoption.Wanted:
    for site in opened.values():
        layout = find_layout(site.connection, *place)
        if layout is not None:
            columns = [column.name for column in layout.columns]
            return adoption.Wanted(*place, declared.declaration(*place, info, columns))
    raise errors.UnknownTable(
        f"migrations declared a policy of {'.'.join(place)}, and no shard has that table",
        fix="DELETE FROM shardwright.declared on the shards, or create the table",
        table=".".join(place),
    )


def _set_policies(
    catalog: psycopg.Connection,
    policies: list[tuple[Name, Policy]],
    known: Mapping[Name, RegisteredTable],
    opened: Mapping[str, Site],
) -> list[str]:
    changed = []
    for place, policy in policies:
        table = replace(known[place], policy=policy)
        layouts = _layouts(table, opened)
        _check_fit(catalog, table, layouts, opened)
        for layout in layouts.values():
            registering.judge(layout, policy)
        if policy != known[place].policy:
            tables.record(catalog, replace(table, layout=next(iter(layouts.values()), table.layout)))
            changed.append(table.name)
    return changed


def refresh(catalog: psycopg.Connection, opened: Mapping[str, Site]) -> tuple[list[str], list[str]]:
    """Bring the catalog's layouts up to date, as far as all shards agree.

    Args:
        catalog: connection to the catalog.
        opened: every shard, by name.

    Returns:
        The tables that were brought up to date, and how others differ.

    Raises:
        UnfitTable: a table can no longer be what it is registered as.
    """
    refreshed, drift = [], []
    for table in tables.list_tables(catalog):
        layouts = _layouts(table, opened)
        differing = _drift(table, layouts, opened)
        drift += differing
        if differing or not layouts:
            continue
        layout = next(iter(layouts.values()))
        if layout != table.layout:
            fresh = replace(table, layout=layout)
            _check_fit(catalog, fresh, layouts, opened)
            tables.record(catalog, fresh)
            refreshed.append(table.name)
    return refreshed, drift


def drift(catalog: psycopg.Connection, opened: Mapping[str, Site]) -> list[str]:
    """How registered tables differ between shards and from the catalog, one line each.

    Args:
        catalog: connection to the catalog.
        opened: shards, by name.
    """
    found = []
    for table in tables.list_tables(catalog):
        layouts = _layouts(table, opened)
        differing = _drift(table, layouts, opened)
        if not differing and layouts:
            layout = next(iter(layouts.values()))
            differing = [
                f"{table.name}: the catalog and the shards differ in {line}"
                for line in table.layout.differences(layout)
            ]
        found += differing
    return found


def check_fit(catalog: psycopg.Connection, shard: roster.Shard) -> None:
    """Check on one shard that every registered table can still be what it is registered as.

    Args:
        catalog: connection to the catalog.
        shard: the shard.

    Raises:
        UnfitTable: one cannot.
    """
    with ExitStack() as stack:
        opened = sites.open_sites(stack, [shard])
        for table in tables.list_tables(catalog):
            layouts = _layouts(table, opened)
            if layouts:
                _check_fit(catalog, replace(table, layout=layouts[shard.name]), layouts, opened)


def _layouts(table: RegisteredTable, opened: Mapping[str, Site]) -> dict[str, Layout]:
    found = {}
    for name, site in opened.items():
        layout = find_layout(site.connection, table.schema_name, table.table_name) if table.is_on(name) else None
        if layout is not None:
            found[name] = layout
    return found


def _drift(table: RegisteredTable, layouts: Mapping[str, Layout], opened: Mapping[str, Site]) -> list[str]:
    lines = [
        f"{table.name}: there is no such table on {name}"
        for name in opened
        if table.is_on(name) and name not in layouts
    ]
    if layouts:
        (first, one), *others = layouts.items()
        for name, other in others:
            lines += [f"{table.name}: {first} and {name} differ in {line}" for line in one.differences(other)]
    return lines


def _check_fit(
    catalog: psycopg.Connection, table: RegisteredTable, layouts: Mapping[str, Layout], opened: Mapping[str, Site]
) -> None:
    shard_map = maps.load_map(catalog)
    keyspace = shard_map.keyspace(table.keyspace) if table.keyspace is not None else None
    role = fitness.Role(table.kind, keyspace, table.key_column, table.policy)
    for name, layout in layouts.items():
        fitness.check(opened[name].connection, layout, role, name)
