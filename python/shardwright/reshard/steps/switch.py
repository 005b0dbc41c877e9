"""switch: make the way back, then hand the batches over to the target, one by one, smallest first."""

from __future__ import annotations

from shardwright import errors
from shardwright.catalog import evidence
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard import fence, streams
from shardwright.reshard.phases import Goal
from shardwright.reshard.world import World, log
from shardwright.routing.multirange import Multirange

#: A certificate older than this many seconds does not allow a switch.
CERTIFICATE_SECONDS = 24 * 3600


def run(world: World) -> None:
    """Switch every batch that the source still serves.

    Raises:
        NotVerified: a move has no fresh certificate without differences.
        NotDrained, StreamStalled, OwnershipUnknown: see `fence.hand_over`.
    """
    require_certificates(world)
    for move in world.operation.moves:
        _make_way_back(world, move)
    for number in sorted({batch.number for move in world.operation.moves for batch in move.batches}):
        for move_id in [move.id for move in world.operation.moves]:
            move = world.move(move_id)
            for batch in move.batches:
                if batch.number == number and batch.served_by == "source":
                    fence.hand_over(world, move, batch, "forward")
                    world.refresh()
                    world.on_progress()


def check(world: World) -> None:
    """See that a switch can go through, while nothing has been handed over and all can still be copied again.

    Raises:
        NotVerified: a move has no fresh certificate without differences.
        StreamStalled: a stream does not keep in step; ``facts["state"]`` is ``lost`` where it must be copied again.
    """
    require_certificates(world)
    for move in world.operation.moves:
        streams.round_trip(world, move.source, move.target, streams.name_of(world.cluster, move, "forward"), 60)


def require_certificates(world: World) -> None:
    """Check that all that is still to be switched was compared, found equal, and not too long ago.

    Raises:
        NotVerified: a move has no fresh certificate without differences.
    """
    for move in world.operation.moves:
        _require_certificate(world, move)


def _require_certificate(world: World, move: Move) -> None:
    if not move.served_by_source():
        return
    found = evidence.latest_certificate(world.catalog, move.id, "forward")
    limit = float(world.operation.settings.get("certificate_seconds", CERTIFICATE_SECONDS))
    if found is None or found.differing or move.served_by_source() - found.points or found.age_seconds > limit:
        # comparing again means standing still: what was switched goes back first
        verb = "verify" if world.operation.phase == "verified" else "rollback"
        raise errors.NotVerified(
            f"move {move.id} from {move.source} to {move.target} has no fresh certificate",
            fix=f"shardwright reshard {verb} {world.operation.id}",
        )


def _make_way_back(world: World, move: Move) -> None:
    """The reverse stream exists, and runs, before the target is opened: else writes between the two would be lost to it."""
    if not _publish_way_back(world, move):
        return
    name = streams.name_of(world.cluster, move, "back")
    streams.make_slot_here(world.shard(move.target), name)
    reach("switch.reverse_slot")
    with world.change(move.source) as connection:
        streams.subscribe(connection, name, world.shards[move.target])
    streams.round_trip(world, move.target, move.source, name, 60)
    reach("switch.reverse_subscribed")


def _publish_way_back(world: World, move: Move) -> bool:
    """Make the reverse publication, which comes before its slot.

    Returns:
        False where the way back was lost after the first commit, and the operator wants to finish without it.

    Raises:
        StreamStalled: it was lost, and the operation is not to be finished.
    """
    name = streams.name_of(world.cluster, move, "back")
    lost = False
    if streams.is_lost(world.shard(move.target), name):
        lost = bool(move.served_by_target())
        if lost and world.operation.goal != Goal.DONE:
            raise errors.StreamStalled(
                f"the way back of move {move.id} was lost: slot {name} is gone, and rolling back is not possible any more",
                fix=f"go forward without it: shardwright reshard finish {world.operation.id}",
            )
        if lost:
            log.warning("move %d goes forward without a way back: slot %s is gone", move.id, name)
        else:
            with world.change(move.target) as connection:
                streams.forget_marker(connection, name)
                streams.set_publication(connection, name, world.guarded(move.keyspace), Multirange(()))
            with world.change(move.source) as connection:
                streams.drop_subscription(connection, name)
                streams.forget_marker(connection, name)
            streams.drop_slot(world.shard(move.target), name)  # one that was invalidated
            reach("switch.reverse_publication")
    fence.settle(world, move, reverse=True)
    return not lost
