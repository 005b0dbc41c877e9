"""Operations in the catalog: made, leased, advanced by compare-and-set, and their history.

Phase and shard map change in one transaction, or not at all. Every write names the operation's ``op_epoch``: who was
superseded writes nothing.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shardwright import errors
from shardwright.routing.multirange import Multirange


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
        raise superseded(operation)


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
        raise superseded(operation)
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


def check_token(connection: psycopg.Connection, operation: int, op_epoch: int) -> None:
    """Hold the operation's row until the transaction ends, if its op_epoch is still the caller's.

    Raises:
        Superseded: another worker took the operation over.
    """
    row = ask_token(connection, operation).fetchone()
    if row is None or row[0] != op_epoch:
        raise superseded(operation)


def ask_token(connection: psycopg.Connection, operation: int) -> psycopg.Cursor[tuple[Any, ...]]:
    """Hold the operation's row until the transaction ends; the cursor's row is (op_epoch, phase)."""
    return connection.execute(
        "SELECT op_epoch, phase FROM shardwright.operations WHERE id = %s FOR UPDATE", (operation,)
    )


def superseded(operation: int) -> errors.Superseded:
    """The error of a worker whose operation was taken over."""
    return errors.Superseded(
        f"operation {operation} was taken over by another worker", fix=f"shardwright reshard watch {operation}"
    )
