"""Registering tables, and giving those with a policy their first windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import psycopg
from sqlalchemy import MetaData

from shardwright.catalog import adoption, models, roster
from shardwright.catalog.layout import Layout
from shardwright.catalog.models import Registration
from shardwright.catalog.sites import open_sites
from shardwright.catalog.tables import RegisteredTable, list_tables
from shardwright.partition import codecs
from shardwright.partition.outcomes import Report
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy


def judge(layout: Layout, policy: Policy) -> None:
    """Refuse a policy that does not go with its column.

    Args:
        layout: of the table.
        policy: what it declares.

    Raises:
        UnfitTable, BadDeclaration: as `codecs.resolve_key`.
    """
    column = next(one for one in layout.columns if one.name == policy.column)
    codecs.resolve_key(policy, column.type)


def register(
    catalog_dsn: str,
    catalog: psycopg.Connection,
    declared: MetaData | list[adoption.Wanted],
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[Registration, Report | None]:
    """Register tables, and make the first windows of those that have a policy.

    Args:
        catalog_dsn: where the catalog is.
        catalog: connection to it.
        declared: models, or tables that exist.
        on_progress: called between steps; it may raise to stop the work.

    Returns:
        What was registered, and what became of the windows; None where no table has any.

    Raises:
        BadDeclaration, UnfitTable, MisplacedRows, UnknownKeyspace, UnknownShard, OperationConflict, LockTimeout: as
            `adoption.adopt`; nothing was changed.
    """
    if isinstance(declared, MetaData):
        done = models.register(catalog, declared, judge=judge)
    else:
        done = Registration(tuple(adoption.adopt(catalog, declared, judge=judge)), (), ())
    return done, first_windows(catalog_dsn, catalog, done.tables, on_progress=on_progress)


def first_windows(
    catalog_dsn: str,
    catalog: psycopg.Connection,
    tables: Iterable[RegisteredTable],
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> Report | None:
    """Bring the windows of tables in step on every shard, such as one that has just joined.

    Args:
        catalog_dsn: where the catalog is.
        catalog: connection to it.
        tables: those without a policy are passed over.
        on_progress: called between steps; it may raise to stop the work.

    Returns:
        What became of them; None where no table has a policy.
    """
    mine = [table for table in tables if table.policy is not None]
    if not mine:
        return None
    report = tick(catalog_dsn, [(table.schema_name, table.table_name) for table in mine], on_progress=on_progress)
    if any(table.kind == "reference" for table in mine):
        resume_references(catalog)
    return report


def resume_references(catalog: psycopg.Connection) -> None:
    """Let the streams of reference tables go on, which stopped where a copy had no window for a row yet.

    Args:
        catalog: connection to the catalog.
    """
    with ExitStack() as stack:
        sites = open_sites(stack, roster.list_shards(catalog))
        adoption.connect_references(roster.cluster_id(catalog), sites, list_tables(catalog))
