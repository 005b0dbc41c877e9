"""clean_up: the way back is closed, the rows that moved are deleted on the source, and nothing of the operation stays."""

from __future__ import annotations

import time

from shardwright import errors
from shardwright.catalog import roster
from shardwright.failpoints import reach
from shardwright.reshard import cleaning, fence, streams
from shardwright.reshard.world import World

#: A router that has not been heard of for this many seconds is taken for gone.
ROUTER_GONE_SECONDS = 30


def run(world: World) -> None:
    """Clean up after the switch.

    Rows are deleted only when every router that is alive knows the last map of the operation.
    """
    for move in world.operation.moves:
        if _control_row_left(world, move.source):
            fence.settle(
                world, move, reverse=_has_way_back(world, move.target, streams.name_of(world.cluster, move, "back"))
            )
    _wait_for_routers(world)
    for move in world.operation.moves:
        cleaning.drop_streams(world, move)
    reach("clean_up.streams_dropped")
    for move in world.operation.moves:
        cleaning.delete_rows(world, move, move.source, move.points, lambda: _deleted_some(world))
    reach("clean_up.deleted")
    for move in world.operation.moves:
        cleaning.forget_ranges(world, move, move.source, move.points)
    roster.keep_weights(world.catalog, world.operation.request)
    cleaning.let_go(world)


def _deleted_some(world: World) -> None:
    reach("clean_up.half_deleted")
    world.on_progress()


def _control_row_left(world: World, shard: str) -> bool:
    row = (
        world.shard(shard)
        .execute("SELECT FROM shardwright.control WHERE operation = %s", (world.operation.id,))
        .fetchone()
    )
    return row is not None


def _has_way_back(world: World, shard: str, name: str) -> bool:
    return world.shard(shard).execute("SELECT FROM pg_publication WHERE pubname = %s", (name,)).fetchone() is not None


def _wait_for_routers(world: World) -> None:
    """Wait until every live router has the operation's last map, or is gone; enter() keeps the others safe meanwhile."""
    limit = float(world.operation.settings.get("router_seconds", 600))
    deadline = time.monotonic() + limit
    while True:
        row = world.catalog.execute(
            "SELECT count(*), string_agg(application || ' on ' || host || ' pid ' || pid, ', ') "
            "FROM shardwright.routers WHERE seen_at > clock_timestamp() - make_interval(secs => %s) "
            "AND map_version < (SELECT max(version) FROM shardwright.map_versions WHERE operation = %s)",
            (ROUTER_GONE_SECONDS, world.operation.id),
        ).fetchone()
        if row is None or row[0] == 0:
            return
        if time.monotonic() > deadline:
            raise errors.NotDrained(
                f"{row[0]} routers are alive and did not take the new shard map in {limit:.0f} s: {row[1]}",
                fix=f"end them, then: shardwright reshard resume {world.operation.id}",
            )
        world.on_progress()
        time.sleep(0.2)
