"""Planning what becomes of windows whose time is over, and of rows in guards, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from fix_simulated import OVER, Fleet, at, events, kept, kinds
from shardwright.partition.plan import HUMAN
from shardwright.partition.shapes import (
    ForeignKey,
    GuardRows,
    LiveMove,
    Needed,
)

# ---------------------------------------------------------------- windows whose time is over


def test_retention_goes_by_the_upper_bound_to_the_microsecond() -> None:
    fleet = kept()
    assert fleet.plan(OVER - timedelta(microseconds=1)).is_empty
    made = fleet.plan(OVER)
    assert [table.retire for table in made.tables] == [("events_p2026_08",)]
    steps = [(step.kind, step.name) for _, shard, step in made.steps() if shard == "s1"]
    assert steps == [("detach", "events_p2026_08"), ("guard", "events_p_before")]


def test_the_last_window_never_goes() -> None:
    fleet = Fleet([events(keep="1 day", ahead=1, guards=False)])
    fleet.tick(datetime(2026, 1, 15, tzinfo=UTC))
    made = fleet.plan(datetime(2030, 1, 1, tzinfo=UTC))
    assert "events_p2026_02" not in {name for table in made.tables for name in table.retire}


def test_detached_windows_wait_for_their_grace_are_archived_and_dropped_and_forgotten() -> None:
    fleet = kept(grace="7 days", archive="/archive")
    fleet.tick(OVER)
    assert "events_p2026_08" not in fleet.attached()
    assert fleet.plan(OVER + timedelta(days=7, microseconds=-1)).is_empty
    later = OVER + timedelta(days=7)
    made = fleet.tick(later)
    assert [(step.kind, step.name) for _, shard, step in made.steps() if shard == "s1"] == [
        ("archive", "events_p2026_08"),
        ("drop", "events_p2026_08"),
    ]
    made = fleet.tick(later)
    assert [table.forget for table in made.tables] == [("events_p2026_08",)]
    assert fleet.plan(later).is_empty


def test_nothing_is_forgotten_while_a_shard_cannot_be_asked() -> None:
    fleet = kept(grace=None)
    fleet.tick(OVER)
    fleet.down = {"s2"}
    fleet.tick(OVER)
    assert "events_p2026_08" not in fleet.of("s1")
    assert [table.forget for table in fleet.plan(OVER).tables] == [()]
    fleet.down = set()
    fleet.tick(OVER)
    assert [table.forget for table in fleet.plan(OVER).tables] == [("events_p2026_08",)]


def test_what_carries_no_mark_of_ours_is_never_taken_away() -> None:
    fleet = kept()
    oldest = fleet.of("s1")["events_p2026_08"]
    fleet.of("s1")["events_p2026_08"] = replace(oldest, role="", state="")
    made = fleet.plan(OVER)
    assert ("s1", "detach") not in {(shard, step.kind) for _, shard, step in made.steps()}
    assert ("s2", "detach") in {(shard, step.kind) for _, shard, step in made.steps()}
    assert "unmarked-leaf" in kinds(made)
    # the guard goes as far as the leaf that stays
    [guard] = [step for _, shard, step in made.steps() if shard == "s2" and step.kind == "guard"]
    assert guard.upper == at(2026, 9, 1)
    assert not [step for _, shard, step in made.steps() if shard == "s1" and step.kind == "guard"]


def test_an_interrupted_detach_is_finalized_first() -> None:
    fleet = kept()
    leaf = fleet.of("s1")["events_p2026_08"]
    fleet.of("s1")["events_p2026_08"] = replace(leaf, pending=True)
    made = fleet.tick(OVER)
    steps = [step.kind for _, shard, step in made.steps() if shard == "s1"]
    assert steps == ["finalize", "guard"]


def test_a_live_reshard_freezes_what_takes_away_and_goes_to_targets_first() -> None:
    table = events(keep="2 months", kind="sharded", keyspace="users")
    fleet = Fleet([table], names=("s1", "s2", "s3"))
    for month in range(1, 11):
        fleet.tick(datetime(2026, month, 1, tzinfo=UTC))
    fleet.moves = (LiveMove(7, "users", "s1", "s3"),)
    made = fleet.tick(datetime(2026, 11, 2, tzinfo=UTC))
    assert kinds(made) == {"frozen"}
    assert {step.kind for _, _, step in made.steps()} <= {"create", "guard"}
    assert made.tables[0].order == ("s3", "s1", "s2")
    assert made.tables[0].leaders == ("s3",)
    fleet.moves = ()
    made = fleet.tick(datetime(2026, 11, 2, tzinfo=UTC))
    assert "detach" in {step.kind for _, _, step in made.steps()}


def test_another_keyspaces_move_freezes_nothing() -> None:
    fleet = kept()
    fleet.moves = (LiveMove(7, "users", "s1", "s2"),)
    assert "detach" in {step.kind for _, _, step in fleet.plan(OVER).steps()}


def test_windows_that_rows_of_others_need_stay_and_the_reason_is_said() -> None:
    fleet = kept()
    fleet.needed = (Needed("s2", 1, "events_p2026_08", "public.notes", "notes_event_fkey"),)
    made = fleet.plan(OVER)
    assert made.is_empty
    [finding] = [one for one in made.findings if one.kind == "needed-window"]
    assert "public.notes" in finding.message
    assert finding.shard == "s2"


def test_tables_that_refer_lose_their_windows_first() -> None:
    parents, children = events(id=1, name="events", keep="2 months"), events(id=2, name="notes", keep="2 months")
    fleet = Fleet([parents, children], keys=(ForeignKey("notes_fkey", "public", "notes", 2, 1),))
    for month in range(1, 11):
        fleet.tick(datetime(2026, month, 1, tzinfo=UTC))
    made = fleet.plan(datetime(2026, 11, 2, tzinfo=UTC))
    assert [table.table for table in made.tables] == ["public.notes", "public.events"]
    assert made.tables[1].children == (2,)
    gone = [(table.table, step.name) for table, shard, step in made.steps() if step.kind == "detach" and shard == "s1"]
    assert gone == [("public.notes", "notes_p2026_08"), ("public.events", "events_p2026_08")]


# ---------------------------------------------------------------- rows in guards


def guard_rows(
    count: int, least: int | None, most: int | None, name: str = "events_p_after", more: bool = False
) -> GuardRows:
    return GuardRows(name, count, more, least, most, ("first", "last"))


def test_rows_in_the_guard_that_go_into_the_new_window_are_no_alarm() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    fleet.rows["s1", 1] = (guard_rows(3, at(2027, 2, 3), at(2027, 2, 27)),)
    assert kinds(fleet.plan()) == {"rows-in-guard"}
    assert kinds(fleet.plan(datetime(2026, 12, 1, tzinfo=UTC))) == set()


def test_rows_far_ahead_make_no_windows_and_are_told() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    fleet.rows["s1", 1] = (guard_rows(1, at(2999, 1, 1), at(2999, 1, 1)),)
    made = fleet.plan()
    assert made.is_empty
    [finding] = made.findings
    assert (finding.kind, finding.severity, finding.shard) == ("rows-in-guard", HUMAN, "s1")
    assert finding.facts["rows"] == 1


def test_rows_before_the_first_window_get_windows_while_the_policy_keeps_them() -> None:
    fleet = Fleet([events(keep="3 months")])
    fleet.tick()
    fleet.rows["s1", 1] = (guard_rows(2, at(2026, 9, 10), at(2026, 10, 10), "events_p_before"),)
    made = fleet.tick()
    assert [one.name for one in made.tables[0].add] == ["events_p2026_09", "events_p2026_10"]
    assert not made.findings
    [step] = [step for _, shard, step in made.steps() if shard == "s1" and step.kind == "guard"]
    assert [one.name for one in step.windows] == ["events_p2026_09", "events_p2026_10"]
    assert step.upper == at(2026, 9, 1)


def test_rows_that_are_over_get_no_windows() -> None:
    fleet = Fleet([events(keep="3 months")])
    fleet.tick()
    fleet.rows["s1", 1] = (guard_rows(2, at(2020, 9, 10), at(2020, 10, 10), "events_p_before"),)
    made = fleet.plan()
    assert made.is_empty
    assert kinds(made) == {"rows-in-guard"}


def test_a_guard_with_many_rows_is_left_to_a_person() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    fleet.rows["s1", 1] = (guard_rows(10_000, None, None, more=True),)
    made = fleet.plan(datetime(2026, 12, 1, tzinfo=UTC))
    assert {shard for _, shard, _ in made.steps()} == {"s2"}
    assert kinds(made) == {"rows-in-guard"}
