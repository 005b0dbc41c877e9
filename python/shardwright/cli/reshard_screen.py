"""How a plan and the status of an operation look to people: as a screen that is renewed, and as one line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from shardwright.cli.output import Part, Table, Word, bad, good, warn
from shardwright.reshard.phases import Goal, Phase, next_event

if TYPE_CHECKING:
    from shardwright.reshard.plan import Plan
    from shardwright.reshard.status import MoveStatus, Status

#: The steps on the way to `done`, as they are shown.
_STEPS = ("prepare", "copy", "catch up and verify", "switch", "clean up")
#: In each phase: how many steps are done, and whether the next one is under way.
_AT = {
    Phase.PLANNED: (0, False),
    Phase.PREPARED: (1, False),
    Phase.COPYING: (1, True),
    Phase.CATCHING_UP: (2, True),
    Phase.VERIFIED: (3, False),
    Phase.SWITCHING: (3, True),
    Phase.SWITCHED: (4, False),
    Phase.REVERTING: (3, True),
    Phase.REVERTED: (3, False),
    Phase.CLEANING: (4, True),
    Phase.DONE: (5, False),
}
#: Nothing new for this long is worth a word while somebody works.
_QUIET_SECONDS = 5.0


class Pace:
    """Remembers when something last changed, so that a standstill can be told from work."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: object = None
        self._since = time.monotonic()

    def quiet_for(self, status: Status) -> float:
        """Seconds since the last change of anything that shows work."""
        now = time.monotonic()
        seen = (status.phase, status.moves, len(status.handovers), len(status.certificates), status.worker)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since


# ------------------------------------------------------------------ status


def screen(status: Status, quiet: float = 0.0) -> list[Part]:
    """An operation as a screen.

    Args:
        status: how it does.
        quiet: seconds since anything changed.
    """
    parts: list[Part] = [_headline(status), _steps(status), status.sentence, ""]
    parts.append(
        Table(
            ("keyspace", "from", "to", "rows", "of", "copied", "rows/s", "size/s", "lag", "switched"),
            [_move_row(move) for move in status.moves],
        )
    )
    if status.phase == Phase.COPYING:
        parts.append(_copy_line(status, quiet))
    parts += _handover_lines(status)
    for made in status.certificates:
        agree = good("agree") if not made.differing else bad(f"DIFFER in {made.differing} chunks")
        at = _seconds(made.age_seconds)
        parts.append(Word(f"compared: move {made.move} {made.direction}, {made.rows} rows {agree}, {at} ago"))
    if status.error:
        parts.append(bad(f"error[{status.error.get('code', '')}] {status.error.get('message', '')}"))
    if status.left_behind:
        parts.append(f"on the shards until finish or abort: {', '.join(status.left_behind)}")
    return parts


def line(status: Status, quiet: float = 0.0) -> str:
    """An operation in one line, for pipes and logs."""
    phase = Phase(status.phase)
    said = f"operation {status.operation}: {_words(phase)}"
    if phase is Phase.COPYING:
        said += f", {_copy_line(status, quiet)}"
    elif phase is Phase.CATCHING_UP:
        lags = [move.lag_bytes for move in status.moves if move.lag_bytes is not None]
        said += f", {size(sum(lags))} behind" if lags else ""
    elif phase in (Phase.SWITCHING, Phase.SWITCHED, Phase.REVERTING):
        switched, batches = _batches(status.moves)
        said += f", {switched} of {batches} batches on the target"
        pauses = [h.pause_ms for h in status.handovers if h.pause_ms is not None and h.map_version is not None]
        said += f", last pause {pauses[-1]:.1f} ms" if pauses else ""
    if status.error:
        said += f"; error[{status.error.get('code', '')}] {status.error.get('message', '')}"
    elif not status.worker and not at_rest(status):
        said += "; waits for a worker"
    return said


def at_rest(status: Status) -> bool:
    """Whether an operation has reached what was wanted of it."""
    return next_event(Phase(status.phase), Goal(status.goal)) is None


def what_stands(status: Status) -> list[str]:
    """After a failure: what an operator must know before the next command, in sentences."""
    switched, batches = _batches(status.moves)
    said = [f"operation {status.operation} is {_words(Phase(status.phase))}: {status.sentence}"]
    targets = ", ".join(sorted({move.target for move in status.moves}))
    sources = ", ".join(sorted({move.source for move in status.moves}))
    if switched == 0:
        said.append(f"every row is owned by whom it was owned before ({sources})")
    elif switched == batches:
        said.append(f"all that moves is owned by {targets}")
    else:
        said.append(f"{switched} of {batches} batches are owned by {targets}, the others by {sources}")
    if status.left_behind:
        said.append(f"left until finish or abort: {', '.join(status.left_behind)}")
    if status.worker:
        said.append(f"{status.worker} works on it")
    return said


def listed(found: Sequence[Status]) -> Table:
    """Operations as a table."""
    return Table(
        ("operation", "phase", "goal", "asked for", "rows", "by", "worker"),
        [
            (
                status.operation,
                bad(status.phase) if status.error else good(status.phase) if at_rest(status) else warn(status.phase),
                status.goal,
                asked_for(status),
                sum(move.rows_total for move in status.moves),
                status.started_by,
                status.worker or "-",
            )
            for status in found
        ],
        empty="no operation",
    )


def asked_for(status: Status) -> str:
    """The request in the words of the command line."""
    words = []
    for name, value in status.request.items():
        if isinstance(value, dict):
            value = ",".join(f"{shard}={weight}" for shard, weight in value.items())
        words.append(f"{name} {value}")
    return " ".join(words)


def _headline(status: Status) -> str:
    at = f"{status.started_at:%Y-%m-%d %H:%M:%S} UTC"
    said = f"operation {status.operation}  {asked_for(status)}  goal {status.goal}  started {at} by {status.started_by}"
    if status.worker:
        said += f"  worker {status.worker}"
    elif not at_rest(status):
        said += "  nobody works on it"
    if status.resumed:
        said += f"  resumed {status.resumed}x"
    return said


def _steps(status: Status) -> str:
    phase = Phase(status.phase)
    if phase is Phase.ABORTING:
        return "[<<] abort"
    if phase is Phase.ABORTED:
        return "[ok] aborted"
    done, under_way = _AT[phase]
    back = phase is Phase.REVERTING
    boxes = []
    for number, step in enumerate(_STEPS):
        box = "ok" if number < done else ("<<" if back else ">>") if number == done and under_way else "  "
        boxes.append(f"[{box}] {step}")
    return "  ".join(boxes)


def _move_row(move: MoveStatus) -> tuple[object, ...]:
    return (
        move.keyspace,
        move.source,
        move.target,
        move.rows_done,
        move.rows_total,
        size(move.bytes_done),
        None if move.rows_per_s is None else round(move.rows_per_s),
        None if move.bytes_per_s is None else size(move.bytes_per_s),
        None if move.lag_bytes is None else size(move.lag_bytes),
        f"{move.batches_switched}/{move.batches}",
    )


def _copy_line(status: Status, quiet: float) -> str:
    done, total = sum(m.bytes_done for m in status.moves), sum(m.bytes_total for m in status.moves)
    share = done / total if total else 0.0
    bar = f"{'#' * round(share * 20):-<20}"
    rate = sum(m.bytes_per_s or 0 for m in status.moves)
    said = f"{bar} {share * 100:.1f} % of {size(total)}, {size(rate)}/s on average"
    if quiet >= _QUIET_SECONDS:
        # an ETA while nothing moves would be a lie
        return f"{said}, nothing new for {_seconds(quiet)}"
    if status.eta.state == "ready" and status.eta.seconds is not None:
        return f"{said}, ETA {_seconds(status.eta.seconds)}"
    return f"{said}, {'keys are being built' if status.eta.state == 'due' else f'ETA {status.eta.state}'}"


def _handover_lines(status: Status) -> Iterator[str]:
    for direction, verb in (("forward", "handed over"), ("back", "handed back")):
        made = [h for h in status.handovers if h.direction == direction]
        pauses = [h.pause_ms for h in made if h.map_version is not None and h.pause_ms is not None]
        if pauses:
            each = ", ".join(f"{pause:.1f}" for pause in pauses[-8:])
            yield (
                f"{verb}: {len(pauses)} batches, writes paused for {each} ms"
                f" (median {statistics.median(pauses):.1f}, max {max(pauses):.1f})"
            )
        given_up = sum(h.map_version is None for h in made)
        if given_up:
            yield warn(f"{verb}: {given_up} tries were given up, and the batch stayed where it was")


def _batches(moves: Sequence[MoveStatus]) -> tuple[int, int]:
    return sum(move.batches_switched for move in moves), sum(move.batches for move in moves)


def _words(phase: Phase) -> str:
    return phase.value.replace("_", " ")


# ------------------------------------------------------------------ plan


def plan_screen(plan: Plan) -> list[Part]:
    """A plan as a screen."""
    parts: list[Part] = [
        f"plan {plan.fingerprint}, valid while map version {plan.map_version} stands",
        "",
        Table(
            ("keyspace", "from", "to", "points", "rows", "size", "batches (points)"),
            [
                (
                    move.keyspace,
                    move.source,
                    move.target,
                    _points(move.points.count(), len(move.points.pieces)),
                    move.rows,
                    size(move.bytes),
                    ", ".join(_count(batch.count()) for batch in move.batches),
                )
                for move in plan.moves
            ],
        ),
    ]
    for keyspace, shares in plan.shares.items():
        parts += [
            "",
            Table(
                (f"points of {keyspace}", "before", "after"),
                [
                    (shard if before == after else warn(shard), _count(before), _count(after))
                    for shard, (before, after) in shares.items()
                ],
            ),
        ]
    rows, amount = sum(move.rows for move in plan.moves), sum(move.bytes for move in plan.moves)
    about = f", about {_seconds(plan.estimated_seconds)} to copy" if plan.estimated_seconds is not None else ""
    return [*parts, "", f"about {rows} rows and {size(amount)} by the servers' statistics{about}; nothing was changed"]


def _points(count: int | None, pieces: int) -> str:
    return f"{_count(count)} in {pieces} pieces" if pieces > 1 else _count(count)


def _count(points: int | None) -> str:
    return "unbounded" if points is None else str(points)


# ------------------------------------------------------------------ amounts


def size(amount: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
