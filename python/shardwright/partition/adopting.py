"""Taking a partitioned table over on one shard: marks on what is there, guards and windows in the place of a DEFAULT partition.

Each step can be run again, and finds what is done already. What was planned is looked at once more under the lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from shardwright import errors, failpoints
from shardwright.catalog import ddl
from shardwright.partition import barrier, codecs, handmade, leaves, marks
from shardwright.partition.adopt_plan import Default, ShardPlan
from shardwright.partition.plan import Step
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.partition.steps import create, detach, guard


@dataclass
class ShardReport:
    """What became of one shard."""

    shard: str
    taken: int = 0
    #: The DEFAULT partition that went.
    default: str | None = None
    moved_rows: int = 0
    #: Milliseconds for which the table was locked for that.
    lock_ms: float | None = None


def mark(site: PartitionSite, planned: ShardPlan) -> int:
    """Mark the partitions of one shard, all at once, if they still are what was planned.

    Nobody who reads or writes waits; who attaches or detaches does.

    Args:
        site: the table and shard.
        planned: what is done on this shard.

    Returns:
        How many were marked.

    Raises:
        PlanStale: partitions came, went or got other bounds since.
        LockTimeout: somebody changes the table all the time.
    """
    if not planned.take:
        return 0

    def write() -> None:
        site.connection.execute(sql.SQL("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE").format(site.parent))
        _look_again(site, planned)
        with site.connection.pipeline():
            for one in planned.take:
                site.mark(one.partition, "attached")
        failpoints.reach("partition.adopt_marking")

    site.patiently(write)
    failpoints.reach("partition.adopt_marked")
    return len(planned.take)


def _look_again(site: PartitionSite, planned: ShardPlan) -> None:
    # Those with our mark may have been made by a tick since.
    rows = site.connection.execute(
        "SELECT c.oid::int8, c.relname::text, CASE WHEN i.inhdetachpending THEN '' "
        "ELSE coalesce(pg_get_expr(c.relpartbound, 0), '') END "
        "FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass AND NOT EXISTS ("
        "SELECT FROM shardwright.partitions p WHERE p.schema_name = %s AND p.name = c.relname AND p.relid = c.oid)",
        (site.parent.as_string(site.connection), site.schema),
    ).fetchall()
    now, then = set(rows), set(planned.seen)
    if now != then:
        changed = sorted({name for _, name, _ in now ^ then})
        raise errors.PlanStale(
            f"partitions of {site.table.name} on shard {site.shard.name} changed since they were looked at: "
            + ", ".join(changed[:5]),
            fix=f"shardwright partition adopt {site.table.name}",
            changes=changed,
        )


def keep_version(site: PartitionSite, planned: ShardPlan) -> None:
    """Give partitions by UUIDv7 the CHECK that refuses UUIDs of other versions, which would lie in them by accident.

    Args:
        site: the table and shard.
        planned: what is done on this shard.

    Raises:
        UnfitTable: a partition has such rows.
        LockTimeout: somebody holds a partition.
    """
    text = codecs.lasting_check_sql(site.key, site.column.as_string(site.connection))
    if text is None:
        return
    for one in planned.take:
        try:
            _hold_to(site, one.name, leaves.LASTING_CHECK, text)
        except psycopg.errors.CheckViolation as error:
            raise errors.UnfitTable(
                f"{one.name} of {site.table.name} on shard {site.shard.name} has UUIDs that are not of version 7",
                fix="delete those rows or give them others, then run this again",
                table=site.table.name,
            ) from error


def _hold_to(site: PartitionSite, name: str, constraint: str, text: str) -> None:
    """Give a partition a validated CHECK where it has none: a moment under ACCESS EXCLUSIVE, then a scan beside everybody."""
    leaf, quoted = site.leaf(name), sql.Identifier(constraint)
    state = site.connection.execute(
        "SELECT convalidated FROM pg_constraint WHERE conrelid = %s::regclass AND conname = %s",
        (leaf.as_string(site.connection), constraint),
    ).fetchone()
    if state is None:
        added = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK {} NOT VALID").format(leaf, quoted, ddl.printed(text))
        site.patiently(lambda: site.connection.execute(added), also=[name], readers=True)
    if state is None or not state[0]:
        validated = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(leaf, quoted)
        site.patiently(lambda: site.connection.execute(validated), also=[name])


def _bound_default(site: PartitionSite, default: Default) -> None:
    """Hold a DEFAULT partition that is to stay to the bounds that it gets: a scan while everybody reads and writes.

    Args:
        site: the table and shard.
        default: it, with the partition that it becomes.

    Raises:
        UnfitTable: it has rows of another time by now. It is as before.
        LockTimeout: somebody holds it.
    """
    assert default.turned is not None
    column, one = site.column.as_string(site.connection), default.turned
    texts = {
        leaves.BOUNDS_CHECK: codecs.check_sql(site.policy, site.key, column, one.lower, one.upper, site.column_type),
        leaves.LASTING_CHECK: codecs.lasting_check_sql(site.key, column),
    }
    try:
        for constraint, text in texts.items():
            if text is not None:
                _hold_to(site, default.name, constraint, text)
    except psycopg.errors.CheckViolation as error:
        off = sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
            site.leaf(default.name), sql.Identifier(leaves.BOUNDS_CHECK)
        )
        site.patiently(lambda: site.connection.execute(off), also=[default.name], readers=True)
        raise errors.UnfitTable(
            f"{default.name} of {site.table.name} on shard {site.shard.name} has rows outside of the window that it was to "
            "become",
            fix=f"shardwright table forget {site.table.name}, then shardwright partition adopt, which decides anew",
            table=site.table.name,
        ) from error
    failpoints.reach("partition.adopt_bounded")


def replace_default(site: PartitionSite, default: Default, report: ShardReport) -> None:
    """Exchange a DEFAULT partition for guards and the windows that its rows need, in one transaction under ACCESS EXCLUSIVE.

    The tables are made beside it before. Under the lock it is detached, its rows are moved, the tables are attached, and
    it is dropped: it has no row any more. One that stays was held to its bounds before, and is attached by them.

    Args:
        site: the table and shard.
        default: what goes, and what takes its place.
        report: told what was done.

    Raises:
        UnfitTable: it has too many rows by now, or rows that nothing takes; or something needs it. Nothing was changed.
        StillReferenced: rows of another table refer to rows in it. Nothing was changed.
        LockTimeout: somebody reads or writes the table in a transaction that does not end.
    """
    if default.turned is not None:
        _bound_default(site, default)
    for one in default.instead:
        create.run(site, Step("create", one.name, one.lower, one.upper, one.role))
    failpoints.reach("partition.adopt_made")
    considerate_until = time.monotonic() + site.patience / 2
    #: When the lock was had, and the rows that were moved, of the last try.
    seen: list[float] = []

    def exchange() -> None:
        connection, leaf = site.connection, site.leaf(default.name)
        guard.lock_all(site, default.name, nowait=time.monotonic() < considerate_until)
        seen[:] = [time.monotonic(), float(handmade.count(connection, site.schema, default.name))]
        standing = leaves.find(site, default.name)
        if standing is None or standing.relid != default.relid or standing.bounds != "DEFAULT":
            raise errors.PlanStale(
                f"{default.name} of {site.table.name} on shard {site.shard.name} is not its DEFAULT partition any more",
                fix=f"shardwright partition adopt {site.table.name}",
                changes=[default.name],
            )
        connection.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(site.parent, leaf))
        if default.turned is not None:
            _attach(site, (default.turned, *default.instead))
        else:
            _move_out(site, default, int(seen[1]))
            _attach(site, default.instead)
            connection.execute(sql.SQL("DROP TABLE {}").format(leaf))
        failpoints.reach("partition.adopt_exchanging")

    try:
        site.patiently(exchange, also=[default.name], readers=True)
    except errors.UnfitTable:
        _take_back(site, default.instead)
        raise
    except psycopg.errors.ForeignKeyViolation as error:
        _take_back(site, default.instead)
        raise detach.still_referenced(site, default.name, error) from error
    except psycopg.errors.DependentObjectsStillExist as error:
        _take_back(site, default.instead)
        said = "; ".join((error.diag.message_detail or str(error)).splitlines())
        raise errors.UnfitTable(
            f"{default.name} of {site.table.name} on shard {site.shard.name} cannot go, something needs it: {said}",
            fix="drop or change that by hand, then run this again",
            table=site.table.name,
        ) from error
    report.default, report.moved_rows = default.name, int(seen[1]) if default.turned is None else 0
    report.lock_ms = round((time.monotonic() - seen[0]) * 1000, 3)
    failpoints.reach("partition.adopt_exchanged")
    barrier.settle(site)


def _move_out(site: PartitionSite, default: Default, rows: int) -> None:
    name = f"{default.name} of {site.table.name} on shard {site.shard.name}"
    if rows > site.most_moved:
        raise errors.UnfitTable(
            f"{name} has more than {site.most_moved} rows by now: too many to move while the table is locked",
            fix=f"shardwright table forget {site.table.name}, then shardwright partition adopt, which keeps it with its rows",
            table=site.table.name,
        )
    guard.move_rows(site, default.name, default.instead)
    if handmade.count(site.connection, site.schema, default.name):
        raise errors.UnfitTable(
            f"{name} has rows that no window takes",
            fix=f"shardwright partition adopt {site.table.name}, again, looks where they are",
            table=site.table.name,
        )


def _take_back(site: PartitionSite, parts: Sequence[Partition]) -> None:
    """Drop the tables that were made for nothing: ours, never attached, and so without a row."""
    for one in parts:
        standing = leaves.find(site, one.name)
        if standing is not None and standing.marked and standing.state == "made" and not standing.attached:
            site.connection.execute(sql.SQL("DROP TABLE {}").format(site.leaf(one.name)))
            marks.forget(site.connection, site.schema, one.name)


def _attach(site: PartitionSite, parts: Sequence[Partition]) -> None:
    for one in parts:
        leaves.attach(site, one)
        site.mark(one, "attached")
