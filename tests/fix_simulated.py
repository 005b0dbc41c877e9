"""Shards that are simulated for plans: they do what PostgreSQL would, and refuse what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from shardwright.partition.declare import Declared, by_position, overlap
from shardwright.partition.plan import Plan, Step
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


#: When the time of the window of August is over, in a fleet of `kept`.
OVER = datetime(2026, 11, 1, tzinfo=UTC)


def kept(**options: Any) -> Fleet:
    """A fleet with windows from August on, all that it needs until February."""
    fleet = Fleet([events(**{"keep": "2 months", "ahead": 6, "guards": True, **options})])
    fleet.tick(datetime(2026, 8, 15, tzinfo=UTC))
    fleet.tables = [replace(fleet.tables[0], policy=replace(fleet.tables[0].policy, ahead=2))]
    return fleet
