"""One shard while tables are put there: made, guarded, their rows checked, and all of it taken back after a refusal."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog import created, ddl, guards, locking, probe, references
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import owned_sql, point_sql, quote_identifier
from shardwright.routing.shard_map import ShardMap

_log = logging.getLogger(__name__)

#: How many misplaced rows are counted before it is enough.
_ENOUGH = 1000


@dataclass
class Site:
    """One shard while tables are put there: its connection, and what must be undone after a refusal."""

    shard: Shard
    connection: psycopg.Connection
    made: list[RegisteredTable] = field(default_factory=list)
    guarded: list[RegisteredTable] = field(default_factory=list)


def open_sites(stack: ExitStack, shards: Iterable[Shard]) -> dict[str, Site]:
    """Connect to shards.

    Args:
        stack: closes the connections.
        shards: whom to call.

    Returns:
        A site a shard, by name.
    """
    return {
        shard.name: Site(shard, stack.enter_context(engines.connect_shard(shard, "shardwright tables")))
        for shard in shards
    }


def put(site: Site, table: RegisteredTable, shard_map: ShardMap) -> None:
    """Make one table on one shard where it is missing, and its guards.

    Args:
        site: the shard.
        table: the table, with its number and layout.
        shard_map: says what the shard owns.
    """
    connection, layout = site.connection, table.layout
    with connection.transaction():
        created.make_schema(connection, layout.schema)
        made = ddl.create_table(connection, layout)
        if made:
            ddl.build_keys(connection, layout)
            created.note(connection, "table", layout.schema, layout.table)
    if made:
        site.made.append(table)
    if not table.is_guarded_on(site.shard.name):
        return
    guarded = table.guarded(shard_map)
    owned = owned_here(table, shard_map, site.shard.name)
    state = guard_state(connection, table)
    name = (table.schema_name, table.table_name)
    if state == (table.id, owned.literal() if table.kind == "sharded" else None):
        # partitions that somebody attached by hand
        locking.patiently(connection, [name], partial(guards.cover, connection, [table.id]))
        return

    def guard() -> None:
        # Of an attempt that crashed, under a number that the catalog never got to know.
        connection.execute(
            "DELETE FROM shardwright.guards WHERE schema_name = %s AND table_name = %s AND table_id <> %s",
            (table.schema_name, table.table_name, table.id),
        )
        # On a reference table's copy TRUNCATE is a write like any other.
        guards.install(connection, guarded, owned, refuse_truncate=table.kind == "reference")

    locking.patiently(connection, [name], guard)
    if state is None:
        site.guarded.append(table)


def owned_here(table: RegisteredTable, shard_map: ShardMap, shard: str) -> Multirange:
    """The points of a table's keyspace that a shard owns; nothing for a table that is not sharded.

    Args:
        table: whose keyspace.
        shard_map: says who owns what.
        shard: the shard's name.
    """
    return shard_map.owned(table.keyspace, shard) if table.keyspace is not None else Multirange()


def guard_state(connection: psycopg.Connection, table: RegisteredTable) -> tuple[int, str | None] | None:
    """Number and owned points that the table's guards carry, or None where a guard is missing.

    Args:
        connection: to the shard.
        table: whose guards.
    """
    row = connection.execute(
        "SELECT g.table_id, g.owned::text FROM shardwright.guards g "
        "JOIN pg_namespace n ON n.nspname = g.schema_name JOIN pg_class c ON c.relnamespace = n.oid "
        "AND c.relname = g.table_name JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname LIKE '~shardwright\\_%%' "
        "AND t.tgenabled = 'O' WHERE g.schema_name = %s AND g.table_name = %s GROUP BY g.table_id HAVING count(*) = 3",
        (table.schema_name, table.table_name),
    ).fetchone()
    return (int(row[0]), row[1]) if row else None


def check_rows(site: Site, table: RegisteredTable, shard_map: ShardMap, cluster: str) -> None:
    """Check that no row is where it does not belong; the guards are in place, so the answer stays true.

    Args:
        site: the shard.
        table: whose rows.
        shard_map: says what the shard owns.
        cluster: the cluster's id.

    Raises:
        MisplacedRows: some are.
    """
    shard = site.shard.name
    name = sql.Identifier(table.schema_name, table.table_name)
    if table.kind == "reference" and shard != table.home_shard:
        carried = site.connection.execute(
            "SELECT FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid "
            "JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE s.subname = %s AND n.nspname = %s AND c.relname = %s",
            (references.subscription_name(cluster, shard), table.schema_name, table.table_name),
        ).fetchone()
        if carried is None and probe.has_rows(site.connection, table.schema_name, table.table_name):
            raise errors.MisplacedRows(
                f"reference table {table.name} has rows on shard {shard}, and its home is {table.home_shard}: "
                "the first copy would meet them",
                fix=f"TRUNCATE it on {shard}, or make that shard its home",
                table=table.name,
                shard=shard,
            )
    if table.keyspace is None or table.key_column is None:
        return
    keyspace = shard_map.keyspace(table.keyspace)
    owned = shard_map.owned(table.keyspace, shard)
    if not keyspace.points() - owned:
        return
    key = quote_identifier(table.key_column)
    found = site.connection.execute(
        sql.SQL("SELECT {}::text, {} FROM {} WHERE NOT {} LIMIT {}").format(
            sql.Identifier(table.key_column),
            ddl.printed(point_sql(keyspace, key)),
            name,
            ddl.printed(owned_sql(keyspace, owned, key)),
            _ENOUGH,
        )
    ).fetchall()
    if found:
        many = f"{_ENOUGH} or more" if len(found) == _ENOUGH else str(len(found))
        some = ", ".join(f"{value} (point {point})" for value, point in found[:3])
        raise errors.MisplacedRows(
            f"table {table.name} has {many} rows on shard {shard} whose points it does not own, such as {some}",
            fix="move those rows to their owners or delete them, or give the shard those points when the keyspace is made",
            table=table.name,
            shard=shard,
            rows=len(found),
        )


def undo(site: Site) -> None:
    """Take back what this run made. What cannot be taken back now is harmless, and the next run takes it up.

    Args:
        site: the shard, and what was made there.
    """
    try:
        for table in site.guarded:
            name = (table.schema_name, table.table_name)
            locking.patiently(site.connection, [name], partial(remove_guards, site.connection, table), readers=True)
        for table in reversed(site.made):
            # What a reference table got, it got from its home.
            filled = table.kind == "reference"
            created.drop_table(site.connection, table.schema_name, table.table_name, even_with_rows=filled)
    except (errors.ShardwrightError, psycopg.Error) as error:
        _log.warning("shard %s keeps what was made there: %s", site.shard.name, error)


def remove_guards(connection: psycopg.Connection, table: RegisteredTable) -> None:
    """Take a table's guards off it, in a transaction.

    Args:
        connection: to the shard.
        table: whose guards.
    """
    guards.remove(connection, replace(table, keyspace=None).guarded(_NO_MAP))


_NO_MAP = ShardMap(0, (), ())


def clear(connection: psycopg.Connection, known: Iterable[RegisteredTable], *, drop_tables: bool) -> list[str]:
    """Take everything of ours off a shard: guards, the schema, and perhaps tables that we made and that have no rows.

    Subscriptions and slots are gone by then. May be run again after it broke off.

    Args:
        connection: to the shard.
        known: the registered tables.
        drop_tables: False where the shard's database goes on as the application's only one.

    Returns:
        The tables that were dropped.

    Raises:
        LockTimeout: an application's transactions did not let us have a lock.
    """
    present = connection.execute("SELECT to_regnamespace('shardwright') IS NOT NULL").fetchone()
    if present is None or not present[0]:
        return []
    for table in known:
        name = (table.schema_name, table.table_name)
        if probe.has_table(connection, *name):
            locking.patiently(connection, [name], partial(remove_guards, connection, table), readers=True)
    dropped = created.drop_all(connection) if drop_tables else []
    connection.execute("DROP SCHEMA shardwright CASCADE")
    return dropped
