"""archive: a detached window is written to Parquet, read back and found right. A failure stops the drop that would follow."""

from __future__ import annotations

from shardwright import engines, errors, failpoints
from shardwright.catalog import archives, roster
from shardwright.partition import archive, leaves, marks, stores
from shardwright.partition.manifest import Whose
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Archive the window unless that was done.

    Args:
        site: the table and shard.
        step: the window.

    Raises:
        UnfitTable: it does not carry our mark, or is attached.
        ArchiveUnusable, ArchiveDiffers, MissingExtra: as `archive.archive`.
    """
    standing = leaves.find(site, step.name)
    place = site.policy.archive
    if standing is None or place is None:
        return
    if not standing.marked or standing.attached:
        raise errors.UnfitTable(
            f"{site.schema}.{step.name} on shard {site.shard.name} "
            + ("is attached" if standing.attached else "does not carry our mark"),
            fix="shardwright partition plan",
            table=site.table.name,
        )
    whose = Whose(
        cluster=roster.cluster_id(site.catalog),
        shard=site.shard.name,
        schema=site.schema,
        table=site.table.table_name,
        partition=step.name,
        key=site.key,
        lower=step.lower,
        upper=step.upper,
        role=step.role,
    )
    # A connection of its own: the site's holds the lock, and a copy that breaks off ends the connection.
    with engines.connect_shard(site.shard, "shardwright archive") as connection:
        done = archive.archive(connection, whose, stores.open_store(place), site.on_progress)
    archives.record(
        site.catalog,
        site.table.id,
        site.shard.name,
        step.name,
        lower=step.lower,
        upper=step.upper,
        rows=done.manifest.rows,
        place=place,
        manifest=done.manifest.to_json(),
    )
    failpoints.reach("partition.archive_recorded")
    marks.set_state(site.connection, site.schema, [step.name], "archived")
