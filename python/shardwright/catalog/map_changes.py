"""Changes of the shard map that an operation makes: cutting ranges at batch borders, and giving a batch away.

The shards know a new range before the map names it; a batch's new owner is committed with the operation's own row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from shardwright import errors
from shardwright.catalog import maps
from shardwright.catalog.operations import Batch, Move, Operation, ask_token, check_token, superseded
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap


@dataclass(frozen=True)
class Cut:
    """One range that is cut into new ones."""

    old_id: int
    #: The new ranges, as (id, piece); the ids are reserved in the catalog, the ranges not yet written.
    parts: tuple[tuple[int, Multirange], ...]


def reserve_cuts(
    connection: psycopg.Connection, keyspace_id: int, shard: str, borders: Sequence[Multirange]
) -> list[Cut]:
    """Find which of a shard's ranges must be cut so that each set of `borders` is made of whole ranges.

    Ids are reserved so that the shard can know the new ranges before the shard map names them. Nothing is written.
    """
    rows = connection.execute(
        "SELECT id, int8multirange(points)::text FROM shardwright.ranges WHERE keyspace = %s AND shard = %s ORDER BY points",
        (keyspace_id, shard),
    ).fetchall()
    cuts = []
    for number, literal in rows:
        parts = [Multirange.parse(literal)]
        for border in borders:
            parts = [part for whole in parts for part in (whole & border, whole - border) if part]
        pieces = sorted(
            (piece for part in parts for piece in part.pieces), key=lambda piece: (piece[0] is not None, piece[0] or 0)
        )
        if len(pieces) > 1:
            ids = connection.execute(
                "SELECT nextval(pg_get_serial_sequence('shardwright.ranges', 'id'))::int FROM generate_series(1, %s)",
                (len(pieces),),
            ).fetchall()
            cuts.append(
                Cut(number, tuple((row[0], Multirange((piece,))) for row, piece in zip(ids, pieces, strict=True)))
            )
    return cuts


def commit_cuts(connection: psycopg.Connection, operation: int, op_epoch: int, cuts: Sequence[Cut]) -> None:
    """Write cuts into the shard map; owners stay.

    Raises:
        Superseded: another worker took the operation over.
        OperationConflict: one of the ranges changed since the ids were reserved.
    """
    if not cuts:
        return
    with connection.transaction():
        check_token(connection, operation, op_epoch)
        for cut in cuts:
            gone = connection.execute(
                "DELETE FROM shardwright.ranges WHERE id = %s RETURNING keyspace, shard", (cut.old_id,)
            ).fetchone()
            if gone is None:
                raise errors.OperationConflict(f"range {cut.old_id} changed meanwhile", fix="run the command again")
            for number, piece in cut.parts:
                connection.execute(
                    "INSERT INTO shardwright.ranges (id, keyspace, points, shard) OVERRIDING SYSTEM VALUE "
                    "SELECT %s, %s, unnest(%s::int8multirange), %s",
                    (number, gone[0], piece.literal(), gone[1]),
                )
        maps.write_version(connection, f"ranges cut for operation {operation}", operation)


def commit_batch(
    connection: psycopg.Connection, operation: Operation, move: Move, batch: Batch, shard_map: ShardMap, direction: str
) -> int:
    """Give a batch's ranges to the other side in the shard map: the only point of no return.

    Args:
        connection: to the catalog.
        operation: with the caller's op_epoch and the phase it stands in.
        move: whose batch.
        batch: what is handed over.
        shard_map: the newest map that the caller knows; where a newer one was written since, it is read anew.
        direction: ``forward`` or ``back``.

    Returns:
        The new map version.

    Raises:
        Superseded: another worker took the operation over; nothing was committed.
        InvariantFailed: the giver does not own the batch by the shard map; nothing was committed.
    """
    while True:
        try:
            return _commit_batch(connection, operation, move, batch, shard_map, direction)
        except psycopg.errors.UniqueViolation:
            newer = maps.load_map(connection)
            if newer.version <= shard_map.version:
                raise
            shard_map = newer


def _commit_batch(
    connection: psycopg.Connection, operation: Operation, move: Move, batch: Batch, shard_map: ShardMap, direction: str
) -> int:
    giver, taker = (move.source, move.target) if direction == "forward" else (move.target, move.source)
    going = {r.id for r in shard_map.ranges_of(move.keyspace) if not r.points() - batch.points}
    written = ShardMap(
        shard_map.version + 1,
        shard_map.keyspaces,
        tuple(dataclasses.replace(r, shard=taker) if r.id in going else r for r in shard_map.ranges),
    )
    # writers wait meanwhile: all is sent at once, and judged before the commit
    with connection.pipeline(), connection.transaction():
        token = ask_token(connection, operation.id)
        connection.execute("LOCK TABLE shardwright.map_versions IN SHARE ROW EXCLUSIVE MODE")
        moved = connection.execute(
            "UPDATE shardwright.ranges SET shard = %s WHERE id = ANY(%s) AND shard = %s RETURNING id",
            (taker, list(going), giver),
        )
        connection.execute(
            "UPDATE shardwright.batches SET served_by = %s WHERE move = %s AND number = %s",
            ("target" if direction == "forward" else "source", move.id, batch.number),
        )
        maps.put_version(
            connection,
            written,
            f"operation {operation.id}: batch {batch.number} of {giver} to {taker}",
            operation.id,
        )
        if token.fetchone() != (operation.op_epoch, operation.phase):
            raise superseded(operation.id)
        if not going or {row[0] for row in moved.fetchall()} != going:
            raise errors.InvariantFailed(f"{giver} does not own {batch.points.literal()} by the shard map")
    return written.version
