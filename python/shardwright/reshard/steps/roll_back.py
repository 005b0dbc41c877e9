"""roll_back: hand every batch that the target serves back to the source; nothing written since the switch is lost."""

from __future__ import annotations

from shardwright.failpoints import reach
from shardwright.reshard import compare, fence, streams
from shardwright.reshard.world import World


def run(world: World) -> None:
    """Compare what the target serves with the source's copy, then hand the batches back, largest first.

    Raises:
        VerificationDiffers: the way back did not keep the source in step; nothing was handed back.
        NotDrained, StreamStalled, OwnershipUnknown: see `fence.hand_over`.
    """
    reach("roll_back.started")
    for move in world.operation.moves:
        has_way_back = (
            world.shard(move.target)
            .execute("SELECT FROM pg_publication WHERE pubname = %s", (streams.name_of(world.cluster, move, "back"),))
            .fetchone()
        )
        fence.settle(world, move, reverse=has_way_back is not None)
        if move.served_by_target():
            compare.certify(world, move, "back", move.served_by_target())
    for move_id in [move.id for move in world.operation.moves]:
        for batch in sorted(world.move(move_id).batches, key=lambda batch: batch.number, reverse=True):
            if batch.served_by == "target":
                fence.hand_over(world, world.move(move_id), batch, "back")
                world.refresh()
                world.on_progress()
