"""From policies, the declared windows, the clock and what each shard has: what to do next. Pure.

Two questions, one after the other. What should be declared (`declare`): windows for all time from the oldest kept one to
`ahead` after now, where nothing covers it yet, and guards at the ends; what is over is retired. And what does each shard
lack of it (`differ`). A shard that could not be asked lacks what it lacks until the next time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shardwright.partition import declare, differ
from shardwright.partition.declare import Change, Declared
from shardwright.partition.differ import MANY_LEAVES
from shardwright.partition.plan import WARNING, Finding, Plan, TablePlan
from shardwright.partition.shapes import (
    ForeignKey,
    LiveMove,
    Needed,
    PartitionedTable,
    ShardShape,
)

#: Seconds between two shards' clocks above which nothing is planned.
MOST_SKEW = 5.0

_SECONDS = {
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
    "month": 30 * 86400,
    "quarter": 91 * 86400,
    "year": 365 * 86400,
}


@dataclass(frozen=True)
class Facts:
    """Everything that a plan is made from."""

    now: datetime
    tables: tuple[PartitionedTable, ...]
    declared: Mapping[int, Declared]
    shards: tuple[ShardShape, ...]
    moves: tuple[LiveMove, ...] = ()
    #: Windows that rows of other tables need; of those that `expiring` named.
    needed: tuple[Needed, ...] = ()

    def declared_of(self, table: PartitionedTable) -> Declared:
        """The declared list of a table.

        Args:
            table: which.
        """
        return self.declared.get(table.id, Declared())


def expiring(facts: Facts, table: PartitionedTable) -> set[str]:
    """Windows that would be detached: their time is over now, or was before. For asking whether rows are needed.

    Args:
        facts: as known so far.
        table: whose windows.
    """
    declared = facts.declared_of(table)
    return {one.name for one in declare.expiring(table, declared, facts.now)} | {
        one.name for one, _ in declared.retired
    }


def make_plan(facts: Facts) -> Plan:
    """The plan.

    Args:
        facts: everything that it is made from.
    """
    asked = [shard for shard in facts.shards if shard.problem is None]
    deferred = {shard.name: shard.problem[1] for shard in facts.shards if shard.problem is not None}
    findings: list[Finding] = []
    tables: list[TablePlan] = []
    if skewed := _skew(asked):
        findings.append(skewed)
    else:
        for table in in_order(facts.tables, [key for shard in asked for key in shard.foreign_keys]):
            made, said = _plan_table(facts, table, asked)
            tables.append(made)
            findings += said
    return Plan(facts.now, tuple(shard.name for shard in asked), deferred, tuple(tables), tuple(findings))


def _skew(asked: Sequence[ShardShape]) -> Finding | None:
    if len(asked) < 2:
        return None
    behind, ahead = (pick(asked, key=lambda shard: shard.skew) for pick in (min, max))
    apart = ahead.skew - behind.skew
    if apart <= MOST_SKEW:
        return None
    return Finding(
        "clock-skew",
        f"the clock of shard {ahead.name} is {apart:.1f} s ahead of that of {behind.name}: nothing is done before they "
        f"agree within {MOST_SKEW:g} s",
        "set the servers' clocks (chrony or NTP)",
        shard=ahead.name,
        facts={"seconds": round(apart, 1), "behind": behind.name},
    )


def in_order(tables: Sequence[PartitionedTable], keys: Sequence[ForeignKey]) -> list[PartitionedTable]:
    """Tables, those that refer before those that they refer to.

    Args:
        tables: which.
        keys: foreign keys between them.
    """
    refer: dict[int, set[int]] = {table.id: set() for table in tables}
    for key in keys:
        if key.table_id in refer and key.to_id in refer and key.table_id is not None and key.table_id != key.to_id:
            refer[key.to_id].add(key.table_id)
    found: list[PartitionedTable] = []
    left = sorted(tables, key=lambda table: table.full_name)
    while left:
        ready = [table for table in left if not refer[table.id] & {other.id for other in left}]
        found += (ready := ready or left[:1])  # tables in a ring: any order will do
        left = [table for table in left if table not in ready]
    return found


def _plan_table(facts: Facts, table: PartitionedTable, asked: Sequence[ShardShape]) -> tuple[TablePlan, list[Finding]]:
    here = [shard for shard in asked if table.is_on(shard.name) and table.id in shard.tables]
    declared = facts.declared_of(table)
    frozen = [move for move in facts.moves if move.keyspace == table.keyspace]
    needed = [one for one in facts.needed if one.table_id == table.id]
    over = {one.name for one in declare.expiring(table, declared, facts.now)}
    findings = _explain(table, frozen, needed, over)
    change = _change(facts, table, declared, here, keep=over if frozen else {one.window for one in needed})
    findings += change.findings
    after = change.after(declared, facts.now)
    steps = {}
    for shard in here:
        found = differ.difference(
            table,
            shard.name,
            shard.tables[table.id],
            after,
            facts.now,
            frozen=bool(frozen),
            needed={one.window for one in needed if one.shard == shard.name},
        )
        steps[shard.name] = tuple(found.steps)
        findings += found.findings
    # Also those that could not be asked: while they lack windows, nobody else gets them.
    leaders = {move.target for move in frozen}
    # A copy of a reference table must be able to take what its home sends.
    order = sorted((shard.name for shard in here), key=lambda name: (name not in leaders, name == table.home, name))
    return (
        TablePlan(
            table.id,
            table.full_name,
            table.policy.to_json(),
            table.key,
            change.add,
            change.resize,
            tuple(one.name for one in change.retire),
            _forgotten(facts, table, declared, here),
            steps,
            tuple(order),
            tuple(sorted(leaders)),
            tuple(
                sorted(
                    {
                        key.table_id
                        for shard in here
                        for key in shard.foreign_keys
                        if key.to_id == table.id and key.table_id is not None
                    }
                )
            ),
        ),
        findings,
    )


def _change(
    facts: Facts, table: PartitionedTable, declared: Declared, here: Sequence[ShardShape], keep: set[str]
) -> Change:
    shapes = [shard.tables[table.id] for shard in here]
    if not any(shape.relkind == "p" for shape in shapes):
        return Change()  # nothing is declared before the table is partitioned somewhere
    known = declared.names()
    strangers = {
        leaf.span
        for shape in shapes
        for leaf in shape.leaves
        if leaf.attached and not leaf.default and leaf.name not in known
    }
    if any(leaf.default for shape in shapes for leaf in shape.leaves):
        return Change()
    return declare.change(
        table,
        declared,
        facts.now,
        kept=keep,
        strangers=strangers,
        rows=[
            rows
            for shape in shapes
            for rows in shape.guard_rows
            if any(leaf.name == rows.name and leaf.role == "before" for leaf in shape.leaves)
        ],
        taken={name for shape in shapes for name in shape.taken}
        | {leaf.name for shape in shapes for leaf in shape.leaves},
    )


def _explain(
    table: PartitionedTable, frozen: Sequence[LiveMove], needed: Sequence[Needed], over: set[str]
) -> list[Finding]:
    findings: list[Finding] = []
    if frozen:
        numbers = ", ".join(str(number) for number in sorted({move.operation for move in frozen}))
        findings.append(
            Finding(
                "frozen",
                f"{table.full_name}: operation {numbers} moves its rows; nothing is detached, archived or dropped meanwhile"
                + (f" ({len(over)} windows wait)" if over else ""),
                f"shardwright reshard status {numbers.partition(',')[0]}",
                table.full_name,
                severity=WARNING,
            )
        )
    for one in needed:
        findings.append(
            Finding(
                "needed-window",
                f"{table.full_name} on shard {one.shard}: {one.window} cannot go, rows of {one.by} refer to rows in it "
                f"({one.constraint})",
                f"delete those rows of {one.by}, or partition it by time with the same windows and no longer `keep`",
                table.full_name,
                one.shard,
                facts={"leaf": one.window, "constraint": one.constraint},
            )
        )
    policy = table.policy
    if policy.kept is not None:
        spans = [policy.kept.count * _SECONDS[policy.kept.unit], policy.window.count * _SECONDS[policy.window.unit]]
        leaves = spans[0] // spans[1] + policy.ahead + 1
        if leaves > MANY_LEAVES:
            findings.append(
                Finding(
                    "many-leaves",
                    f"{table.full_name}: keep={policy.keep} in windows of {policy.every} comes to about {leaves} "
                    f"partitions; queries that name no time get slow above {MANY_LEAVES}",
                    "longer windows (`every`), or a shorter `keep`",
                    table.full_name,
                    severity=WARNING,
                    facts={"leaves": leaves},
                )
            )
    return findings


def _forgotten(
    facts: Facts, table: PartitionedTable, declared: Declared, here: Sequence[ShardShape]
) -> tuple[str, ...]:
    """Retired windows of which no shard has anything any more."""
    if len(here) != sum(table.is_on(shard.name) for shard in facts.shards):
        return ()  # who was not asked may have them still
    there = {leaf.name for shard in here for leaf in shard.tables[table.id].leaves}
    return tuple(sorted(one.name for one, _ in declared.retired if one.name not in there))
