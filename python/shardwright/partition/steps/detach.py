"""detach: a window whose time is over leaves its parent. CONCURRENTLY: readers and writers go on.

The first half of DETACH CONCURRENTLY commits before it waits for transactions that may still see the window. Where that
wait is cut short the detach is pending, and is finalized in short tries; where those do not succeed either, the next run
goes on. From the first half on the window's rows are out of sight.

Its own foreign keys go with it: the rows that they point to may be those of a window that is to go next.
"""

from __future__ import annotations

import contextlib
import random
import time

import psycopg
from psycopg import sql

from shardwright import errors, failpoints
from shardwright.partition import leaves, marks
from shardwright.partition.plan import Step
from shardwright.partition.site import LOCK_TIMEOUT_MS, PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Detach the window unless that was done.

    Args:
        site: the table and shard.
        step: the window.

    Raises:
        UnfitTable: it does not carry our mark, or is a guard.
        StillReferenced: rows of another table refer to rows in it. Nothing was changed.
        LockTimeout: a transaction that sees the window does not end.
    """
    standing = leaves.find(site, step.name)
    if standing is None:
        return
    if not standing.marked or standing.role in ("before", "after"):
        raise errors.UnfitTable(
            f"{site.schema}.{step.name} on shard {site.shard.name} "
            + ("is a guard" if standing.marked else "does not carry our mark: it is never detached"),
            fix="shardwright partition plan",
            table=site.table.name,
        )
    if standing.attached:
        try:
            _detach(site, step.name, standing)
        except psycopg.errors.ForeignKeyViolation as error:
            raise still_referenced(site, step.name, error) from error
        failpoints.reach("partition.detached")
    elif standing.state in ("detached", "archived"):
        return
    leaves.drop_foreign_keys(site, step.name)
    marks.set_state(site.connection, site.schema, [step.name], "detached", detached_at=site.clock())
    failpoints.reach("partition.detach_marked")


def still_referenced(site: PartitionSite, name: str, error: psycopg.Error) -> errors.StillReferenced:
    """The error of whoever would lose rows that another table's rows refer to."""
    by = ".".join(part for part in (error.diag.schema_name, error.diag.table_name) if part) or "another table"
    constraint = error.diag.constraint_name
    return errors.StillReferenced(
        f"{name} of {site.table.name} cannot go from shard {site.shard.name}: rows of {by} refer to rows in it"
        + (f" (constraint {constraint})" if constraint else ""),
        fix=f"delete those rows of {by}, or partition it by time with the same windows and no longer `keep`",
        table=site.table.name,
        shard=site.shard.name,
        constraint=constraint,
        by=by,
    )


def _detach(site: PartitionSite, name: str, standing: leaves.Standing) -> None:
    if not standing.pending:
        if _has_default(site):
            site.patiently(lambda: _alter(site, name, ""), also=[name], readers=True)
            return
        if _concurrently(site, name):
            return
    site.patiently(lambda: _alter(site, name, "FINALIZE"), also=[name], readers=True)


def _concurrently(site: PartitionSite, name: str) -> bool:
    """DETACH CONCURRENTLY, tried until its first half is done; False where it is pending then."""
    connection = site.connection
    deadline = time.monotonic() + site.patience
    while True:
        try:
            # Cannot be in a transaction, so the setting is the session's.
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{LOCK_TIMEOUT_MS}ms",))
            _alter(site, name, "CONCURRENTLY")
            return True
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            now = leaves.find(site, name)
            if now is None or not now.attached:
                return True
            if now.pending:
                return False
            if time.monotonic() > deadline:
                return _named(site, name)
        finally:
            with contextlib.suppress(psycopg.OperationalError):
                connection.execute("SET lock_timeout = 0")
        site.on_progress()
        time.sleep(random.uniform(0.05, 0.25))


def _named(site: PartitionSite, name: str) -> bool:
    """One more try of the locks alone, so that the error names who is in the way."""
    parent = sql.SQL("LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE").format(site.parent)
    site.patiently(lambda: site.connection.execute(parent), also=[name], patience=0.001)
    raise errors.LockTimeout(
        f"no lock on {site.table.name} within {site.patience:g} s: others came first each time",
        fix="run this again",
        blockers=[],
    )


def _alter(site: PartitionSite, name: str, how: str) -> None:
    site.connection.execute(
        sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(site.parent, site.leaf(name), sql.SQL(how))
    )


def _has_default(site: PartitionSite) -> bool:
    """A DEFAULT partition: CONCURRENTLY is refused beside one."""
    row = site.connection.execute(
        "SELECT partdefid <> 0 FROM pg_partitioned_table WHERE partrelid = %s::regclass",
        (site.parent.as_string(site.connection),),
    ).fetchone()
    return row is not None and bool(row[0])
