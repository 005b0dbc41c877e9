"""guard: a guard gives way to windows, or follows them, in one short transaction under ACCESS EXCLUSIVE on the parent.

It is detached, the windows are attached in its place, and it comes back with other bounds. As a rule it is empty. Rows
that landed in it and belong to one of the windows are moved there meanwhile, by plain statements on tables that are not
attached: no trigger of the application fires, and whoever reads sees them before and after.

For half of the patience the locks are only taken where nobody has one, and never waited for: a reader that comes while
another one idles in its transaction would queue behind the wait. Only then are they waited for, 100 ms at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from psycopg import sql

from shardwright import errors, failpoints
from shardwright.catalog import ddl, snapshots
from shardwright.partition import barrier, codecs, leaves
from shardwright.partition.plan import Step
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Change a guard's bounds, and attach the windows that take its place.

    Args:
        site: the table and shard.
        step: the guard with its new bounds, and the windows; their tables have been made.

    Raises:
        UnfitTable: the guard or a window is not ours, or the guard has too many rows.
        LockTimeout: somebody reads or writes the table in a transaction that does not end.
    """
    guard = _ours(site, step.name)
    windows = [one for one in step.windows if not _ours(site, one.name).attached]
    if not windows and guard.attached and leaves.bounds_of(site, guard) == (step.lower, step.upper):
        return

    considerate_until = time.monotonic() + site.patience / 2

    def give_way() -> None:
        connection = site.connection
        lock_all(site, step.name, nowait=time.monotonic() < considerate_until)
        if guard.attached:
            connection.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(site.parent, site.leaf(step.name)))
        failpoints.reach("partition.guard_detached")
        move_rows(site, step.name, windows)
        for one in (*windows, step.partition):
            leaves.attach(site, one)
            site.mark(one, "attached")
        failpoints.reach("partition.guard_narrowed")

    site.patiently(give_way, also=[step.name], readers=True)
    failpoints.reach("partition.guard_settled")
    barrier.settle(site)


def lock_all(site: PartitionSite, leaf: str, *, nowait: bool) -> None:
    """All that a transaction locks that detaches a partition and attaches others, at once: the parent first, as everybody does.

    Args:
        site: the table and shard.
        leaf: the partition that is detached.
        nowait: give up at once where somebody has a lock.
    """
    others = site.connection.execute(
        "SELECT DISTINCT n.nspname, c.relname FROM pg_constraint f "
        "JOIN pg_class c ON c.oid IN (f.conrelid, f.confrelid) AND c.oid <> %(parent)s::regclass "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE f.contype = 'f' AND f.conparentid = 0 AND %(parent)s::regclass IN (f.conrelid, f.confrelid) "
        "AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') "
        "ORDER BY n.nspname, c.relname",
        {"parent": site.parent.as_string(site.connection)},
    ).fetchall()
    names = [site.parent, site.leaf(leaf), *(sql.Identifier(*other) for other in others)]
    site.connection.execute(
        sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE{}").format(
            sql.SQL(", ").join(sql.SQL("ONLY {}").format(name) for name in names), sql.SQL(" NOWAIT" if nowait else "")
        )
    )


def _ours(site: PartitionSite, name: str) -> leaves.Standing:
    standing = leaves.find(site, name)
    if standing is None or not standing.marked:
        raise errors.UnfitTable(
            f"{site.schema}.{name} on shard {site.shard.name} is no table that we made",
            fix="shardwright partition plan",
            table=site.table.name,
        )
    return standing


def move_rows(site: PartitionSite, source: str, windows: Sequence[Partition]) -> None:
    """Move the rows of windows out of a guard, or a DEFAULT partition, that is detached at this moment.

    Args:
        site: the table and shard.
        source: whose rows; locked.
        windows: tables that are not attached yet.

    Raises:
        UnfitTable: it has more rows than the site may move.
    """
    name = site.leaf(source)
    row = site.connection.execute(
        sql.SQL("SELECT count(*) FROM (SELECT FROM ONLY {} LIMIT {}) AS found").format(
            name, sql.Literal(site.most_moved + 1)
        )
    ).fetchone()
    assert row is not None
    if not row[0]:
        return
    if row[0] > site.most_moved:
        raise errors.UnfitTable(
            f"{source} of {site.table.name} on shard {site.shard.name} has more than {site.most_moved} rows: too many to move "
            "while the table is locked",
            fix=f"delete or correct them, they are in table {site.schema}.{source}; or, so that they are moved while everybody "
            f"waits: shardwright partition tick --table {site.table.name} --guard-rows N",
            table=site.table.name,
        )
    columns = sql.SQL(", ").join(map(sql.Identifier, site.table.layout.copied_columns))
    moved = 0
    for one in windows:
        inside = ddl.printed(
            codecs.check_sql(
                site.policy, site.key, site.column.as_string(site.connection), one.lower, one.upper, site.column_type
            )
        )
        moved += site.connection.execute(
            sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM ONLY {} WHERE {}").format(
                site.leaf(one.name), name, inside, columns=columns
            )
        ).rowcount
        site.connection.execute(sql.SQL("DELETE FROM ONLY {} WHERE {}").format(name, inside))
    if moved:
        snapshots.raise_barrier(site.connection, site.schema, site.table.table_name)
