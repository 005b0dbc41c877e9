"""The demo's result: every number computed from histories, servers and the catalog; and how it is told."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardwright.demo.audit import Originals
from shardwright.reshard.status import Status
from shardwright.testing.checker import Verdict
from shardwright.testing.history import Operation

#: The library's clients; the others are `direct`, and the idle ones of both kinds.
LIBRARY = ("pinned", "run", "routed", "reader")


@dataclass(frozen=True)
class Result:
    """What the demo found. `ok` says whether every promise held."""

    postgres: str
    acknowledged_writes: int
    acknowledged_reads: int
    lost: int
    duplicated: int
    misrouted: int
    stale_reads: int
    failed_transactions: int
    direct_writes_refused: int
    rows_moved: int
    copy_rows_per_s: int
    pauses_ms: Sequence[float]
    verified: bool
    rolled_back: bool
    leftovers: Sequence[str]
    seconds: float
    #: What stands behind the counts of harm, for people.
    evidence: Sequence[str] = field(default=())
    #: Idle transactions: (opened, committed, refused).
    idle: tuple[int, int, int] = (0, 0, 0)
    slowest_write_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every promise held, and whether there was enough to hold it against."""
        harm = self.lost, self.duplicated, self.misrouted, self.stale_reads, self.failed_transactions
        tried = self.acknowledged_writes, self.acknowledged_reads, self.direct_writes_refused, self.rows_moved
        return not any(harm) and not self.leftovers and self.verified and self.rolled_back and all(tried)

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON-ready object."""
        return {
            "ok": self.ok,
            "postgres": self.postgres,
            "acknowledged_writes": self.acknowledged_writes,
            "acknowledged_reads": self.acknowledged_reads,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "misrouted": self.misrouted,
            "stale_reads": self.stale_reads,
            "failed_transactions": self.failed_transactions,
            "direct_writes_refused": self.direct_writes_refused,
            "rows_moved": self.rows_moved,
            "copy_rows_per_s": self.copy_rows_per_s,
            "write_pause_ms": {
                "median": round(statistics.median(self.pauses_ms), 1) if self.pauses_ms else None,
                "max": round(max(self.pauses_ms), 1) if self.pauses_ms else None,
                "batches": len(self.pauses_ms),
            },
            "verified": self.verified,
            "rolled_back": self.rolled_back,
            "leftovers": len(self.leftovers),
            "seconds": round(self.seconds, 1),
        }


def result(
    *,
    postgres: str,
    operations: Sequence[Operation],
    verdict: Verdict,
    originals: Originals,
    status: Status,
    rolled_back: bool,
    certificates: Sequence[tuple[int, str, int, int]],
    leftovers: Sequence[str],
    seconds: float,
) -> Result:
    """Compute the result.

    Args:
        postgres: version of the servers.
        operations: the merged history.
        verdict: of the checker over it.
        originals: how the rows of the data set fared.
        status: of the operation at its end.
        rolled_back: whether the shard map was seen to be as before in between.
        certificates: (move, direction, rows, differing) of every comparison that the operation made.
        leftovers: what stayed behind.
        seconds: since the start of the demo.
    """
    counts = verdict.counts
    forward = {move for move, direction, rows, _ in certificates if direction == "forward" and rows > 0}
    pauses = [one.pause_ms for one in status.handovers if one.pause_ms is not None and one.map_version is not None]
    idle = _outcomes(one for one in operations if one.process.startswith("idle-"))
    return Result(
        postgres=postgres,
        acknowledged_writes=verdict.acknowledged_writes,
        acknowledged_reads=verdict.acknowledged_reads,
        # A torn transaction has lost its other half; a phantom is there once more than it was acknowledged; an answer
        # that is no state of its key, and a count that no moment had, are not what a reader should have been told.
        lost=counts["lost"] + counts["torn"] + originals.missing,
        duplicated=counts["duplicated"] + counts["phantom"] + originals.surplus,
        misrouted=counts["misrouted"] + originals.misplaced,
        stale_reads=counts["stale"] + counts["forked"] + counts["miscounted"],
        failed_transactions=len(_transactions(one for one in operations if one.gave_up or one.outcome == "info")),
        direct_writes_refused=len(_transactions(one for one in operations if _refused_directly(one))),
        rows_moved=status.rows_done,
        copy_rows_per_s=_copy_rate(status),
        pauses_ms=pauses,
        verified=len(forward) == len(status.moves) and not any(differing for *_, differing in certificates),
        rolled_back=rolled_back,
        leftovers=leftovers,
        seconds=seconds,
        evidence=[
            *(f"{one.kind}: {one.key}: {one.message}" for one in verdict.evidence),
            *originals.evidence,
            *(f"left behind: {one}" for one in leftovers),
            *_failures(operations),
        ],
        idle=(len(idle), sum(one == "ok" for one in idle.values()), sum(one == "fail" for one in idle.values())),
        slowest_write_ms=max(
            (
                (one.returned - one.invoked) / 1e6
                for one in operations
                if one.writes and one.outcome == "ok" and one.process.startswith(LIBRARY)
            ),
            default=0.0,
        ),
    )


def _transactions(operations: Iterable[Operation]) -> set[tuple[str, int]]:
    return {(one.process, one.transaction) for one in operations}


def _outcomes(operations: Iterable[Operation]) -> dict[tuple[str, int], str]:
    return {(one.process, one.transaction): one.outcome for one in operations}


def _refused_directly(one: Operation) -> bool:
    """Whether a server refused a write of a client without the library: only those note the server that they are on."""
    return one.shard is not None and one.outcome == "fail" and (one.sqlstate or "").startswith("SH")


def _failures(operations: Iterable[Operation]) -> list[str]:
    seen: dict[tuple[str, int], str] = {}
    for one in operations:
        if one.gave_up or one.outcome == "info":
            word = "failed" if one.outcome == "fail" else "unknown"
            seen[one.process, one.transaction] = f"{word}: {one.process} {one.kind} {one.key}: {one.sqlstate}"
    return list(seen.values())[:20]


def _copy_rate(status: Status) -> int:
    """Rows a second of the whole copy; its moves are copied side by side, so the slowest one's time is that of all."""
    times = [move.rows_done / move.rows_per_s for move in status.moves if move.rows_per_s]
    return round(status.rows_done / max(times)) if times else 0


def told(made: Result) -> dict[str, object]:
    """The result for people: names and values, in the order of interest."""
    pauses = made.as_json()["write_pause_ms"]
    opened, committed, refused = made.idle
    return {
        "acknowledged": f"{made.acknowledged_writes:,} writes, {made.acknowledged_reads:,} reads",
        "lost": made.lost,
        "duplicated": made.duplicated,
        "misrouted": made.misrouted,
        "stale reads": made.stale_reads,
        "failed transactions": made.failed_transactions,
        "refused by the servers": f"{made.direct_writes_refused:,} writes of clients that know no shard map",
        "open across a switch": f"{opened} idle transactions: {committed} waited for, {refused} refused, none lost"
        if not made.lost
        else f"{opened} idle transactions: {committed} committed, {refused} refused",
        "moved": f"{made.rows_moved:,} rows at {made.copy_rows_per_s:,} rows/s",
        "write pause": f"median {pauses['median']} ms, max {pauses['max']} ms, {pauses['batches']} hand-overs of batches",
        "slowest write": f"{made.slowest_write_ms:.0f} ms, through the library, of all that were acknowledged",
        "verified": "every copy, before each switch" if made.verified else "NO",
        "rolled back": "once, and forward again" if made.rolled_back else "NO",
        "left behind": len(made.leftovers),
        "PostgreSQL": made.postgres,
        "seconds": f"{made.seconds:.1f}",
    }
