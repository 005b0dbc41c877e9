"""The one value that says how an operation does; `watch`, `--json` and everything else render it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from shardwright.catalog import evidence, operations
from shardwright.catalog.evidence import Handover
from shardwright.catalog.operations import Operation
from shardwright.reshard.phases import OWNS, REVERSE, SENTENCES, Goal, Phase, Resource, allowed_goals, next_event


@dataclass(frozen=True)
class MoveStatus:
    """How one move does."""

    move: int
    keyspace: str
    points: str
    source: str
    target: str
    rows_done: int
    rows_total: int
    bytes_done: int
    bytes_total: int
    #: Average since the copy began; None before.
    rows_per_s: float | None
    bytes_per_s: float | None
    lag_bytes: int | None
    batches_switched: int
    batches: int
    #: Windows whose time was over, compared right after they were copied.
    windows_checked: int


@dataclass(frozen=True)
class Eta:
    """When the copy will be done. `state` is none, measuring, ready or due; `seconds` is given when it is ready."""

    state: str
    seconds: float | None = None


@dataclass(frozen=True)
class CertificateStatus:
    """The newest comparison of one move in one direction."""

    move: int
    direction: str
    rows: int
    differing: int
    age_seconds: float


@dataclass(frozen=True)
class Status:
    """How an operation does."""

    operation: int
    phase: str
    sentence: str
    goal: str
    started_by: str
    started_at: datetime.datetime
    request: Mapping[str, Any]
    moves: tuple[MoveStatus, ...]
    eta: Eta
    handovers: tuple[Handover, ...]
    certificates: tuple[CertificateStatus, ...]
    worker: str | None
    #: How often a worker died or was superseded.
    resumed: int
    error: Mapping[str, Any] | None
    #: What of the operation is on the shards now, and goes with finish or abort.
    left_behind: tuple[str, ...]
    next_steps: tuple[str, ...]
    #: (phase, seconds spent getting there) of the phases passed.
    history: tuple[tuple[str, float | None], ...] = field(default=())

    @property
    def rows_done(self) -> int:
        """Rows copied so far."""
        return sum(move.rows_done for move in self.moves)

    def as_json(self) -> dict[str, Any]:
        """The status as JSON-ready data."""
        return {
            "operation": self.operation,
            "phase": self.phase,
            "sentence": self.sentence,
            "goal": self.goal,
            "started_by": self.started_by,
            "started_at": self.started_at.isoformat(),
            "request": dict(self.request),
            "moves": [vars(move) for move in self.moves],
            "eta": {"state": self.eta.state, "seconds": self.eta.seconds},
            "handovers": [
                {
                    "move": h.move,
                    "batch": h.batch,
                    "direction": h.direction,
                    "attempts": h.attempts,
                    "map_version": h.map_version,
                    "pause_ms": h.pause_ms,
                    "at": h.at.isoformat(),
                }
                for h in self.handovers
            ],
            "certificates": [vars(c) for c in self.certificates],
            "worker": self.worker,
            "resumed": self.resumed,
            "error": dict(self.error) if self.error else None,
            "left_behind": list(self.left_behind),
            "history": [{"phase": phase, "seconds": seconds} for phase, seconds in self.history],
            "next_steps": list(self.next_steps),
        }


def of(catalog: psycopg.Connection, operation: int) -> Status:
    """The status of an operation.

    Raises:
        UnknownOperation: there is none of that number.
    """
    found = operations.get(catalog, operation)
    phase = Phase(found.phase)
    certificates = []
    for move in found.moves:
        for direction in ("forward", "back"):
            made = evidence.latest_certificate(catalog, move.id, direction)
            if made is not None:
                certificates.append(
                    CertificateStatus(move.id, direction, made.rows, made.differing, round(made.age_seconds, 1))
                )
    events = catalog.execute(
        "SELECT to_phase, (detail ->> 'seconds')::float8 FROM shardwright.phase_events WHERE operation = %s ORDER BY id",
        (operation,),
    ).fetchall()
    checked = evidence.count_windows(catalog, operation)
    moves = tuple(
        MoveStatus(
            move=move.id,
            keyspace=move.keyspace,
            points=move.points.literal(),
            source=move.source,
            target=move.target,
            rows_done=move.rows_done,
            rows_total=max(move.rows_total, move.rows_done),
            bytes_done=move.bytes_done,
            bytes_total=max(move.bytes_total, move.bytes_done),
            rows_per_s=_rate(move.rows_done, move.copy_seconds),
            bytes_per_s=_rate(move.bytes_done, move.copy_seconds),
            lag_bytes=move.lag_bytes,
            batches_switched=sum(batch.served_by == "target" for batch in move.batches),
            batches=len(move.batches),
            windows_checked=checked.get(move.id, 0),
        )
        for move in found.moves
    )
    alive = found.lease_left is not None and found.lease_left > 0
    return Status(
        operation=found.id,
        phase=phase.value,
        sentence=SENTENCES[phase],
        goal=found.goal,
        started_by=found.started_by,
        started_at=found.created_at,
        request=found.request,
        moves=moves,
        eta=_eta(phase, moves),
        handovers=tuple(evidence.list_handovers(catalog, operation)),
        certificates=tuple(certificates),
        worker=found.lease_holder if alive else None,
        resumed=found.resumed,
        error=found.error,
        left_behind=tuple(sorted(resource.value for resource in _left_behind(phase, [row[0] for row in events]))),
        next_steps=tuple(_next_steps(found, phase, alive)),
        history=tuple((row[0], row[1]) for row in events),
    )


def _left_behind(phase: Phase, passed: list[str]) -> frozenset[Resource]:
    """What may be on the shards: a way back only where a switch was begun, copies only where a copy was."""
    may_be = OWNS[phase]
    if Phase.SWITCHING not in passed:
        may_be -= REVERSE
    if Phase.COPYING not in passed:
        may_be -= {Resource.COPIES, Resource.FORWARD_SLOT, Resource.FORWARD_SUBSCRIPTION}
    return may_be


def _rate(amount: int, seconds: float) -> float | None:
    return round(amount / seconds, 1) if seconds > 0.2 and amount else None


def _eta(phase: Phase, moves: tuple[MoveStatus, ...]) -> Eta:
    if phase is not Phase.COPYING:
        return Eta("none")
    done, total = sum(move.bytes_done for move in moves), sum(move.bytes_total for move in moves)
    rates = [move.bytes_per_s for move in moves if move.bytes_per_s]
    # before one hundredth is done a rate says nothing
    if not rates or done * 100 < total:
        return Eta("measuring")
    if done >= total:
        return Eta("due", 0.0)
    return Eta("ready", round((total - done) / sum(rates), 1))


def _next_steps(operation: Operation, phase: Phase, alive: bool) -> list[str]:
    number = operation.id
    on_the_way = next_event(phase, Goal(operation.goal)) is not None
    if on_the_way and alive:
        return [f"shardwright reshard watch {number}"]
    if on_the_way:
        steps = [f"shardwright reshard resume {number}"]
        if Goal.ABORTED in allowed_goals(phase):
            steps.append(f"shardwright reshard abort {number}")
        return steps
    return {
        Phase.VERIFIED: [f"shardwright reshard switch {number}", f"shardwright reshard abort {number}"],
        Phase.SWITCHED: [f"shardwright reshard finish {number}", f"shardwright reshard rollback {number}"],
        Phase.REVERTED: [f"shardwright reshard switch {number}", f"shardwright reshard abort {number}"],
        Phase.DONE: ["shardwright status"],
        Phase.ABORTED: ["shardwright status"],
    }.get(phase, [f"shardwright reshard status {number}"])
