"""lift: the barrier that keeps old snapshots from changing rows that moved is taken away; nobody has such a snapshot any more."""

from __future__ import annotations

from shardwright.partition import barrier
from shardwright.partition.plan import Step
from shardwright.partition.site import PartitionSite


def run(site: PartitionSite, step: Step) -> None:
    """Lift the table's barrier; it stays where a step of this run has raised it anew and somebody needs it.

    Args:
        site: the table and shard.
        step: its name is the table's.

    Raises:
        LockTimeout: somebody reads or writes the table in a transaction that does not end.
    """
    barrier.lift(site)
