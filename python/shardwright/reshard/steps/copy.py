"""copy: one snapshot of the moving rows, from the source to the target, in parallel chunks.

A guard transaction holds ACCESS SHARE on every moving table from before the slot until the end: a TRUNCATE or rewrite in
between would make COPY read nothing, silently. Leaves are not locked, there may be thousands: after each chunk it is seen
that its leaf is the one of the snapshot. A copy that broke off starts again: slot dropped, moved points emptied.
"""

from __future__ import annotations

from contextlib import ExitStack

import psycopg

from shardwright import engines, errors
from shardwright.catalog import ddl, evidence, operations
from shardwright.catalog.operations import Move
from shardwright.catalog.tables import RegisteredTable
from shardwright.failpoints import reach
from shardwright.reshard import cleaning, layouts, pump, streams
from shardwright.reshard.parts import Part
from shardwright.reshard.pump import Chunk, Progress
from shardwright.reshard.world import World, log
from shardwright.routing.predicates import GuardedTable, quote_literal


def run(world: World) -> None:
    """Copy every move of the operation.

    Raises:
        NotDrained: open transactions kept the replication slot from being made.
        StreamStalled: a connection broke; resume starts the copy again.
    """
    for move in world.operation.moves:
        _start_over(world, move)
    with ExitStack() as held:
        snapshots = {}
        chunks = []
        for move in world.operation.moves:
            snapshots[move.id] = _snapshot(world, move, held)
            chunks.extend(_cut(world, move, snapshots[move.id]))
            operations.record_progress(world.catalog, move.id, rows_done=0, bytes_done=0)
        reach("copy.slot_made")
        bare = _drop_keys(world)
        largest_first = sorted(chunks, key=lambda chunk: chunk.size, reverse=True)
        workers = int(world.operation.settings.get("copy_workers", 2))
        done = pump.copy_chunks(world, largest_first, snapshots, workers, lambda progress: _report(world, progress))
        _record(world, done)
    for window in (window for progress in done.values() for window in progress.windows):
        evidence.record_window(world.catalog, window.move, window.table, window.name, window.rows, window.checksum)
    reach("copy.copied")
    for target, table in bare:
        ddl.build_keys(world.shard(target), table.layout)
    for target, table in bare:
        ddl.build_foreign_keys(world.shard(target), table.layout)
    for move in world.operation.moves:
        for moved in world.guarded(move.keyspace):
            world.shard(move.target).execute(f"ANALYZE {moved.qualified}".encode())
    reach("copy.keys_built")
    # what was estimated is known now
    for move in world.operation.moves:
        found = done[move.id]
        operations.record_progress(world.catalog, move.id, rows_total=found.rows, bytes_total=found.bytes)


def _start_over(world: World, move: Move) -> None:
    """Take away what an earlier try of the copy left."""
    name = streams.name_of(world.cluster, move, "forward")
    if move.served_by_target():
        raise errors.InvariantFailed(f"move {move.id} is served by its target in part; it cannot be copied again")
    with world.change(move.target) as connection:
        streams.drop_subscription(connection, name)
        streams.forget_marker(connection, name)
    streams.drop_slot(world.shard(move.source), name)
    with world.change(move.source) as connection:
        streams.forget_marker(connection, name)
    evidence.forget_windows(world.catalog, move.id)
    cleaning.delete_rows(world, move, move.target, move.points, world.on_progress)


def _snapshot(world: World, move: Move, held: ExitStack) -> str:
    """Make the move's slot; both its connection and the guard transaction stay open in `held`."""
    guard = held.enter_context(world.open(move.source))
    guard.execute("BEGIN")
    names = ", ".join(f"ONLY {table.qualified}" for table in world.guarded(move.keyspace))
    if names:
        guard.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE".encode())
    replication = held.enter_context(engines.connect_replication(world.shards[move.source], world.application_name))
    with world.change(move.source):
        pass  # the token is checked; the slot itself cannot be made in that transaction
    return streams.make_slot(replication, streams.name_of(world.cluster, move, "forward"))


def _cut(world: World, move: Move, snapshot: str) -> list[Chunk]:
    """The move's chunks, as the snapshot sees the source."""
    source, target = world.shard(move.source), world.shard(move.target)
    row = source.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    by_id = {table.id: table for table in world.registered}

    def is_closed(table: GuardedTable, part: Part) -> bool:
        return layouts.is_over(by_id[table.table_id], part, row[0])

    with source.transaction():
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        source.execute(f"SET TRANSACTION SNAPSHOT {quote_literal(snapshot)}".encode())
        return pump.cut_chunks(source, target, move, world.guarded(move.keyspace), is_closed)


def _drop_keys(world: World) -> list[tuple[str, RegisteredTable]]:
    """Take the indexes off tables that are empty and that their shard does not serve; a key in place costs two thirds."""
    bare = []
    for target in sorted({move.target for move in world.operation.moves}):
        keyspaces = {move.keyspace for move in world.operation.moves if move.target == target}
        for table in world.registered:
            if table.kind != "sharded" or table.keyspace not in keyspaces:
                continue
            serves = (
                world.shard(target)
                .execute(
                    "SELECT FROM shardwright.ranges WHERE keyspace = %s AND state = 'open' LIMIT 1", (table.keyspace,)
                )
                .fetchone()
            )
            if serves is None:
                with world.change(target, lock_timeout_ms=2000) as connection:
                    ddl.drop_keys(connection, table.layout)
            # keys that an earlier try dropped are built in any case
            bare.append((target, table))
    return bare


def _report(world: World, progress: dict[int, Progress]) -> None:
    _record(world, progress)
    world.on_progress()


def _record(world: World, progress: dict[int, Progress]) -> None:
    try:
        for number, done in progress.items():
            operations.record_progress(
                world.catalog, number, rows_done=done.rows, bytes_done=done.bytes, copy_seconds=done.seconds
            )
    except psycopg.OperationalError:
        # the copy itself does not need the catalog; a later report may reach it
        try:
            world.reconnect_catalog()
        except errors.CannotConnect:
            log.warning("the catalog is away; the copy goes on")
