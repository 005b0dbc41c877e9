"""catch_up: apply on the target what the source committed since the snapshot, until a marker passes quickly."""

from __future__ import annotations

import time

from shardwright import errors
from shardwright.catalog import operations
from shardwright.failpoints import reach
from shardwright.reshard import streams
from shardwright.reshard.world import World

#: A stream has caught up when a marker passes in this many seconds.
QUICK_SECONDS = 0.5


def run(world: World) -> None:
    """Subscribe every move's target and wait until it keeps in step.

    Raises:
        StreamStalled: the stream stopped or lost its slot; ``facts["state"]`` says which.
    """
    for move in world.operation.moves:
        with world.change(move.target) as connection:
            streams.subscribe(connection, streams.name_of(world.cluster, move, "forward"), world.shards[move.source])
    reach("catch_up.subscribed")
    limit = float(world.operation.settings.get("catch_up_seconds", 86400))
    for move in world.operation.moves:
        name = streams.name_of(world.cluster, move, "forward")
        deadline = time.monotonic() + limit
        while True:
            try:
                passed = streams.round_trip(
                    world, move.source, move.target, name, max(1.0, deadline - time.monotonic())
                )
            except errors.StreamStalled:
                world.require_same_windows(move, errors.PreflightFailed)  # one without a window stops the stream
                raise
            found = streams.health(world.shard(move.source), world.shard(move.target), name)
            operations.record_progress(world.catalog, move.id, lag_bytes=found.lag_bytes)
            world.on_progress()
            if passed < QUICK_SECONDS:
                break
            if time.monotonic() > deadline:
                raise errors.StreamStalled(
                    f"{move.target} did not catch up in {limit:.0f} s: a marker takes {passed:.1f} s, {found.lag_bytes} bytes",
                    fix=f"lessen the load, then: shardwright reshard resume {world.operation.id}",
                )
    reach("catch_up.caught_up")
