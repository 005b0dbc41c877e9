"""prepare: cut the ranges at batch borders, let the target know what will come, publish the moving points.

No data moves. The shard knows new ranges before the shard map names them, and forgets the old one only when every session
that entered it has ended, so a router finds an open range with either map.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardwright import errors
from shardwright.catalog import guards, locking, map_changes, maps, roster, windows
from shardwright.catalog.operations import Move
from shardwright.failpoints import reach
from shardwright.reshard import fence, streams
from shardwright.reshard.world import World
from shardwright.routing.predicates import GuardedTable


def run(world: World) -> None:
    """Prepare every move of the operation.

    Raises:
        NotDrained: sessions that are inside a range that is to be cut did not end in time.
        PreflightFailed: source and target have not got the same partitions.
        LockTimeout: partitions without guards could not be given them.
    """
    for move in world.operation.moves:
        # one at a time: another operation may be cutting the same range elsewhere, and know ids that the map does not
        with roster.changing(world.catalog, patience=60):
            _cut_ranges(world, move)
        shard_map = maps.load_map(world.catalog)
        ranges = fence.ranges_within(shard_map, move.keyspace, move.points)
        tables = world.guarded(move.keyspace)
        world.require_same_windows(move, errors.PreflightFailed, windows.list_windows(world.catalog))
        for shard in (move.source, move.target):
            _cover(world, shard, tables)
        with world.change(move.target) as connection:
            fence.set_ranges(connection, move.keyspace, ranges, "importing", shard_map.version)
            fence.sync_guards(connection, tables)
        reach("prepare.target_importing")
        with world.change(move.source) as connection:
            fence.sync_guards(connection, tables)  # TRUNCATE is refused from here on
            streams.set_publication(connection, streams.name_of(world.cluster, move, "forward"), tables, move.points)
        reach("prepare.publication_made")


def _cover(world: World, shard: str, tables: Sequence[GuardedTable]) -> None:
    """Partitions that somebody attached by hand get what refuses TRUNCATE; most often there are none."""
    for table in tables:
        locking.patiently(
            world.shard(shard),
            [(table.schema_name, table.table_name)],
            lambda table=table: guards.cover(world.shard(shard), [table.table_id]),  # type: ignore[misc]
        )


def _cut_ranges(world: World, move: Move) -> None:
    keyspace = world.keyspace(move)
    borders = [batch.points for batch in move.batches]
    cuts = map_changes.reserve_cuts(world.catalog, keyspace.id, move.source, borders)
    version = maps.load_map(world.catalog).version
    with world.change(move.source) as connection:
        for cut in cuts:
            for number, piece in cut.parts:
                connection.execute(
                    "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
                    "SELECT %s, %s, unnest(%s::int8multirange), 'open', %s",
                    (number, move.keyspace, piece.literal(), version),
                )
    reach("prepare.ranges_known")
    map_changes.commit_cuts(world.catalog, world.operation.id, world.operation.op_epoch, cuts)
    reach("prepare.ranges_cut")
    # cut ones, and what a crash left
    fence.forget_stale_ranges(world, move)
