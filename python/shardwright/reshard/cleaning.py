"""Taking away what an operation made: streams first, then rows, then ranges. Every part can be run again."""

from __future__ import annotations

from collections.abc import Callable

from shardwright import errors
from shardwright.catalog.operations import Move
from shardwright.reshard import fence, parts, streams
from shardwright.reshard.world import World
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import owned_sql, quote_identifier

#: Pages of 8 kB that one deleting transaction covers.
DELETE_PAGES = 2048


def drop_streams(world: World, move: Move) -> None:
    """Drop both streams of a move: subscriptions, then slots, then publications and marker rows."""
    names = {direction: streams.name_of(world.cluster, move, direction) for direction in ("forward", "back")}
    for shard, direction in ((move.target, "forward"), (move.source, "back")):
        with world.change(shard) as connection:
            streams.drop_subscription(connection, names[direction])
    for shard, direction in ((move.source, "forward"), (move.target, "back")):
        with world.change(shard):
            pass  # the token is checked; a slot cannot be dropped and rolled back, so it is done outside
        streams.drop_slot(world.shard(shard), names[direction])
    for shard in (move.source, move.target):
        with world.change(shard) as connection:
            for name in names.values():
                streams.drop_publication(connection, name)
                streams.forget_marker(connection, name)


def delete_rows(
    world: World, move: Move, shard: str, points: Multirange, step: Callable[[], None] = lambda: None
) -> int:
    """Delete the rows of `points` on a shard that does not serve them, some pages a transaction.

    Args:
        world: the worker's world.
        move: whose tables.
        shard: where.
        points: what; the catalog's map must give none of them to the shard.
        step: called after each transaction.

    Returns:
        How many rows were deleted.

    Raises:
        InvariantFailed: the shard map says that the shard serves some of these points.
    """
    if not points:
        return 0
    keyspace = world.keyspace(move)
    row = world.catalog.execute(
        "SELECT count(*) FROM shardwright.ranges WHERE keyspace = %s AND shard = %s "
        "AND int8multirange(points) && %s::int8multirange",
        (keyspace.id, shard, points.literal()),
    ).fetchone()
    if row is None or row[0] != 0:
        raise errors.InvariantFailed(
            f"rows of {points.literal()} were about to be deleted on {shard}, which serves them"
        )
    deleted = 0
    for table in world.guarded(move.keyspace):
        if table.key_column is None:
            continue
        where = owned_sql(keyspace, points, quote_identifier(table.key_column))
        some = parts.of_table(world.shard(shard), table)
        for part, pages in zip(some, parts.pages_of(world.shard(shard), some), strict=True):
            # one without pages has no rows, and nobody writes these points here
            for first in range(0, pages, DELETE_PAGES):
                last = first + DELETE_PAGES
                upper = "" if last > pages else f" AND ctid < '({last},0)'::tid"
                with world.change(shard, replica_role=True) as connection:
                    done = connection.execute(
                        f"DELETE FROM ONLY {part.qualified} WHERE ctid >= '({first},0)'::tid{upper} AND {where}".encode()
                    )
                deleted += done.rowcount
                step()
    return deleted


def forget_ranges(world: World, move: Move, shard: str, points: Multirange) -> None:
    """Take ranges that a shard does not serve out of its list, and let the operation go there.

    Guards are made to agree, and TRUNCATE is allowed again where no other operation is live.
    """
    with world.change(shard) as connection:
        connection.execute(
            "DELETE FROM shardwright.ranges WHERE keyspace = %s AND state <> 'open' "
            "AND int8multirange(points) <@ %s::int8multirange",
            (move.keyspace, points.literal()),
        )


def let_go(world: World) -> None:
    """The last thing done on the shards: the operation's token goes, and nobody can act in its name any more."""
    for shard in world.shard_names():
        connection = world.shard(shard)
        held = connection.execute(
            "SELECT FROM shardwright.control WHERE operation = %s", (world.operation.id,)
        ).fetchone()
        if held is None:
            continue  # an earlier try came this far
        with world.change(shard):
            connection.execute("DELETE FROM shardwright.control WHERE operation = %s", (world.operation.id,))
            for keyspace in world.keyspaces:
                fence.sync_guards(connection, world.guarded(keyspace))
