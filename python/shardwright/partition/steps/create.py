"""create: a partition's table is made beside its parent, marked, and not attached yet. Nobody waits for it."""

from __future__ import annotations

from shardwright import errors, failpoints
from shardwright.partition import leaves
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Make the table where it is missing.

    Args:
        site: the table and shard.
        step: the partition.

    Raises:
        UnfitTable: something else has its name.
        LockTimeout: somebody holds the parent exclusively.
    """
    standing = leaves.find(site, step.name)
    if standing is not None:
        if not standing.marked:
            raise errors.UnfitTable(
                f"{site.schema}.{step.name} on shard {site.shard.name} is there already, and not ours",
                fix="rename it, then run this again",
                table=site.table.name,
            )
        return

    def make() -> None:
        leaves.make(site, step.partition)
        site.mark(step.partition, "made")
        failpoints.reach("partition.making")

    site.patiently(make, readers=True)
    failpoints.reach("partition.made")
