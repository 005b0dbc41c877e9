"""Operations in the catalog: made, leased, advanced by compare-and-set, and their history.

Phase and shard map change in one transaction, or not at all. Every write names the operation's ``op_epoch``: who was
superseded writes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shardwright import errors
from shardwright.catalog import maps
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap


@dataclass(frozen=True)
class Batch:
    """The points of one move that are switched together."""

    number: int
    points: Multirange
    #: ``source`` or ``target``: who serves them by the map.
    served_by: str


@dataclass(frozen=True)
class Move:
    """The part of an operation with one source and one target."""

    id: int
    operation: int
    #: The keyspace's name.
    keyspace: str
    source: str
    target: str
    points: Multirange
    rows_total: int
    bytes_total: int
    rows_done: int
    bytes_done: int
    copy_seconds: float
    #: Bytes of WAL that the serving side has written and the other has not applied; None where no stream runs.
    lag_bytes: int | None
    batches: tuple[Batch, ...]

    def served_by_target(self) -> Multirange:
        """The points that the target serves by the map."""
        return Multirange(tuple(p for b in self.batches if b.served_by == "target" for p in b.points.pieces))

    def served_by_source(self) -> Multirange:
        """The points that the source serves by the map."""
        return self.points - self.served_by_target()


@dataclass(frozen=True)
class Operation:
    """One reshard."""

    id: int
    request: Mapping[str, Any]
    settings: Mapping[str, Any]
    phase: str
    goal: str
    op_epoch: int
    lease_holder: str | None
    #: Seconds until the lease ends, by the catalog's clock; negative when it has ended, None without a lease.
    lease_left: float | None
    error: Mapping[str, Any] | None
    #: How often it was taken from a worker that had not given it back.
    resumed: int
    started_by: str
    created_at: datetime.datetime
    finished_at: datetime.datetime | None
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Handover:
    """One hand-over of a batch, forward or back."""

    move: int
    batch: int
    direction: str
    attempts: int
    map_version: int | None
    pause_ms: float | None
    at: datetime.datetime


@dataclass(frozen=True)
class NewMove:
    """A move that is about to be recorded."""

    keyspace_id: int
    source: str
    target: str
    points: Multirange
    batches: tuple[Multirange, ...]
    rows_total: int
    bytes_total: int


def create(
    connection: psycopg.Connection,
    request: Mapping[str, Any],
    settings: Mapping[str, Any],
    moves: Sequence[NewMove],
    map_version: int,
) -> int:
    """Record an operation in phase `planned` and claim its points.

    Args:
        connection: to the catalog.
        request: what was asked for.
        settings: how to work.
        moves: at least one.
        map_version: the version the plan was made from.

    Returns:
        The operation's number.

    Raises:
        OperationConflict: a live operation has claimed some of the points, or the map changed since.
    """
    with connection.transaction():
        current = connection.execute("SELECT max(version) FROM shardwright.map_versions").fetchone()
        if current is None or current[0] != map_version:
            raise errors.OperationConflict(
                f"the shard map changed since the plan was made: version {current and current[0]}, not {map_version}",
                fix="make the plan again",
            )
        row = connection.execute(
            "INSERT INTO shardwright.operations (request, settings) VALUES (%s, %s) RETURNING id",
            (json.dumps(request), json.dumps(settings)),
        ).fetchone()
        assert row is not None
        operation: int = row[0]
        for move in moves:
            try:
                connection.execute(
                    "INSERT INTO shardwright.claims (operation, keyspace, points) "
                    "SELECT %s, %s, unnest(%s::int8multirange)",
                    (operation, move.keyspace_id, move.points.literal()),
                )
            except psycopg.errors.ExclusionViolation:
                raise errors.OperationConflict(
                    f"a live operation already moves some of {move.points.literal()} from {move.source}",
                    fix="shardwright reshard status",
                ) from None
            row = connection.execute(
                "INSERT INTO shardwright.moves (operation, keyspace, source, target, points, rows_total, bytes_total) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
                (
                    operation,
                    move.keyspace_id,
                    move.source,
                    move.target,
                    move.points.literal(),
                    move.rows_total,
                    move.bytes_total,
                ),
            ).fetchone()
            assert row is not None
            for number, points in enumerate(move.batches, start=1):
                connection.execute(
                    "INSERT INTO shardwright.batches (move, number, points) VALUES (%s, %s, %s)",
                    (row[0], number, points.literal()),
                )
        connection.execute("SELECT pg_notify('shardwright_operation', %s)", (str(operation),))
    return operation


def get(connection: psycopg.Connection, operation: int) -> Operation:
    """One operation with its moves and batches.

    Raises:
        UnknownOperation: there is none of that number.
    """
    found = _load(connection, "WHERE o.id = %s", (operation,))
    if not found:
        raise errors.UnknownOperation(f"there is no operation {operation}", fix="shardwright reshard status")
    return found[0]


def list_live(connection: psycopg.Connection) -> list[Operation]:
    """The operations that have not ended, oldest first."""
    return _load(connection, "WHERE o.phase NOT IN ('done', 'aborted')", ())


def list_all(connection: psycopg.Connection, limit: int = 20) -> list[Operation]:
    """The newest operations, newest first."""
    return _load(connection, "", ())[::-1][:limit]


def _load(connection: psycopg.Connection, where: str, values: tuple[Any, ...]) -> list[Operation]:
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        # one snapshot for all: batches and phase must belong together
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute(
            "SELECT o.*, extract(epoch FROM o.lease_until - clock_timestamp())::float8 AS lease_left "
            f"FROM shardwright.operations o {where} ORDER BY o.id".encode(),
            values,
        )
        rows = cursor.fetchall()
        cursor.execute(
            "SELECT m.*, m.points::text AS points_text, k.name AS keyspace_name FROM shardwright.moves m "
            "JOIN shardwright.keyspaces k ON k.id = m.keyspace WHERE m.operation = ANY(%s) ORDER BY m.id",
            ([row["id"] for row in rows],),
        )
        moves = cursor.fetchall()
        cursor.execute(
            "SELECT move, number, points::text AS points_text, served_by FROM shardwright.batches "
            "WHERE move = ANY(%s) ORDER BY move, number",
            ([move["id"] for move in moves],),
        )
        batches = cursor.fetchall()
    return [
        Operation(
            **{name: row[name] for name in _OPERATION_COLUMNS},
            moves=tuple(_move(move, batches) for move in moves if move["operation"] == row["id"]),
        )
        for row in rows
    ]


_OPERATION_COLUMNS = (
    "id", "request", "settings", "phase", "goal", "op_epoch", "lease_holder", "lease_left", "error", "resumed",
    "started_by", "created_at", "finished_at",
)  # fmt: skip
_MOVE_COLUMNS = (
    "id", "operation", "source", "target", "rows_total", "bytes_total", "rows_done", "bytes_done", "copy_seconds",
    "lag_bytes",
)  # fmt: skip


def _move(row: Mapping[str, Any], batches: Sequence[Mapping[str, Any]]) -> Move:
    return Move(
        **{name: row[name] for name in _MOVE_COLUMNS},
        keyspace=row["keyspace_name"],
        points=Multirange.parse(row["points_text"]),
        batches=tuple(
            Batch(batch["number"], Multirange.parse(batch["points_text"]), batch["served_by"])
            for batch in batches
            if batch["move"] == row["id"]
        ),
    )


# ------------------------------------------------------------------ lease and goal


def take_over(
    connection: psycopg.Connection,
    operation: int,
    holder: str,
    seconds: float,
    *,
    force: bool = False,
    gone: str | None = None,
) -> Operation:
    """Take an operation's lease and raise its op_epoch, so that whoever held it can change nothing any more.

    The error that an earlier try left is forgotten: it is this try that counts now.

    Args:
        connection: to the catalog.
        operation: its number.
        holder: who takes it, as shown to operators.
        seconds: how long the lease lasts unless renewed.
        force: take it though another's lease has not ended (an operator's `resume`).
        gone: a holder that is known to be dead; its lease need not end.

    Raises:
        LeaseHeld: another holder's lease has not ended.
        UnknownOperation: there is none of that number.
    """
    row = connection.execute(
        "UPDATE shardwright.operations SET op_epoch = op_epoch + 1, lease_holder = %(holder)s, "
        "lease_until = clock_timestamp() + make_interval(secs => %(seconds)s), "
        "resumed = resumed + (lease_holder IS NOT NULL)::int, error = NULL "
        "WHERE id = %(id)s AND (%(force)s OR lease_until IS NULL OR lease_until < clock_timestamp() "
        "OR lease_holder = %(gone)s) RETURNING id",
        {"id": operation, "holder": holder, "seconds": seconds, "force": force, "gone": gone},
    ).fetchone()
    found = get(connection, operation)
    if row is None:
        raise errors.LeaseHeld(
            f"operation {operation} is worked on by {found.lease_holder} (its lease ends in {found.lease_left or 0:.0f} s)",
            fix=f"wait, or: shardwright reshard resume {operation} --take-over",
        )
    return found


def renew(connection: psycopg.Connection, operation: int, op_epoch: int, seconds: float) -> None:
    """Lengthen the lease.

    Raises:
        Superseded: another worker has it.
    """
    done = connection.execute(
        "UPDATE shardwright.operations SET lease_until = clock_timestamp() + make_interval(secs => %s) "
        "WHERE id = %s AND op_epoch = %s",
        (seconds, operation, op_epoch),
    )
    if done.rowcount != 1:
        raise _superseded(operation)


def release(connection: psycopg.Connection, operation: int, op_epoch: int) -> None:
    """Give the lease back, so that the next worker need not wait for its end; nothing if it was taken over."""
    connection.execute(
        "UPDATE shardwright.operations SET lease_holder = NULL, lease_until = NULL WHERE id = %s AND op_epoch = %s",
        (operation, op_epoch),
    )


def set_goal(connection: psycopg.Connection, operation: int, phase: str, goal: str) -> None:
    """Set what an operation shall reach, if it still stands in `phase`.

    Raises:
        OperationConflict: it went on in the meantime.
    """
    done = connection.execute(
        "UPDATE shardwright.operations SET goal = %s, error = NULL WHERE id = %s AND phase = %s",
        (goal, operation, phase),
    )
    if done.rowcount != 1:
        raise errors.OperationConflict(
            f"operation {operation} left phase {phase} in the meantime", fix="look at its status and call again"
        )
    connection.execute("SELECT pg_notify('shardwright_operation', %s)", (str(operation),))


def advance(
    connection: psycopg.Connection,
    operation: int,
    op_epoch: int,
    phase: str,
    event: str,
    detail: Mapping[str, Any] | None = None,
) -> str:
    """Go to the next phase, by compare-and-set on phase and op_epoch.

    Returns:
        The new phase.

    Raises:
        Superseded: another worker took the operation over.
    """
    row = connection.execute(
        "SELECT shardwright.advance(%s, %s, %s, %s, %s::jsonb)",
        (operation, phase, event, op_epoch, json.dumps(detail or {})),
    ).fetchone()
    if row is None or row[0] is None:
        raise _superseded(operation)
    return str(row[0])


def record_error(connection: psycopg.Connection, operation: int, op_epoch: int, error: Mapping[str, Any]) -> None:
    """Keep the last failure with the operation; nothing if it was taken over."""
    connection.execute(
        "UPDATE shardwright.operations SET error = %s::jsonb || jsonb_build_object('at', clock_timestamp()) "
        "WHERE id = %s AND op_epoch = %s",
        (json.dumps(error), operation, op_epoch),
    )


def record_progress(connection: psycopg.Connection, move: int, **values: float | None) -> None:
    """Write a move's progress: rows_done, bytes_done, rows_total, bytes_total, copy_seconds, lag_bytes."""
    names = ", ".join(f"{name} = %({name})s" for name in values)
    connection.execute(
        f"UPDATE shardwright.moves SET {names}, progress_at = clock_timestamp() WHERE id = %(move)s".encode(),
        {**values, "move": move},
    )


# ------------------------------------------------------------------ the map


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
        _check_token(connection, operation, op_epoch)
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
        token = _ask_token(connection, operation.id)
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
            raise _superseded(operation.id)
        if not going or {row[0] for row in moved.fetchall()} != going:
            raise errors.InvariantFailed(f"{giver} does not own {batch.points.literal()} by the shard map")
    return written.version


def record_handover(
    connection: psycopg.Connection,
    move: int,
    batch: int,
    direction: str,
    attempts: int,
    map_version: int | None,
    pause_ms: float | None,
) -> None:
    """Keep how long one hand-over paused writes, in milliseconds."""
    connection.execute(
        "INSERT INTO shardwright.handovers (move, batch, direction, attempts, map_version, pause_ms) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        (move, batch, direction, attempts, map_version, pause_ms),
    )


def list_handovers(connection: psycopg.Connection, operation: int) -> list[Handover]:
    """The hand-overs of an operation, oldest first."""
    rows = connection.execute(
        "SELECT h.move, h.batch, h.direction, h.attempts, h.map_version, h.pause_ms, h.at FROM shardwright.handovers h "
        "JOIN shardwright.moves m ON m.id = h.move WHERE m.operation = %s ORDER BY h.id",
        (operation,),
    ).fetchall()
    return [Handover(*row) for row in rows]


def _check_token(connection: psycopg.Connection, operation: int, op_epoch: int) -> None:
    row = _ask_token(connection, operation).fetchone()
    if row is None or row[0] != op_epoch:
        raise _superseded(operation)


def _ask_token(connection: psycopg.Connection, operation: int) -> psycopg.Cursor[tuple[Any, ...]]:
    return connection.execute(
        "SELECT op_epoch, phase FROM shardwright.operations WHERE id = %s FOR UPDATE", (operation,)
    )


def _superseded(operation: int) -> errors.Superseded:
    return errors.Superseded(
        f"operation {operation} was taken over by another worker", fix=f"shardwright reshard watch {operation}"
    )


# ------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class Certificate:
    """Proof that two sides agreed on a move's rows at one point in time."""

    move: int
    direction: str
    points: Multirange
    rows: int
    #: Sum of the rows' 64-bit hashes.
    checksum: int
    chunks: int
    differing: int
    detail: Mapping[str, Any]
    at: datetime.datetime | None = None
    #: Seconds since it was made, by the catalog's clock.
    age_seconds: float = 0.0


def record_certificate(connection: psycopg.Connection, made: Certificate) -> None:
    """Keep a certificate."""
    connection.execute(
        "INSERT INTO shardwright.certificates (move, direction, points, rows, checksum, chunks, differing, detail) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            made.move,
            made.direction,
            made.points.literal(),
            made.rows,
            made.checksum,
            made.chunks,
            made.differing,
            json.dumps(made.detail),
        ),
    )


def latest_certificate(connection: psycopg.Connection, move: int, direction: str) -> Certificate | None:
    """The newest certificate of a move in one direction, or None."""
    row = connection.execute(
        "SELECT move, direction, points::text, rows, checksum, chunks, differing, detail, at, "
        "extract(epoch FROM clock_timestamp() - at)::float8 FROM shardwright.certificates "
        "WHERE move = %s AND direction = %s ORDER BY id DESC LIMIT 1",
        (move, direction),
    ).fetchone()
    if row is None:
        return None
    return Certificate(
        row[0], row[1], Multirange.parse(row[2]), row[3], int(row[4]), row[5], row[6], row[7], row[8], row[9]
    )
