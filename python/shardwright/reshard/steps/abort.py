"""abort: take away everything that the operation made; the source has served everything all the time, or again."""

from __future__ import annotations

from shardwright import errors
from shardwright.catalog import ddl, roster
from shardwright.failpoints import reach
from shardwright.reshard import cleaning, fence
from shardwright.reshard.world import World
from shardwright.routing.multirange import Multirange


def run(world: World) -> None:
    """Abort the operation.

    Raises:
        InvariantFailed: the target serves some of the points; roll back first.
    """
    for move in world.operation.moves:
        if move.served_by_target():
            raise errors.InvariantFailed(f"move {move.id} is served by {move.target} in part: roll back first")
        cleaning.drop_streams(world, move)
    reach("abort.streams_dropped")
    with roster.changing(world.catalog, patience=60):
        for move in world.operation.moves:
            fence.forget_stale_ranges(world, move)
    for move in world.operation.moves:
        _lift_fence(world, move.source, move.keyspace, move.points)
        cleaning.delete_rows(world, move, move.target, move.points, world.on_progress)
        for table in world.registered:
            if table.kind == "sharded" and table.keyspace == move.keyspace:
                ddl.build_keys(world.shard(move.target), table.layout)
                ddl.build_foreign_keys(world.shard(move.target), table.layout)
        cleaning.forget_ranges(world, move, move.target, move.points)
    reach("abort.deleted")
    cleaning.let_go(world)


def _lift_fence(world: World, shard: str, keyspace: str, points: Multirange) -> None:
    with world.change(shard) as connection:
        connection.execute(
            "UPDATE shardwright.ranges SET state = 'open' WHERE keyspace = %s AND state <> 'open' "
            "AND int8multirange(points) <@ %s::int8multirange",
            (keyspace, points.literal()),
        )
        fence.sync_guards(connection, world.guarded(keyspace))
