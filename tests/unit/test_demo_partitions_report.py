"""The result of the demo of partitions counts each harm in its own field, in the step in which it was seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardwright.demo.audit import Originals
from shardwright.demo.dataset import Rows
from shardwright.demo.partitions import report
from shardwright.demo.partitions.flights import Flights, all_flights, as_written
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.restoring import Compared
from shardwright.demo.partitions.traffic import Records

#: Two flights, of 100 and 250 miles.
ROWS = Rows(
    "flights",
    ("tailnum", "id", "distance", "time_hour", "checked_in"),
    [b"N1\t1\t100\t2013-01-01 10:00:00+00\t0", b"N2\t2\t250\t2013-02-01 10:00:00+00\t0"],
    ["N1", "N2"],
)


@pytest.fixture
def flights() -> Flights:
    """Converted from 10 to 20 s, split from 30 to 40, moved from 50 to 60."""
    none: Any = None
    made = Flights(none, "", ROWS, Path(), none)
    made.stages.spans = {"convert": (10.0, 20.0), "split": (30.0, 40.0), "reshard": (50.0, 60.0)}
    made.converted = SimpleNamespace(shards=[SimpleNamespace(lock_ms=12.0)])  # type: ignore[assignment]
    made.cut = SimpleNamespace(shards=[SimpleNamespace(lock_ms=20.0, rows=2, rows_per_s=9.0)])  # type: ignore[assignment]
    handover = SimpleNamespace(pause_ms=8.0, map_version=3)
    made.status = SimpleNamespace(rows_done=1, handovers=[handover])  # type: ignore[assignment]
    return made


def records() -> Records:
    moments = (15.0, 35.0, 55.0)
    return Records(writes=[(at, 2.0) for at in moments], snapshots=[(at, 5.0, 2, 350, 0) for at in moments])


def judged(flights: Flights, seen: Records, **more: Any) -> report.Result:
    given: dict[str, Any] = {
        "originals": Originals(),
        "tally": Tally(),
        "leftovers": [],
        "restored": Compared("week", 7, True),
        "archived": 1,
    } | more
    days: Any = SimpleNamespace(ticked=5, arrived=9, now=datetime(2020, 1, 1, tzinfo=UTC))
    return report.result(postgres="18", shards=3, flights=flights, records=seen, days=days, seconds=70.0, **given)


def test_all_is_well(flights: Flights) -> None:
    made = judged(flights, records())
    assert made.ok
    assert made.as_json()["ok"]
    assert made.evidence == []
    assert made.as_json()["split"]["longest_lock_ms"] == 20.0


@pytest.mark.parametrize(
    ("more", "name", "count"),
    [
        ({"tally": Tally(windows_wrong=1)}, "windows_wrong", 1),
        ({"tally": Tally(rows_lost=2), "originals": Originals(missing=3)}, "rows_lost", 5),
        ({"tally": Tally(dropped_early=1)}, "dropped_early", 1),
        ({"tally": Tally(dropped_late=4)}, "dropped_late", 4),
        ({"originals": Originals(surplus=1)}, "rows_doubled", 1),
        ({"originals": Originals(misplaced=1)}, "rows_misplaced", 1),
        ({"leftovers": ["s1: slot forgotten"]}, "leftovers", 1),
        ({"restored": Compared("week", 7, False)}, "restored_equal", False),
        ({"restored": Compared("week", 0, True)}, "restored_rows", 0),
        ({"archived": 0}, "archived_windows", 0),
    ],
)
def test_what_servers_say(flights: Flights, more: dict[str, Any], name: str, count: int) -> None:
    made = judged(flights, records(), **more)
    assert not made.ok
    assert made.as_json()[name] == count


@pytest.mark.parametrize("counted", [(1, 100, 0), (2, 349, 0), (2, 350, 1), (3, 350, 0)])
def test_a_snapshot_without_all_rows(flights: Flights, counted: tuple[int, int, int]) -> None:
    seen = records()
    seen.snapshots.append((39.9, 500.0, *counted))
    made = judged(flights, seen)
    assert not made.ok
    assert (made.convert.incomplete_snapshots, made.split.incomplete_snapshots, made.reshard.incomplete_snapshots) == (
        0,
        1,
        0,
    )
    assert len(made.evidence) == 1


def test_a_write_that_failed(flights: Flights) -> None:
    seen = records()
    seen.failures.append((35.0, "RowMissing: gone"))
    made = judged(flights, seen)
    assert not made.ok
    assert (made.failed_writes, made.split.failed_writes, made.convert.failed_writes) == (1, 1, 0)
    seen.failures[:] = [(25.0, "between two steps")]
    assert judged(flights, seen).failed_writes == 1
    assert not judged(flights, seen).ok


@pytest.mark.parametrize("what", ["writes", "snapshots"])
def test_too_little_to_hold_it_against(flights: Flights, what: str) -> None:
    seen = replace(records(), **{what: [(15.0, 1.0, 2, 350, 0), (55.0, 1.0, 2, 350, 0)]})
    made = judged(flights, seen)
    assert getattr(made.split, what) == 0
    assert not made.ok


def test_the_longest_of_each_step(flights: Flights) -> None:
    seen = records()
    seen.locks += [(29.99, 30.0, "s1: 7 x"), (45.0, 900.0, "s1: 8 y")]
    seen.waits += [(35.0, 25.0), (55.0, 3.0)]
    seen.reads += [(35.0, 26.5)]
    made = judged(flights, seen)
    assert made.ok
    assert (made.convert.longest_lock_ms, made.split.longest_lock_ms, made.reshard.longest_lock_ms) == (12.0, 30.0, 8.0)
    assert (made.split.longest_bystander_wait_ms, made.reshard.longest_bystander_wait_ms) == (25.0, 3.0)
    assert made.split.longest_bystander_read_ms == 26.5


def test_rows_as_they_were_written() -> None:
    changed = as_written(ROWS, [("N2", 2, 1_000_002, "2013-01-01 10:00:00+00", -3)])
    assert changed.lines == [ROWS.lines[0], b"N2\t1000002\t250\t2013-01-01 10:00:00+00\t-3"]


def test_fewer_flights_are_whole_planes() -> None:
    lines = [f"N{at % 50}\t{at}".encode() for at in range(1000)]
    none = Rows("flights_without_tailnum", ("id",), [b"1000"], [])
    data: Any = SimpleNamespace(
        flights=Rows("flights", ("tailnum", "id"), lines, [f"N{at % 50}" for at in range(1000)]),
        flights_without_tailnum=none,
    )
    assert len(all_flights(data).lines) == 1001
    few = all_flights(data, 100, seed=3)
    assert len(few.lines) == 100
    assert len(set(few.keys)) <= 7
    assert all(line.split(b"\t")[0].decode() == key for line, key in zip(few.lines, few.keys, strict=True))
