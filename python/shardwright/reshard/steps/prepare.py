"""prepare: cut the ranges at batch borders, let the target know what will come, publish the moving points.

No data moves. The shard knows new ranges before the shard map names them, and forgets the old one only when every session
that entered it has ended, so a router finds an open range with either map.
"""

from __future__ import annotations

import time

from shardwright import errors
from shardwright.catalog import maps, operations, roster
from shardwright.catalog.operations import Cut, Move
from shardwright.reshard import fence, streams
from shardwright.reshard.failpoints import reach
from shardwright.reshard.world import LOCK_CLASS, World


def run(world: World) -> None:
    """Prepare every move of the operation.

    Raises:
        NotDrained: sessions that are inside a range that is to be cut did not end in time.
    """
    for move in world.operation.moves:
        # one at a time: another operation may be cutting the same range elsewhere, and know ids that the map does not
        with roster.changing(world.catalog, patience=60):
            _cut_ranges(world, move)
        shard_map = maps.load_map(world.catalog)
        ranges = fence.ranges_within(shard_map, move.keyspace, move.points)
        tables = world.guarded(move.keyspace)
        with world.change(move.target) as connection:
            fence.set_ranges(connection, move.keyspace, ranges, "importing", shard_map.version)
            fence.sync_guards(connection, tables)
        reach("prepare.target_importing")
        with world.change(move.source) as connection:
            fence.sync_guards(connection, tables)  # TRUNCATE is refused from here on
            streams.set_publication(connection, world.stream_name(move, "forward"), tables, move.points)
        reach("prepare.publication_made")


def _cut_ranges(world: World, move: Move) -> None:
    keyspace = world.keyspace(move)
    borders = [batch.points for batch in move.batches]
    cuts = operations.reserve_cuts(world.catalog, keyspace.id, move.source, borders)
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
    operations.commit_cuts(world.catalog, world.operation.id, world.operation.op_epoch, cuts)
    reach("prepare.ranges_cut")
    _forget_old_ranges(world, move, cuts)


def _forget_old_ranges(world: World, move: Move, cuts: list[Cut]) -> None:
    """Take ranges that the shard map does not name any more off the source: cut ones, and what a crash left."""
    known = {r.id for r in maps.load_map(world.catalog).ranges_of(move.keyspace)}
    rows = (
        world.shard(move.source)
        .execute("SELECT id FROM shardwright.ranges WHERE keyspace = %s", (move.keyspace,))
        .fetchall()
    )
    stale = [row[0] for row in rows if row[0] not in known]
    attempts = int(world.operation.settings.get("fence_attempts", 40))
    timeout_ms = int(world.operation.settings.get("fence_lock_timeout_ms", 100))
    for number in stale:
        for attempt in range(1, attempts + 1):
            try:
                with world.change(move.source, lock_timeout_ms=timeout_ms) as connection:
                    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, number))
                    connection.execute("DELETE FROM shardwright.ranges WHERE id = %s", (number,))
                break
            except errors.LockTimeout:
                if attempt == attempts:
                    blockers = fence.list_blockers(world.shard(move.source), [], [number])
                    raise errors.NotDrained(
                        f"sessions inside range {number} on {move.source} did not end: {blockers}",
                        fix=f"end them or wait, then: shardwright reshard resume {world.operation.id}",
                        blockers=blockers,
                    ) from None
                world.on_progress()
                time.sleep(timeout_ms / 1000)
