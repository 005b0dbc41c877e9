"""What became of a transaction whose COMMIT was not answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from shardwright import errors
from shardwright.session import two_phase
from shardwright.session.deciding import Decider
from shardwright.session.opening import driver_of
from shardwright.session.retries import Backoff
from shardwright.session.waiting import Waiting

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

Outcome = Literal["committed", "aborted", "unknown"]


def find_out(
    waiting: Waiting,
    decider: Decider,
    engine_of: Callable[[str], Engine],
    error: errors.CommitUnknown,
    patience: float,
) -> Outcome:
    """Ask the shard, or the catalog where several shards were written on; see `Cluster.commit_outcome`.

    Args:
        waiting: how to wait.
        decider: asks the catalog.
        engine_of: gives a shard's engine.
        error: what was raised.
        patience: seconds to wait.
    """
    if "transaction" in error.facts:
        return two_phase.find_out(waiting, decider, engine_of, error)
    shard, number = str(error.facts["shard"]), error.facts.get("xid")
    if number is None:
        return "unknown"
    backoff = Backoff(patience)
    while True:
        try:
            status = _status(engine_of(shard), number, error.facts.get("timeline"))
        except errors.ShardUnavailable:
            if backoff.is_over:
                raise
            status = "in progress"
        if status in ("committed", "aborted"):
            return "committed" if status == "committed" else "aborted"
        if status != "in progress" or backoff.is_over:
            return "unknown"
        waiting.pause(backoff.pause())


def _status(engine: Engine, number: int, timeline: object) -> str:
    with engine.connect() as connection:
        driver = driver_of(connection)
        driver.new_transaction(())
        # Another timeline gives numbers of its own, which say nothing about ours.
        if timeline != driver.timeline:
            return "unknown"
        try:
            asked = sa.text("SELECT pg_catalog.pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
            return str(connection.execute(asked, {"number": str(number)}).scalar())
        except sa.exc.DBAPIError:
            # Beyond what the server has ever given out: it came back from a backup.
            return "unknown"
