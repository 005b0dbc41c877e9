"""Planning windows, without a database: shards are simulated, and refuse what PostgreSQL refuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwright import errors
from shardwright.partition.declare import Declared, by_position, overlap
from shardwright.partition.plan import HUMAN, KINDS, Plan, Step, changes
from shardwright.partition.planner import Facts, make_plan
from shardwright.partition.shapes import (
    ForeignKey,
    GuardRows,
    Leaf,
    LiveMove,
    Needed,
    Partition,
    PartitionedTable,
    ShardShape,
    TableShape,
)
from shardwright.routing.policy import Policy

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def events(every: str = "1 month", **options: Any) -> PartitionedTable:
    given = {"ahead": 2, **options}
    fields = {name: given.pop(name) for name in ("id", "name", "kind", "keyspace", "home") if name in given}
    return PartitionedTable(
        **{"id": 1, "schema": "public", "name": "events", "kind": "local", **fields},
        policy=Policy("at", every, **given),
        key="timestamptz",
    )


@dataclass
class Fleet:
    """Shards that do what PostgreSQL would."""

    tables: list[PartitionedTable]
    names: tuple[str, ...] = ("s1", "s2")
    declared: dict[int, Declared] = field(default_factory=dict)
    leaves: dict[tuple[str, int], dict[str, Leaf]] = field(default_factory=dict)
    rows: dict[tuple[str, int], tuple[GuardRows, ...]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    skew: dict[str, float] = field(default_factory=dict)
    relkind: str | None = "p"
    moves: tuple[LiveMove, ...] = ()
    keys: tuple[ForeignKey, ...] = ()
    needed: tuple[Needed, ...] = ()
    taken: frozenset[str] = frozenset()

    def facts(self, now: datetime = NOW) -> Facts:
        shards = []
        for name in self.names:
            if name in self.down:
                shards.append(ShardShape(name, problem=("cannot-connect", f"shard {name} is down")))
                continue
            shapes = {
                table.id: TableShape(
                    self.relkind,
                    "RANGE (at)" if self.relkind == "p" else None,
                    tuple(self.of(name, table.id).values()),
                    self.rows.get((name, table.id), ()),
                    self.taken,
                )
                for table in self.tables
            }
            shards.append(ShardShape(name, now, self.skew.get(name, 0.0), shapes, self.keys))
        return Facts(now, tuple(self.tables), dict(self.declared), tuple(shards), self.moves, self.needed)

    def of(self, shard: str, table_id: int = 1) -> dict[str, Leaf]:
        return self.leaves.setdefault((shard, table_id), {})

    def plan(self, now: datetime = NOW) -> Plan:
        return make_plan(self.facts(now))

    def tick(self, now: datetime = NOW, skip: Iterable[str] = ()) -> Plan:
        made = self.plan(now)
        for table in made.tables:
            before = self.declared.get(table.table_id, Declared())
            resized = {one.name: one for one in table.resize}
            wanted = [resized.get(one.name, one) for one in before.wanted if one.name not in table.retire]
            retired = [*before.retired, *((one, now) for one in before.wanted if one.name in table.retire)]
            after = Declared(
                tuple(sorted([*wanted, *table.add], key=by_position)),
                tuple(pair for pair in retired if pair[0].name not in table.forget),
            )
            no_overlap(after.wanted)
            self.declared[table.table_id] = after
        for table, shard, step in made.steps():
            if shard not in skip:
                self.do(shard, table.table_id, step, now)
        return made

    def do(self, shard: str, table_id: int, step: Step, now: datetime) -> None:
        leaves = self.of(shard, table_id)
        leaf = leaves.get(step.name)
        if step.kind == "create":
            assert leaf is None or not leaf.relkind
            leaves[step.name] = Leaf(step.name, step.lower, step.upper, False, role=step.role, state="made")
        elif step.kind in ("attach", "guard"):
            assert leaf is not None
            if step.kind == "guard":
                assert leaf.attached
                assert leaf.role in ("before", "after")
            for one in (*step.windows, step.partition):
                assert leaves[one.name].marked
                leaves[one.name] = replace(
                    leaves[one.name], lower=one.lower, upper=one.upper, attached=True, state="attached", pending=False
                )
            no_overlap(Partition(one.name, *one.span) for one in leaves.values() if one.attached)
        elif step.kind in ("detach", "finalize"):
            assert leaf is not None
            assert leaf.attached
            leaves[step.name] = replace(leaf, attached=False, pending=False, state="detached", detached_at=now)
        elif step.kind == "archive":
            assert leaf is not None
            assert leaf.state == "detached"
            leaves[step.name] = replace(leaf, state="archived")
        elif step.kind == "drop":
            del leaves[step.name]
        else:
            raise AssertionError(step)

    def attached(self, shard: str = "s1", table_id: int = 1) -> list[str]:
        found = [Partition(leaf.name, *leaf.span) for leaf in self.of(shard, table_id).values() if leaf.attached]
        return [one.name for one in sorted(found, key=by_position)]


def no_overlap(partitions: Iterable[Partition]) -> None:
    found = sorted(partitions, key=by_position)
    for one, other in itertools.pairwise(found):
        assert not overlap(one.span, other.span), f"{one} would overlap {other}"


def kinds(plan: Plan) -> set[str]:
    return {finding.kind for finding in plan.findings}


def at(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type, misc]


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


# ---------------------------------------------------------------- windows whose time is over


#: When the time of the window of August is over, in a fleet of `kept`.
OVER = datetime(2026, 11, 1, tzinfo=UTC)


def kept(**options: Any) -> Fleet:
    """A fleet with windows from August on, all that it needs until February."""
    fleet = Fleet([events(**{"keep": "2 months", "ahead": 6, "guards": True, **options})])
    fleet.tick(datetime(2026, 8, 15, tzinfo=UTC))
    fleet.tables = [replace(fleet.tables[0], policy=replace(fleet.tables[0].policy, ahead=2))]
    return fleet


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
