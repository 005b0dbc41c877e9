"""Lifting the barrier against old snapshots (`catalog.snapshots`) that a move of rows between partitions has raised."""

from __future__ import annotations

import logging
import time

from psycopg import sql

from shardwright import errors, failpoints
from shardwright.catalog import snapshots
from shardwright.partition.site import PartitionSite

_log = logging.getLogger(__name__)

#: Seconds to wait, after a move of rows, for older snapshots; a later tick lifts what is left standing.
SETTLE_SECONDS = 1.0


def lift(site: PartitionSite, seconds: float = SETTLE_SECONDS) -> bool:
    """Lift the table's barrier unless somebody's snapshot is older than it.

    Args:
        site: the table and shard.
        seconds: how long to wait for older snapshots.

    Returns:
        Whether no barrier stands any more.

    Raises:
        LockTimeout: somebody reads or writes the table in a transaction that does not end.
    """
    name = site.table.table_name
    xid = snapshots.raised_by(site.connection, site.schema, name)
    if xid is None:
        return True
    if left := snapshots.wait_for_older(site.connection, xid, min(seconds, site.patience)):
        _log.info("%s on shard %s: the barrier stays for %s", site.table.name, site.shard.name, left[0].who)
        return False
    considerate_until = time.monotonic() + site.patience / 2

    def work() -> None:
        # A reader that comes while another one idles in its transaction would queue behind a wait.
        nowait = sql.SQL(" NOWAIT" if time.monotonic() < considerate_until else "")
        site.connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE{}").format(site.parent, nowait))
        snapshots.lift_barrier(site.connection, site.schema, name)
        failpoints.reach("partition.lifting")

    site.patiently(work, readers=True)
    return True


def settle(site: PartitionSite, seconds: float = SETTLE_SECONDS) -> bool:
    """After a move of rows: `lift`, if that can be done soon. Else a later tick does.

    Args:
        site: the table and shard.
        seconds: how long to wait for older snapshots.

    Returns:
        Whether no barrier stands any more.
    """
    try:
        return lift(site, seconds)
    except errors.LockTimeout as error:
        _log.info("%s on shard %s: the barrier stays: %s", site.table.name, site.shard.name, error.message)
        return False
