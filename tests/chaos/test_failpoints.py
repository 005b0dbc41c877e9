"""kill -9 of the worker at every failpoint: `resume` ends with an exact cluster, `abort` with an untouched one.

One of the cluster's tables is in windows of time.
"""

from __future__ import annotations

import psycopg
import pytest

from fix_chaos import Workers
from fix_resharding import Small, Writer, check_exact
from shardwright import errors
from shardwright.catalog import maps, operations
from shardwright.failpoints import OF_OPERATIONS
from shardwright.reshard import operate, runner

#: The goal on whose road a failpoint lies, and the goal that must be reached first.
ROADS = {
    "roll_back": ("reverted", "switched"),
    "clean_up": ("done", "switched"),
    "abort": ("aborted", "verified"),
}

#: One of each kind of step; `make test-all` tries them all.
QUICK = (
    "prepare.ranges_cut",
    "copy.half_copied",
    "verify.snapshots_taken",
    "hand_over.fenced",
    "hand_over.committed",
    "roll_back.started",
    "clean_up.half_deleted",
    "abort.deleted",
)


def _start(small: Small, failpoint: str) -> tuple[int, str]:
    goal, first = ROADS.get(failpoint.partition(".")[0], ("switched", ""))
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(0.5, 1.0)))
    if first:
        operate.drive(small.catalog_dsn, operation, first)
    return operation, goal


@pytest.mark.parametrize(
    "failpoint", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OF_OPERATIONS]
)
def test_resume_after_a_crash(timely: Small, writers: list[Writer], workers: Workers, failpoint: str) -> None:
    operation, goal = _start(timely, failpoint)
    workers.crash_at(timely.catalog_dsn, operation, goal, failpoint)
    reached = operate.drive(timely.catalog_dsn, operation, goal, take_over=True)
    assert reached.phase == goal
    assert reached.resumed >= 1
    if goal in ("switched", "reverted"):
        operate.drive(timely.catalog_dsn, operation, "done")
    check_exact(timely, writers)
    with timely.catalog() as catalog:
        moved = maps.load_map(catalog).owned("users", "s3").count()
    assert moved == (0 if goal == "aborted" else 1365)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [name for name in OF_OPERATIONS if not name.startswith(("abort", "clean_up"))])
def test_abort_after_a_crash(timely: Small, writers: list[Writer], workers: Workers, failpoint: str) -> None:
    operation, goal = _start(timely, failpoint)
    workers.crash_at(timely.catalog_dsn, operation, goal, failpoint)
    with timely.catalog() as catalog:
        phase = operations.get(catalog, operation).phase
    if phase == "switched":
        operate.drive(timely.catalog_dsn, operation, "reverted", take_over=True)
    assert operate.drive(timely.catalog_dsn, operation, "aborted", take_over=True).phase == "aborted"
    check_exact(timely, writers)
    with timely.catalog() as catalog:
        assert maps.load_map(catalog).owned("users", "s3").count() == 0


@pytest.mark.parametrize(
    "failpoint",
    [
        "copy.half_copied",
        "hand_over.fenced",
        pytest.param("hand_over.widened", marks=pytest.mark.slow),
        "hand_over.committed",
        pytest.param("clean_up.half_deleted", marks=pytest.mark.slow),
    ],
)
def test_a_zombie_changes_nothing(small: Small, writers: list[Writer], workers: Workers, failpoint: str) -> None:
    """A worker is paused, another takes over and ends the operation, and the first one wakes."""
    operation, goal = _start(small, failpoint)
    paused = workers.pause_at(small.catalog_dsn, operation, goal, failpoint)
    with pytest.raises(errors.LeaseHeld):
        runner.run(small.catalog_dsn, operation)
    assert operate.drive(small.catalog_dsn, operation, goal, take_over=True).phase == goal
    if goal == "switched":
        operate.drive(small.catalog_dsn, operation, "done")
    exit_code, said = workers.wake(paused)
    assert exit_code != 0, "the zombie thinks that it did it"
    assert "Traceback" not in said or "psycopg" in said
    check_exact(small, writers)


def test_an_armed_failpoint_must_exist(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, _ = _start(small, "prepare")
    monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "copy.never:crash")
    with pytest.raises(errors.BadOption):
        operate.drive(small.catalog_dsn, operation)


def test_a_failed_hand_over_lifts_its_fence(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, _ = _start(small, "hand_over")
    operate.drive(small.catalog_dsn, operation, "verified")
    monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "hand_over.drained:error")
    with pytest.raises(errors.FailpointReached):
        operate.drive(small.catalog_dsn, operation, "switched")
    assert small.ask("s1", "SELECT count(*) FROM shardwright.ranges WHERE state = 'fenced'") == 0
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    for key in range(200):
        shard = shard_map.route("users", key).shard
        with psycopg.connect(small.dsns[shard], autocommit=True) as connection:
            connection.execute("UPDATE orders SET note = 'still written' WHERE user_id = %s", (key,))
