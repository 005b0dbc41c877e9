"""finalize: a DETACH CONCURRENTLY that broke off is brought to its end. Its rows were out of sight since then."""

from __future__ import annotations

from psycopg import sql

from shardwright import failpoints
from shardwright.partition import leaves, marks
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """FINALIZE the detach unless that was done.

    Args:
        site: the table and shard.
        step: the partition.

    Raises:
        LockTimeout: a transaction is older than the detach, or holds the partition.
    """
    standing = leaves.find(site, step.name)
    if standing is None or not standing.pending:
        return

    def finalize() -> None:
        site.connection.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(site.parent, site.leaf(step.name))
        )
        if standing.marked:
            marks.set_state(site.connection, site.schema, [step.name], "detached", detached_at=site.clock())
        failpoints.reach("partition.finalizing")

    site.patiently(finalize, also=[step.name], readers=True)
    if standing.marked:
        leaves.drop_foreign_keys(site, step.name)
    failpoints.reach("partition.finalized")
