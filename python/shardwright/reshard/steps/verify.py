"""verify: compare both sides exactly, at one point in time, and keep the certificate."""

from __future__ import annotations

from shardwright.reshard import compare
from shardwright.reshard.world import World


def run(world: World) -> None:
    """Compare every move: what the source serves with the target's copy, and what the target serves with the source's.

    Raises:
        VerificationDiffers: they differ; the certificate with the keys is kept.
    """
    for move in world.operation.moves:
        for direction, points in (("forward", move.served_by_source()), ("back", move.served_by_target())):
            if points:
                compare.certify(world, move, direction, points)
