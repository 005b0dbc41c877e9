"""The result of the demo of partitions: every number read from clients, servers and the catalog; and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shardwright.demo.audit import Originals
from shardwright.demo.partitions.days import Days
from shardwright.demo.partitions.flights import Flights, during, longest
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.restoring import Compared
from shardwright.demo.partitions.traffic import Records


@dataclass(frozen=True)
class Step:
    """What the clients saw, and what one step cost them."""

    seconds: float
    #: Transactions that writers were told are done; those that failed, and the reader's.
    writes: int
    failed_writes: int
    #: Counts of the whole table; those that were not right.
    snapshots: int
    incomplete_snapshots: int
    #: The longest lock that stops writers or readers: as looked at in pg_locks, or as the step itself reports.
    longest_lock_ms: float
    #: The longest that PostgreSQL let a bystander wait for a lock, and the longest read as the bystander's clock has it.
    longest_bystander_wait_ms: float
    longest_bystander_read_ms: float

    def as_json(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "seconds": round(self.seconds, 1),
            "writes": self.writes,
            "failed_writes": self.failed_writes,
            "snapshots": self.snapshots,
            "incomplete_snapshots": self.incomplete_snapshots,
            "longest_lock_ms": round(self.longest_lock_ms, 1),
            "longest_bystander_wait_ms": round(self.longest_bystander_wait_ms, 1),
            "longest_bystander_read_ms": round(self.longest_bystander_read_ms, 1),
        }


@dataclass(frozen=True)
class Result:
    """What the demo found. `ok` says whether every promise held."""

    postgres: str
    shards: int
    days_simulated: int
    simulated_until: str
    rows_arrived: int
    windows_wrong: int
    rows_lost: int
    rows_doubled: int
    rows_misplaced: int
    dropped_early: int
    dropped_late: int
    archived_windows: int
    restored_rows: int
    restored_equal: bool
    flights: int
    #: Rows that were copied into months, and how many a second: in the copy alone, and in all that a split does.
    split_rows: int
    copied_per_s: int
    convert: Step
    split: Step
    reshard: Step
    #: Of all steps, and between them.
    incomplete_snapshots: int
    failed_writes: int
    moved_rows: int
    pauses_ms: Sequence[float]
    leftovers: Sequence[str]
    seconds: float
    #: What stands behind the counts of harm, for people.
    evidence: Sequence[str] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every promise held, and whether there was enough to hold it against."""
        harm = (
            self.windows_wrong,
            self.rows_lost,
            self.rows_doubled,
            self.rows_misplaced,
            self.dropped_early,
            self.dropped_late,
            self.incomplete_snapshots,
            self.failed_writes,
            len(self.leftovers),
        )
        steps = self.convert, self.split, self.reshard
        tried = (
            self.days_simulated,
            self.rows_arrived,
            self.archived_windows,
            self.restored_rows,
            self.split_rows,
            self.moved_rows,
            *(step.writes for step in steps),
            *(step.snapshots for step in steps),
        )
        return not any(harm) and self.restored_equal and all(tried)

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON-ready object."""
        return {
            "ok": self.ok,
            "postgres": self.postgres,
            "shards": self.shards,
            "days_simulated": self.days_simulated,
            "simulated_until": self.simulated_until,
            "rows_arrived": self.rows_arrived,
            "windows_wrong": self.windows_wrong,
            "rows_lost": self.rows_lost,
            "rows_doubled": self.rows_doubled,
            "rows_misplaced": self.rows_misplaced,
            "dropped_early": self.dropped_early,
            "dropped_late": self.dropped_late,
            "archived_windows": self.archived_windows,
            "restored_rows": self.restored_rows,
            "restored_equal": self.restored_equal,
            "flights": self.flights,
            "convert": self.convert.as_json(),
            "split": {
                "rows": self.split_rows,
                "rows_per_s": round(self.split_rows / self.split.seconds) if self.split.seconds else 0,
                "copied_per_s": self.copied_per_s,
                **self.split.as_json(),
            },
            "reshard": {
                **self.reshard.as_json(),
                "longest_pause_ms": round(max(self.pauses_ms), 1) if self.pauses_ms else None,
                "hand_overs": len(self.pauses_ms),
            },
            "incomplete_snapshots": self.incomplete_snapshots,
            "failed_writes": self.failed_writes,
            "moved_partitioned_rows": self.moved_rows,
            "leftovers": len(self.leftovers),
            "seconds": round(self.seconds, 1),
        }


def result(
    *,
    postgres: str,
    shards: int,
    flights: Flights,
    records: Records,
    originals: Originals,
    days: Days,
    archived: int,
    restored: Compared,
    tally: Tally,
    leftovers: Sequence[str],
    seconds: float,
) -> Result:
    """Compute the result.

    Args:
        postgres: version of the servers.
        shards: how many there are.
        flights: the table of flights, when all was done to it.
        records: of its clients.
        originals: how its rows fared.
        days: that were simulated.
        archived: windows that were.
        restored: one of them that was brought back.
        tally: what was found wrong about windows and their rows.
        leftovers: what stayed behind.
        seconds: since the start of the demo.
    """
    assert flights.converted is not None
    assert flights.cut is not None
    assert flights.status is not None
    wrong = _incomplete(flights, records)
    swaps = [one.lock_ms or 0.0 for one in flights.converted.shards]
    exchanges = [one.lock_ms or 0.0 for one in flights.cut.shards]
    rates = [one.rows_per_s for one in flights.cut.shards if one.rows_per_s]
    handed = [
        one.pause_ms for one in flights.status.handovers if one.pause_ms is not None and one.map_version is not None
    ]
    return Result(
        postgres=postgres,
        shards=shards,
        days_simulated=days.ticked,
        simulated_until=f"{days.now:%Y-%m-%d}",
        rows_arrived=days.arrived,
        windows_wrong=tally.windows_wrong,
        rows_lost=tally.rows_lost + originals.missing,
        rows_doubled=originals.surplus,
        rows_misplaced=originals.misplaced,
        dropped_early=tally.dropped_early,
        dropped_late=tally.dropped_late,
        archived_windows=archived,
        restored_rows=restored.rows,
        restored_equal=restored.equal,
        flights=len(flights.rows.lines),
        split_rows=sum(one.rows for one in flights.cut.shards),
        copied_per_s=round(sum(rates) / len(rates)) if rates else 0,
        convert=_step(flights, records, wrong, "convert", swaps),
        split=_step(flights, records, wrong, "split", exchanges),
        reshard=_step(flights, records, wrong, "reshard", handed),
        incomplete_snapshots=len(wrong),
        failed_writes=len(records.failures),
        moved_rows=flights.status.rows_done,
        pauses_ms=handed,
        leftovers=leftovers,
        seconds=seconds,
        evidence=[
            *tally.evidence,
            *originals.evidence,
            *(f"left behind: {one}" for one in leftovers),
            *(f"failed: {what}" for _, what in records.failures[:10]),
            *(f"incomplete: a snapshot had {rows:,} flights, {miles:,} miles, {checked} checked in"
              for _, _, rows, miles, checked in wrong[:5]),
        ],
    )  # fmt: skip


def _incomplete(flights: Flights, records: Records) -> list[tuple[float, float, int, int, int]]:
    """The snapshots that do not have all flights, each once: as many, as many miles, and nobody checked in on balance."""
    at = flights.rows.columns.index("distance")
    whole = len(flights.rows.lines), sum(int(line.split(b"\t", at + 1)[at]) for line in flights.rows.lines), 0
    return [one for one in records.snapshots if one[2:] != whole]


def _step(
    flights: Flights,
    records: Records,
    wrong: Sequence[tuple[float, float, int, int, int]],
    name: str,
    reported: Sequence[float],
) -> Step:
    span = flights.stages.spans[name]
    return Step(
        seconds=span[1] - span[0],
        writes=len(during(span, records.writes)),
        failed_writes=len(during(span, [(at, 0.0, what) for at, what in records.failures])),
        snapshots=len(during(span, records.snapshots)),
        incomplete_snapshots=len(during(span, wrong)),
        longest_lock_ms=max([longest(span, records.locks), *reported]),
        longest_bystander_wait_ms=longest(span, records.waits),
        longest_bystander_read_ms=longest(span, records.reads),
    )


def told(made: Result) -> dict[str, object]:
    """The result for people: names and values, in the order of interest.

    Args:
        made: the result.
    """
    split, rate = made.split, made.as_json()["split"]["rows_per_s"]
    return {
        "days simulated": f"{made.days_simulated}, up to {made.simulated_until}: a tick each, {made.rows_arrived:,} rows",
        "windows wrong": made.windows_wrong,
        "dropped early, late": f"{made.dropped_early}, {made.dropped_late}",
        "rows lost": f"{made.rows_lost}, of those that days brought and of {made.flights:,} flights",
        "doubled, misplaced": f"{made.rows_doubled}, {made.rows_misplaced}",
        "archived": f"{made.archived_windows} windows, one restored: {made.restored_rows} rows, "
        + ("each as it was written" if made.restored_equal else "NOT as they were written"),
        "incomplete snapshots": f"{made.incomplete_snapshots}, of "
        f"{made.convert.snapshots} + {split.snapshots} + {made.reshard.snapshots} in the three steps",
        "failed writes": f"{made.failed_writes}, of "
        f"{made.convert.writes} + {split.writes} + {made.reshard.writes} in the three steps",
        "converted": f"longest lock {made.convert.longest_lock_ms:.0f} ms, "
        f"longest wait of a bystander {made.convert.longest_bystander_wait_ms:.0f} ms",
        "split": f"{made.split_rows:,} rows at {rate:,} rows/s with all checks, copied at {made.copied_per_s:,}; "
        f"longest lock {split.longest_lock_ms:.0f} ms, longest wait {split.longest_bystander_wait_ms:.0f} ms",
        "moved": f"{made.moved_rows:,} rows in partitions; writes paused for {max(made.pauses_ms, default=0):.0f} ms at most; "
        f"longest wait {made.reshard.longest_bystander_wait_ms:.0f} ms",
        "left behind": len(made.leftovers),
        "PostgreSQL": made.postgres,
        "seconds": f"{made.seconds:.1f}",
    }
