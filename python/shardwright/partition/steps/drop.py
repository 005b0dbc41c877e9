"""drop: a detached window's table goes: only ours by name and relid, never with CASCADE, and not without its archive.

Where the policy asks for an archive, the table is counted and hashed once more under the lock that drops it: a row that
somebody wrote into the detached table meanwhile keeps it from being dropped.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from shardwright import errors, failpoints
from shardwright.catalog import archives, probe
from shardwright.partition import archived_columns, leaves, marks
from shardwright.partition.manifest import Manifest
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Drop the window's table unless that was done.

    Args:
        site: the table and shard.
        step: the window.

    Raises:
        UnfitTable: it does not carry our mark, is attached, or something else needs it.
        ArchiveUnusable: the policy asks for an archive, and there is none of these rows.
        LockTimeout: somebody uses the table, or one that its foreign keys point to.
    """
    standing = leaves.find(site, step.name)
    if standing is None:
        marks.forget(site.connection, site.schema, step.name)
        return
    _check(site, step, standing)
    leaves.drop_foreign_keys(site, step.name)
    failpoints.reach("partition.drop_prepared")

    unarchived: list[str] = []

    def drop() -> None:
        connection, leaf = site.connection, site.leaf(step.name)
        connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(leaf))
        locked = leaves.find(site, step.name)
        if locked is None or locked.relid != standing.relid:
            raise errors.LockTimeout(f"{step.name} was replaced meanwhile", fix="run this again")
        _check(site, step, locked)
        unarchived.extend(_unarchived(site, step, locked))
        if unarchived:
            # Not archived any more: the next run writes it anew.
            marks.set_state(connection, site.schema, [step.name], "detached")
            return
        connection.execute(sql.SQL("DROP TABLE {}").format(leaf))
        marks.forget(connection, site.schema, step.name)

    try:
        site.patiently(drop, also=[step.name], readers=True)
    except psycopg.errors.DependentObjectsStillExist as error:
        said = "; ".join((error.diag.message_detail or str(error)).splitlines())
        raise errors.UnfitTable(
            f"{site.schema}.{step.name} on shard {site.shard.name} is not dropped, something needs it: {said}",
            fix="drop or change that by hand, then run this again",
            table=site.table.name,
        ) from error
    if unarchived:
        raise errors.ArchiveUnusable(
            f"{site.schema}.{step.name} on shard {site.shard.name} {unarchived[0]}: it is not dropped",
            fix="shardwright partition tick, which archives it",
            shard=site.shard.name,
            table=site.table.name,
        )
    failpoints.reach("partition.dropped")


def _check(site: PartitionSite, step: Step, standing: leaves.Standing) -> None:
    if standing.marked and not standing.attached and standing.role not in ("before", "after"):
        return
    what = "is attached" if standing.attached else "is a guard" if standing.marked else "does not carry our mark"
    raise errors.UnfitTable(
        f"{site.schema}.{step.name} on shard {site.shard.name} {what}: it is not dropped",
        fix="shardwright partition plan",
        table=site.table.name,
    )


def _unarchived(site: PartitionSite, step: Step, standing: leaves.Standing) -> list[str]:
    """Why there is no verified archive of exactly these rows, where the policy asks for one; nothing where there is."""
    if site.policy.archive is None:
        return []
    if standing.state == "made" and not probe.has_rows(site.connection, site.schema, step.name):
        return []  # was never attached
    if standing.state == "replaced":
        return []  # its rows live on in the partitions that it was cut into
    row = archives.find(site.catalog, site.table.id, site.shard.name, step.name)
    if row is None or (row.lower, row.upper) != (step.lower, step.upper):
        return ["has no verified archive"]
    qualified = site.leaf(step.name).as_string(site.connection)
    columns = archived_columns.columns_of(site.connection, qualified)
    found = archived_columns.survey(site.connection, qualified, columns)
    made = Manifest.from_json(row.manifest)
    fits = made.holds_what(made.whose, columns, found.rows, found.checksum)
    return [] if fits else ["was changed since it was archived"]
