"""attach: a table that was made becomes a partition. SHARE UPDATE EXCLUSIVE on the parent: readers and writers go on."""

from __future__ import annotations

from shardwright import errors, failpoints
from shardwright.partition import leaves
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Attach the table unless it is attached.

    Args:
        site: the table and shard.
        step: the partition.

    Raises:
        UnfitTable: there is no table of ours with its name.
        LockTimeout: somebody changes the parent all the time.
    """
    standing = leaves.find(site, step.name)
    if standing is None or not standing.marked:
        raise errors.UnfitTable(
            f"{site.schema}.{step.name} on shard {site.shard.name} is no table that we made",
            fix="shardwright partition plan",
            table=site.table.name,
        )
    if standing.attached:
        return

    def attach() -> None:
        leaves.attach(site, step.partition)
        site.mark(step.partition, "attached")
        failpoints.reach("partition.attaching")

    site.patiently(attach, also=[step.name])
    failpoints.reach("partition.attached")
