"""Fence and hand-over: how a batch of ranges goes from the shard that serves it to the other one.

The order is the proof's order, explored as a model with crashes at every step, stale routers, direct writers and zombies:
fence with drain, marker durable on the taker, way back widened, shard map by compare-and-set (the only point of no
return), taker opened. Before the commit everything can be undone (`settle`), after it everything rolls forward (`settle`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import psycopg

from shardwright import errors
from shardwright.catalog import evidence, guards, map_changes, maps, operations
from shardwright.catalog.operations import Batch, Move
from shardwright.failpoints import reach
from shardwright.reshard import sequences, streams
from shardwright.reshard.blockers import Blocker, list_blockers, remedy, shown
from shardwright.reshard.world import LOCK_CLASS, World, log
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import GuardedTable
from shardwright.routing.shard_map import Range, ShardMap

#: What a try to fence may fail with, for another one to be made.
_NOT_DRAINED = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


def sync_guards(connection: psycopg.Connection, tables: Sequence[GuardedTable]) -> None:
    """Make the guards of one keyspace's tables say what the shard's ranges say.

    TRUNCATE is refused while an operation is live on the shard.

    Args:
        connection: to the shard, in a transaction.
        tables: the keyspace's tables.
    """
    if not tables or tables[0].keyspace is None:
        return
    row = connection.execute("SELECT EXISTS (SELECT FROM shardwright.control)").fetchone()
    guards.replace(
        connection, tables, open_points(connection, tables[0].keyspace.name), refuse_truncate=row is not None and row[0]
    )


def open_points(connection: psycopg.Connection, keyspace: str) -> Multirange:
    """The points of a keyspace that are open on a shard."""
    row = connection.execute(
        "SELECT coalesce(range_agg(points) FILTER (WHERE state = 'open'), '{}')::text "
        "FROM shardwright.ranges WHERE keyspace = %s",
        (keyspace,),
    ).fetchone()
    if row is None:
        raise errors.InvariantFailed("an aggregate gave no row")
    return Multirange.parse(row[0])


def _set_ranges_and_guards(
    connection: psycopg.Connection,
    keyspace: str,
    tables: Sequence[GuardedTable],
    ranges: Sequence[Range],
    state: str,
    version: int,
    owned: Multirange,
) -> None:
    """Give ranges a state and guards the points that are open then, without waiting for an answer in between.

    The shard itself checks that `owned` is what is open after the change.

    Raises:
        psycopg.errors.SerializationFailure: it is not; another operation changed it meanwhile.
    """
    set_ranges(connection, keyspace, ranges, state, version)
    connection.execute("SELECT shardwright.expect_open(%s, %s::int8multirange)", (keyspace, owned.literal()))
    guards.set_owned(connection, tables, owned)


def set_ranges(
    connection: psycopg.Connection, keyspace: str, ranges: Sequence[Range], state: str, map_version: int
) -> None:
    """Give ranges a state on a shard; those that it does not know yet are added.

    Args:
        connection: to the shard, in a transaction.
        keyspace: the ranges' keyspace.
        ranges: from the shard map, see `ranges_within`.
        state: open, fenced, importing or moved.
        map_version: the version that this is so since.
    """
    for found in ranges:
        connection.execute(
            "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
            "VALUES (%s, %s, int8range(%s, %s), %s, %s) ON CONFLICT (id) DO UPDATE "
            "SET state = excluded.state, map_version = excluded.map_version",
            (found.id, keyspace, found.lo, found.hi, state, map_version),
        )


def ranges_within(shard_map: ShardMap, keyspace: str, points: Multirange) -> list[Range]:
    """The ranges of a map that lie within `points`, which are made of whole ranges."""
    return [found for found in shard_map.ranges_of(keyspace) if not found.points() - points]


def forget_stale_ranges(world: World, move: Move) -> None:
    """Take ranges that the shard map does not name off the source. The caller holds `roster.changing`.

    Raises:
        NotDrained: sessions that entered such a range did not end in time.
    """
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
                    blockers = list_blockers(world.shard(move.source), [], [number])
                    raise errors.NotDrained(
                        f"sessions inside range {number} on {move.source} did not end: {shown(blockers)}",
                        fix=f"{remedy(blockers, world.cluster)}, then: shardwright reshard resume {world.operation.id}",
                        blockers=blockers,
                    ) from None
                world.on_progress()
                time.sleep(timeout_ms / 1000)


def settle(world: World, move: Move, *, reverse: bool) -> None:
    """Make both shards agree with the shard map, whatever a crash or a failed hand-over left.

    Uncommitted fences are lifted, committed ones rolled forward. Good at any time while no hand-over is under way.

    Args:
        world: the worker's world.
        move: as last read from the catalog.
        reverse: whether the reverse stream has been made.
    """
    tables = world.guarded(move.keyspace)
    on_source, on_target = move.served_by_source(), move.served_by_target()
    shard_map = maps.load_map(world.catalog)
    version = shard_map.version
    theirs, ours = (ranges_within(shard_map, move.keyspace, points) for points in (on_target, on_source))
    forward, back = streams.name_of(world.cluster, move, "forward"), streams.name_of(world.cluster, move, "back")
    # Both ways first, then the doors: what one side sends must have been narrowed before the other side is written.
    if reverse:
        with world.change(move.target) as connection:
            streams.set_publication(connection, back, tables, on_target)
    with world.change(move.source) as connection:
        streams.set_publication(connection, forward, tables, on_source)
    with world.change(move.target) as connection:
        set_ranges(connection, move.keyspace, theirs, "open", version)
        set_ranges(connection, move.keyspace, ours, "importing", version)
        sync_guards(connection, tables)
    with world.change(move.source) as connection:
        set_ranges(connection, move.keyspace, ours, "open", version)
        set_ranges(connection, move.keyspace, theirs, "moved", version)
        sync_guards(connection, tables)


def hand_over(world: World, move: Move, batch: Batch, direction: str) -> float:
    """Hand one batch over, and record it.

    Args:
        world: the worker's world.
        move: as last read from the catalog.
        batch: what goes.
        direction: ``forward`` (source to target) or ``back``.

    Returns:
        The pause of writes to the batch in milliseconds, from the request of the locks to the opening of the taker.

    Raises:
        NotDrained: open transactions did not end; the batch is served where it was.
        StreamStalled: the changes did not arrive in time; the batch is served where it was.
        OwnershipUnknown: the commit's answer was lost and the catalog cannot be asked; the batch stays fenced.
    """
    giver, taker = (move.source, move.target) if direction == "forward" else (move.target, move.source)
    there, back = ("forward", "back") if direction == "forward" else ("back", "forward")
    out_stream, back_stream = streams.name_of(world.cluster, move, there), streams.name_of(world.cluster, move, back)
    tables = world.guarded(move.keyspace)
    with_giver = move.served_by_source() if direction == "forward" else move.served_by_target()
    given = (move.points - with_giver) | batch.points
    limit = float(world.operation.settings.get("max_pause_ms", 1000)) / 1000
    # warm connections: nothing is opened while writes wait
    world.shard(giver)
    target = world.shard(taker)
    numbered = sequences.owned_by(world.shard(giver), tables)
    shard_map = maps.load_map(world.catalog)
    ranges = ranges_within(shard_map, move.keyspace, batch.points)
    opened_before = open_points(target, move.keyspace)
    streams.round_trip(world, giver, taker, out_stream, 60)

    begun = time.monotonic()
    attempts = 0
    try:
        value, started, attempts = _fence(world, move, batch, giver, out_stream, tables, ranges, shard_map.version)
        reach("hand_over.fenced")
        # Not under the locks: whoever plans a statement on a table of many leaves next reads them all anew. Nobody writes
        # the batch here by now, and what comes back does so only after the taker was opened.
        with world.change(giver, lock_timeout_ms=int(limit * 1000), pipelined=True) as connection:
            streams.set_publication(connection, out_stream, tables, with_giver - batch.points, known=True)
        if not streams.wait_for_marker(target, out_stream, value, limit):
            raise errors.StreamStalled(
                f"the last changes of batch {batch.number} did not reach {taker} within {limit * 1000:.0f} ms",
                fix="the batch is served where it was; look at the stream's lag, then switch again",
            )
        reach("hand_over.drained")
        values = sequences.next_values(world.shard(giver), numbered)
        with world.change(taker, lock_timeout_ms=int(limit * 1000), pipelined=True) as connection:
            # The apply worker commits asynchronously. This transaction does not, and its flush covers all WAL before it:
            # once it is committed, what has arrived is durable.
            streams.set_publication(connection, back_stream, tables, given, known=True)
            sequences.raise_to(connection, values)
        reach("hand_over.widened")
        version = _commit(world, move, batch, shard_map, direction)
    except (errors.NotDrained, errors.OwnershipUnknown):
        # never fenced; or nobody knows to whom it belongs, and it must stay fenced until the catalog is back
        raise
    except BaseException:
        # not committed: the giver serves again
        settle(world, world_move(world, move), reverse=True)
        evidence.record_handover(
            world.catalog, move.id, batch.number, direction, attempts, None, (time.monotonic() - begun) * 1000
        )
        raise
    try:
        reach("hand_over.committed")
        _open(world, move, taker, tables, ranges, version, opened_before | batch.points)
    except BaseException:
        # committed: it rolls forward, whatever went wrong
        settle(world, world_move(world, move), reverse=True)
        raise
    pause_ms = (time.monotonic() - started) * 1000
    reach("hand_over.opened")
    with world.change(giver) as connection:
        # what was handed back is fed by the stream again; what was handed over is not served here any more
        left_as = "moved" if direction == "forward" else "importing"
        set_ranges(connection, move.keyspace, ranges, left_as, version)
    evidence.record_handover(world.catalog, move.id, batch.number, direction, attempts, version, pause_ms)
    return pause_ms


def _open(
    world: World,
    move: Move,
    taker: str,
    tables: Sequence[GuardedTable],
    ranges: Sequence[Range],
    version: int,
    owned: Multirange,
) -> None:
    """Open ranges on the taker, where `owned` is what will be open there then, unless another operation changed it."""
    try:
        with world.change(taker, pipelined=True) as connection:
            _set_ranges_and_guards(connection, move.keyspace, tables, ranges, "open", version, owned)
    except psycopg.errors.SerializationFailure:
        with world.change(taker) as connection:
            set_ranges(connection, move.keyspace, ranges, "open", version)
            sync_guards(connection, tables)


def world_move(world: World, move: Move) -> Move:
    """The move as it stands in the catalog now."""
    world.refresh()
    return world.move(move.id)


def _fence(
    world: World,
    move: Move,
    batch: Batch,
    giver: str,
    out_stream: str,
    tables: Sequence[GuardedTable],
    ranges: Sequence[Range],
    version: int,
) -> tuple[int, float, int]:
    """Refuse the batch's rows on the giver, once nobody has them in hand.

    Returns:
        The marker's value to wait for, when the locks were asked for (monotonic), and how many tries it took.
    """
    settings = world.operation.settings
    attempts = int(settings.get("fence_attempts", 40))
    timeout_ms = int(settings.get("fence_lock_timeout_ms", 100))
    numbers = [0, *(found.id for found in ranges)]
    blockers: list[Blocker] = []
    for attempt in range(1, attempts + 1):
        left_open = open_points(world.shard(giver), move.keyspace) - batch.points
        try:
            with world.change(giver, lock_timeout_ms=timeout_ms, pipelined=True) as connection:
                guards.steady(connection, tables)
                started = time.monotonic()
                # lock_timeout bounds the wait for one lock, and there are as many as tables
                connection.execute(f"SET LOCAL statement_timeout = {timeout_ms}".encode())
                # drains the library's sessions, which hold their range's lock shared until they end
                connection.execute(
                    "SELECT pg_advisory_xact_lock(%s, n) FROM unnest(%s::int[]) AS n ORDER BY n",
                    (LOCK_CLASS, numbers),
                )
                # drains everybody else who wrote
                guards.lock(connection, tables)
                connection.execute("SET LOCAL statement_timeout = 0")
                _set_ranges_and_guards(connection, move.keyspace, tables, ranges, "fenced", version, left_open)
                value = streams.beat(connection, out_stream)
            return value, started, attempt
        except (errors.LockTimeout, *_NOT_DRAINED):
            blockers = list_blockers(world.shard(giver), tables, numbers) or blockers
            log.info("batch %d of move %d: try %d not drained: %s", batch.number, move.id, attempt, blockers)
            world.on_progress()
            # writers who queued behind us get at least as long as they had to wait
            time.sleep(timeout_ms / 1000 * random.uniform(1.0, 2.0))
    raise errors.NotDrained(
        f"batch {batch.number} on {giver} was not drained in {attempts} tries of {timeout_ms} ms; blockers: "
        + (shown(blockers) or "gone by now"),
        fix=f"{remedy(blockers, world.cluster)}, then: shardwright reshard switch {world.operation.id}",
        blockers=blockers,
    )


def _commit(world: World, move: Move, batch: Batch, shard_map: ShardMap, direction: str) -> int:
    try:
        return map_changes.commit_batch(world.catalog, world.operation, move, batch, shard_map, direction)
    except psycopg.OperationalError as lost:
        # The answer is lost: the catalog alone knows. It is asked, never guessed.
        wanted = "target" if direction == "forward" else "source"
        try:
            world.reconnect_catalog()
            now = operations.get(world.catalog, world.operation.id)
        except (errors.PreconditionError, psycopg.Error):
            raise errors.OwnershipUnknown(
                f"the answer to the commit of batch {batch.number} was lost, and the catalog cannot be asked",
                fix=f"bring the catalog back, then: shardwright reshard resume {world.operation.id}",
                ownership_known=False,
            ) from lost
        current = next(m for m in now.moves if m.id == move.id)
        if next(b for b in current.batches if b.number == batch.number).served_by != wanted:
            raise errors.StreamStalled("the catalog's connection broke before the commit", fix="switch again") from lost
        return maps.load_map(world.catalog).version
