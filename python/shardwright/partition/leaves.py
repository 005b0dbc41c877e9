"""One partition as a shard has it now, and how one is made: what steps share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from psycopg import sql

from shardwright.catalog import ddl, guards, locking
from shardwright.partition import codecs
from shardwright.partition.shapes import Partition
from shardwright.partition.site import LOCK_TIMEOUT_MS, PartitionSite

#: The CHECK that lets PostgreSQL attach a table without reading it; it goes when the bounds say the same.
BOUNDS_CHECK = "shardwright_bounds"

#: The CHECK that a leaf keeps (`codecs.lasting_check_sql`).
LASTING_CHECK = "shardwright_version"


@dataclass(frozen=True)
class Standing:
    """A table of the parent's schema, and what it is to the parent."""

    relid: int
    #: Whether it is a partition of the parent, a pending detach included.
    attached: bool
    pending: bool
    #: Its mark has this relid.
    marked: bool
    #: Role and state of that mark; empty without one.
    role: str
    state: str
    #: As pg_get_expr prints its bounds; None where it is no partition.
    bounds: str | None


def find(site: PartitionSite, name: str) -> Standing | None:
    """Look at one table by name.

    Args:
        site: the table and shard.
        name: the partition's.

    Returns:
        What it is, or None where there is no such relation.
    """
    row = site.connection.execute(
        "SELECT c.oid::int8, i.inhrelid IS NOT NULL, coalesce(i.inhdetachpending, false), p.relid IS NOT NULL, "
        "coalesce(p.role, ''), coalesce(p.state, ''), pg_get_expr(c.relpartbound, 0) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "LEFT JOIN pg_class t ON t.relnamespace = n.oid AND t.relname = %(parent)s "
        "LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = t.oid "
        "LEFT JOIN shardwright.partitions p ON p.schema_name = n.nspname AND p.name = c.relname AND p.relid = c.oid "
        "WHERE n.nspname = %(schema)s AND c.relname = %(name)s",
        {"schema": site.schema, "parent": site.table.table_name, "name": name},
    ).fetchone()
    return Standing(*row) if row is not None else None


def bounds_of(site: PartitionSite, standing: Standing) -> tuple[int | None, int | None]:
    """The bounds that a partition has, on the policy's axis.

    Args:
        site: the table and shard.
        standing: one that is attached.

    Raises:
        UnfitTable: the axis cannot express them.
    """
    return codecs.parse_bounds(site.policy, site.key, standing.bounds or "")


def make(site: PartitionSite, one: Partition) -> None:
    """Make the table of a partition beside the parent, in the caller's transaction: like it in all that it can be.

    Takes ACCESS SHARE on the parent. Identity stays with the parent, which gives the values.

    Args:
        site: the table and shard.
        one: the partition.
    """
    connection, leaf = site.connection, site.leaf(one.name)
    row = connection.execute(
        "SELECT a.amname, s.spcname, pg_get_userbyid(c.relowner), c.relowner = "
        "(SELECT oid FROM pg_roles WHERE rolname = current_user), c.relreplident "
        "FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace "
        "WHERE c.oid = %s::regclass",
        (site.parent.as_string(connection),),
    ).fetchone()
    assert row is not None
    method, tablespace, owner, is_ours, identity = row
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY){}{}").format(
            leaf,
            site.parent,
            sql.SQL(" USING {}").format(sql.Identifier(method)) if method else sql.SQL(""),
            sql.SQL(" TABLESPACE {}").format(sql.Identifier(tablespace)) if tablespace else sql.SQL(""),
        )
    )
    add_checks(site, one)
    if identity != "d":
        _replica_identity(site, one.name, identity)
    if not is_ours:
        connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(leaf, sql.Identifier(owner)))
    guards.cover_one(connection, site.schema, site.table.table_name, one.name)


def add_checks(site: PartitionSite, one: Partition) -> None:
    """Give a table that is not attached the CHECK of its bounds, and the one that lasts.

    Args:
        site: the table and shard.
        one: the partition.
    """
    column = site.column.as_string(site.connection)
    texts = {
        BOUNDS_CHECK: codecs.check_sql(site.policy, site.key, column, one.lower, one.upper, site.column_type),
        LASTING_CHECK: codecs.lasting_check_sql(site.key, column),
    }
    for name, text in texts.items():
        if text is not None:
            site.connection.execute(
                sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK {}").format(
                    site.leaf(one.name), sql.Identifier(name), ddl.printed(text)
                )
            )


def attach(site: PartitionSite, one: Partition) -> None:
    """ATTACH a table, and drop the CHECK of its bounds, in the caller's transaction.

    Args:
        site: the table and shard.
        one: the partition.
    """
    leaf = site.leaf(one.name)
    site.connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(site.parent, leaf, site.bounds(one.lower, one.upper))
    )
    site.connection.execute(
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(leaf, sql.Identifier(BOUNDS_CHECK))
    )


def drop_foreign_keys(site: PartitionSite, name: str) -> None:
    """Take the foreign keys off a table that is no partition any more.

    While it has them, rows of the tables that they point to cannot go, and its own drop would lock those tables for
    longer. One at a time, each in its own short transaction: the table that is pointed to is locked too.

    Args:
        site: the table and shard.
        name: of the table.

    Raises:
        LockTimeout: somebody uses it, or a table that a key points to.
    """
    keys = site.connection.execute(
        "SELECT o.conname, tn.nspname, t.relname FROM pg_constraint o JOIN pg_class t ON t.oid = o.confrelid "
        "JOIN pg_namespace tn ON tn.oid = t.relnamespace "
        "WHERE o.conrelid = %s::regclass AND o.contype = 'f' AND o.conparentid = 0 ORDER BY 1",
        (site.leaf(name).as_string(site.connection),),
    ).fetchall()
    for constraint, schema, table in keys:
        statement = sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
            site.leaf(name), sql.Identifier(constraint)
        )
        locking.patiently(
            site.connection,
            [(site.schema, name), (schema, table)],
            partial(site.connection.execute, statement),
            lock_timeout_ms=LOCK_TIMEOUT_MS,
            patience=site.patience,
            readers=True,
        )


def _replica_identity(site: PartitionSite, name: str, identity: str) -> None:
    """The parent's replica identity, which partitions do not inherit."""
    connection, leaf = site.connection, site.leaf(name)
    if identity in ("f", "n"):
        what = sql.SQL("FULL" if identity == "f" else "NOTHING")
        connection.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(leaf, what))
        return
    row = connection.execute(
        "SELECT mine.relname FROM pg_index i JOIN pg_index j ON j.indrelid = %s::regclass AND j.indisunique "
        "AND j.indnkeyatts = i.indnkeyatts AND j.indpred IS NULL JOIN pg_class mine ON mine.oid = j.indexrelid "
        "WHERE i.indrelid = %s::regclass AND i.indisreplident AND "
        "(SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = i.indexrelid) = "
        "(SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = j.indexrelid) "
        "ORDER BY mine.relname LIMIT 1",
        (leaf.as_string(connection), site.parent.as_string(connection)),
    ).fetchone()
    if row is not None:
        connection.execute(
            sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(leaf, sql.Identifier(row[0]))
        )
