"""Planning windows, without a database: made, filled in, told and refused; the plan as a value."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_simulated import NOW, OVER, Fleet, at, events, kept, kinds
from shardwright import errors
from shardwright.partition.declare import Declared, overlap
from shardwright.partition.plan import KINDS, Plan, changes
from shardwright.partition.shapes import (
    Leaf,
    Partition,
)
from shardwright.routing.policy import Policy

# ---------------------------------------------------------------- making windows


def test_the_first_plan_makes_the_window_of_now_those_ahead_and_guards() -> None:
    fleet = Fleet([events()])
    made = fleet.tick()
    assert [step.kind for _, shard, step in made.steps() if shard == "s1"] == ["create"] * 5 + ["attach"] * 5
    assert fleet.attached() == [
        "events_p_before",
        "events_p2026_11",
        "events_p2026_12",
        "events_p2027_01",
        "events_p_after",
    ]
    assert fleet.attached("s2") == fleet.attached()
    assert fleet.plan().is_empty
    assert not made.findings


def test_without_guards_there_are_only_windows() -> None:
    fleet = Fleet([events(guards=False)])
    fleet.tick()
    assert fleet.attached() == ["events_p2026_11", "events_p2026_12", "events_p2027_01"]


def test_a_month_later_the_guard_gives_way_to_one_window() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    made = fleet.tick(datetime(2026, 12, 1, tzinfo=UTC))
    [create, guard] = [step for _, shard, step in made.steps() if shard == "s1"]
    assert (create.kind, create.name) == ("create", "events_p2027_02")
    assert (guard.kind, guard.name, guard.lower) == ("guard", "events_p_after", at(2027, 3, 1))
    assert [one.name for one in guard.windows] == ["events_p2027_02"]
    assert fleet.plan(datetime(2026, 12, 1, tzinfo=UTC)).is_empty


def test_after_years_of_absence_the_guard_gives_way_a_few_windows_at_a_time() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    made = fleet.tick(datetime(2028, 12, 1, tzinfo=UTC))
    guards = [step for _, shard, step in made.steps() if shard == "s1" and step.kind == "guard"]
    assert [len(step.windows) for step in guards] == [8, 8, 8, 1]
    assert len(fleet.attached()) == 28 + 2


def test_a_shard_that_was_down_is_brought_up_later() -> None:
    fleet = Fleet([events()], down={"s2"})
    made = fleet.tick()
    assert made.deferred == {"s2": "shard s2 is down"}
    assert made.shards == ("s1",)
    fleet.down.clear()
    fleet.tick()
    assert fleet.attached("s2") == fleet.attached("s1")


def test_holes_are_filled_on_the_shard_that_has_them() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    del fleet.of("s2")["events_p2026_12"]
    made = fleet.tick()
    assert [(shard, step.kind, step.name) for _, shard, step in made.steps()] == [
        ("s2", "create", "events_p2026_12"),
        ("s2", "attach", "events_p2026_12"),
    ]


def test_what_was_made_and_not_attached_is_attached() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    leaf = fleet.of("s1")["events_p2026_12"]
    fleet.of("s1")["events_p2026_12"] = replace(leaf, attached=False, state="made")
    made = fleet.tick()
    assert [(step.kind, step.name) for _, _, step in made.steps()] == [("attach", "events_p2026_12")]


def test_a_name_that_is_taken_gets_a_hash() -> None:
    fleet = Fleet([events()], taken=frozenset({"events_p2026_11"}))
    fleet.tick()
    [name] = [name for name in fleet.attached() if name.endswith("_p2026_11")]
    assert name != "events_p2026_11"


def test_a_name_that_is_taken_later_is_a_finding() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    del fleet.of("s1")["events_p2026_12"]
    fleet.taken = frozenset({"events_p2026_12"})
    made = fleet.plan()
    assert made.is_empty
    assert kinds(made) == {"name-taken"}


# ---------------------------------------------------------------- policies that change


def test_new_windows_only_fill_what_older_ones_leave() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    fleet.tables = [events("1 week", anchor="1970-01-01T00:00")]
    made = fleet.tick()
    assert "clipped-window" not in kinds(made)
    later = datetime(2027, 1, 20, tzinfo=UTC)
    made = fleet.tick(later)
    assert "clipped-window" in kinds(made)
    [first, *_] = [one for table in made.tables for one in table.add]
    assert first.lower == at(2027, 2, 1)
    assert first.upper == at(2027, 2, 4)
    assert fleet.plan(later).is_empty


def test_a_shorter_ahead_takes_nothing_away() -> None:
    fleet = Fleet([events(ahead=6)])
    fleet.tick()
    fleet.tables = [events(ahead=1)]
    assert fleet.plan().is_empty


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_changes_the_windows_stay_apart_and_the_next_plan_is_empty(data: st.DataObject) -> None:
    fleet = Fleet([events()])
    now = NOW
    policies = st.sampled_from(["1 day", "2 weeks", "1 month", "1 quarter", "6 hours", "1 year"])
    zones = st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "Asia/Kathmandu"])
    for _ in range(data.draw(st.integers(1, 5))):
        fleet.tables = [
            events(
                data.draw(policies),
                zone=data.draw(zones),
                ahead=data.draw(st.integers(1, 5)),
                keep=data.draw(st.sampled_from([None, "1 day", "2 months", "1 year"])),
                grace=data.draw(st.sampled_from([None, "7 days"])),
                archive=data.draw(st.sampled_from([None, "/archive"])),
                guards=data.draw(st.booleans()),
            )
        ]
        now += timedelta(hours=data.draw(st.integers(1, 2000)))
        skip = data.draw(st.sampled_from([(), ("s2",)]))
        fleet.tick(now, skip)
        for _ in range(4):
            made = fleet.tick(now)
        assert made.is_empty, made.to_json()
        assert fleet.attached("s1") == fleet.attached("s2")
        here = int(now.timestamp() * 1_000_000)
        assert any(leaf.attached and overlap(leaf.span, (here, here + 1)) for leaf in fleet.of("s1").values())


# ---------------------------------------------------------------- what is refused or told


def test_shards_whose_clocks_are_apart_are_not_worked_on() -> None:
    fleet = Fleet([events()], skew={"s1": -2.0, "s2": 3.5})
    made = fleet.plan()
    assert made.is_empty
    [finding] = made.findings
    assert finding.kind == "clock-skew"
    assert "s2 is 5.5 s ahead of that of s1" in finding.message
    fleet.skew = {"s1": -2.0, "s2": 2.9}
    assert not fleet.plan().is_empty


@pytest.mark.parametrize(("relkind", "kind"), [(None, "missing-table"), ("r", "not-partitioned")])
def test_a_table_that_is_no_partitioned_one(relkind: str | None, kind: str) -> None:
    made = Fleet([events()], relkind=relkind).plan()
    assert made.is_empty
    assert kinds(made) == {kind}


def test_another_partition_key() -> None:
    fleet = Fleet([replace(events(), policy=Policy("created", "1 month"))])
    assert kinds(fleet.plan()) == {"other-key"}


def test_a_default_partition_stops_the_table() -> None:
    fleet = Fleet([events()])
    fleet.of("s1")["events_default"] = Leaf("events_default", None, None, True, default=True)
    made = fleet.plan()
    assert made.is_empty
    assert kinds(made) == {"default-partition"}


def test_partitions_made_by_hand_are_not_overlapped() -> None:
    fleet = Fleet([events()])
    fleet.of("s1")["by_hand"] = Leaf("by_hand", at(2026, 11, 10), at(2026, 12, 5), True)
    made = fleet.tick()
    assert {"unmarked-leaf", "clipped-window"} <= kinds(made)
    spans = {one.span for one in made.tables[0].add if not one.is_guard}
    assert (at(2026, 11, 1), at(2026, 11, 10)) in spans
    assert (at(2026, 12, 5), at(2027, 1, 1)) in spans


def test_a_marked_leaf_that_the_catalog_does_not_list() -> None:
    fleet = Fleet([events()])
    fleet.tick()
    fleet.of("s1")["old"] = Leaf("old", at(2020, 1, 1), at(2020, 2, 1), True, role="window", state="attached")
    fleet.of("s1").pop("events_p_before")
    assert "extra" in kinds(fleet.plan())


def test_other_bounds_than_declared() -> None:
    fleet = Fleet([events(guards=False)])
    fleet.tick()
    leaf = fleet.of("s1")["events_p2026_12"]
    fleet.of("s1")["events_p2026_12"] = replace(leaf, upper=at(2026, 12, 20))
    made = fleet.plan()
    assert made.is_empty
    assert kinds(made) == {"other-bounds"}


def test_a_gap_between_declared_windows_is_told() -> None:
    fleet = Fleet([events(ahead=2)])
    far = Partition("far", at(2028, 1, 1), at(2028, 2, 1))
    fleet.declared[1] = Declared((far,))
    made = fleet.tick()
    [finding] = [one for one in made.findings if one.kind == "gap"]
    assert finding.facts == {"lower": at(2027, 2, 1), "upper": at(2028, 1, 1)}


def test_many_leaves_are_told_before_they_are_there() -> None:
    assert kinds(Fleet([events("1 day", keep="2 years")]).plan()) == {"many-leaves"}
    assert kinds(Fleet([events("1 day", keep="1 year")]).plan()) == set()


def test_a_global_table_is_only_on_its_shard() -> None:
    fleet = Fleet([events(kind="global", home="s2")])
    assert {shard for _, shard, _ in fleet.plan().steps()} == {"s2"}


def test_copies_of_a_reference_table_come_before_its_home() -> None:
    fleet = Fleet([events(kind="reference", home="s1")], names=("s1", "s2", "s3"))
    assert fleet.plan().tables[0].order == ("s2", "s3", "s1")


# ---------------------------------------------------------------- the plan as a value


def test_a_plan_is_read_back_as_it_was_written() -> None:
    fleet = kept()
    fleet.names = ("s1", "s2", "s3")
    fleet.down = {"s2"}
    made = fleet.plan(OVER + timedelta(days=40))
    assert {step.kind for _, _, step in made.steps()} <= set(KINDS)
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_plan_that_was_changed_by_hand_is_refused() -> None:
    value = Fleet([events()]).plan().to_json()
    value["tables"][0]["add"][0]["upper"] += 1
    with pytest.raises(errors.BadOption, match="changed after it was saved"):
        Plan.from_json(value)
    with pytest.raises(errors.BadOption, match="no saved plan"):
        Plan.from_json({"tables": []})


def test_the_fingerprint_tells_what_is_done_and_not_what_was_seen() -> None:
    fleet = Fleet([events()])
    first = fleet.plan()
    second = fleet.plan(NOW + timedelta(hours=1))
    fleet.of("s1")["other"] = Leaf("other", None, None, False, role="window", state="detached", pages=5)
    assert first.fingerprint == second.fingerprint == fleet.plan().fingerprint
    fleet.tables = [events("1 week")]
    assert fleet.plan().fingerprint != first.fingerprint


def test_what_changed_is_said_line_by_line() -> None:
    fleet = Fleet([events()])
    first = fleet.plan()
    fleet.tick(skip=("s2",))
    said = changes(first, fleet.plan())
    assert "no more: public.events: declare events_p2026_11" in said
    assert any(line.startswith("no more: public.events on s1: create events_p2026_11") for line in said)
    assert not any("on s2" in line for line in said)
