"""What one shard lacks of a table's declared list, as steps; and what only a person can mend, as findings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shardwright.partition import calendar
from shardwright.partition.declare import Declared, by_position, covering, overlap, told, uncovered
from shardwright.partition.plan import HUMAN, WARNING, Finding, Step
from shardwright.partition.shapes import GuardRows, Leaf, Partition, PartitionedTable, TableShape

#: Windows that are attached in one transaction in the place of a part of a guard: each holds the parent a little longer.
AT_ONCE = 8

#: Attached leaves above which queries that are not pruned get slow.
MANY_LEAVES = 400

Span = tuple[int | None, int | None]


@dataclass
class Difference:
    """What one shard lacks of one table."""

    steps: list[Step] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass
class _Work:
    """One comparison."""

    table: PartitionedTable
    shard: str
    shape: TableShape
    declared: Declared
    now: datetime
    frozen: bool
    needed: Collection[str]
    found: Difference = field(default_factory=Difference)
    #: Spans of the leaves that will be attached after the steps so far; guards are not among them.
    remaining: dict[str, Span] = field(default_factory=dict)

    def say(self, kind: str, message: str, fix: str, severity: str = HUMAN, **facts: object) -> None:
        self.found.findings.append(
            Finding(
                kind,
                f"{self.table.full_name} on shard {self.shard}: {message}",
                fix,
                self.table.full_name,
                self.shard,
                severity,
                facts,
            )
        )

    def step(self, kind: str, one: Partition | Leaf, windows: Sequence[Partition] = ()) -> None:
        self.found.steps.append(Step(kind, one.name, one.lower, one.upper, one.role or "window", tuple(windows)))


def difference(
    table: PartitionedTable,
    shard: str,
    shape: TableShape,
    declared: Declared,
    now: datetime,
    *,
    frozen: bool = False,
    needed: Collection[str] = (),
) -> Difference:
    """Compare.

    Args:
        table: the table.
        shard: the shard's name.
        shape: what it has.
        declared: what it should have.
        now: the database's clock.
        frozen: nothing is taken away: its rows are moving.
        needed: windows whose rows other tables' rows refer to here.
    """
    work = _Work(table, shard, shape, declared, now, frozen, needed)
    if _fits(work):
        leaves = {leaf.name: leaf for leaf in shape.leaves}
        for leaf in shape.leaves:
            if leaf.pending:
                work.step("finalize", leaf)
        missing = _wanted(work, leaves)
        going = _retired(work, leaves)
        _unknown(work, leaves)
        _attach(work, missing, going, leaves)
    if shape.idle_barrier:  # last: what follows a step that does not succeed is not done
        work.found.steps.append(Step("lift", table.name, None, None))
    return work.found


def _fits(work: _Work) -> bool:
    """Whether the table can be worked on at all."""
    table, shape = work.table, work.shape
    name = table.full_name
    column = table.policy.column
    if shape.relkind is None:
        work.say(
            "missing-table",
            "it is not there",
            f"shardwright shard add {work.shard} DSN, again, makes what is missing",
        )
    elif shape.relkind != "p":
        work.say("not-partitioned", "it is not partitioned", f"shardwright partition convert {name}")
    elif shape.partition_by not in (f"RANGE ({column})", 'RANGE ("{}")'.format(column.replace('"', '""'))):
        work.say(
            "other-key",
            f"it is partitioned by {shape.partition_by}, and its policy by {column}",
            "give the policy the column by which it is partitioned",
        )
    elif any(leaf.default for leaf in shape.leaves):
        default = next(leaf for leaf in shape.leaves if leaf.default)
        work.say(
            "default-partition",
            f"{default.name} is a DEFAULT partition: it would be locked and read through at each new window",
            f"shardwright partition adopt {name}, which puts windows and guards in its place",
            leaf=default.name,
        )
    else:
        attached = sum(leaf.attached for leaf in shape.leaves)
        if attached > MANY_LEAVES:
            work.say(
                "many-leaves",
                f"{attached} partitions are attached; queries that name no time get slow above {MANY_LEAVES}",
                "longer windows (`every`), or a shorter `keep`",
                WARNING,
                leaves=attached,
            )
        return True
    return False


def _wanted(work: _Work, leaves: dict[str, Leaf]) -> list[Partition]:
    """The declared partitions that are to be attached, guards among them."""
    missing: list[Partition] = []
    attached = [leaf for leaf in leaves.values() if leaf.attached and not _is_guard(leaf)]
    covered = covering(leaf.span for leaf in attached)
    for one in work.declared.wanted:
        leaf = leaves.get(one.name)
        if leaf is not None and leaf.attached and not leaf.pending:
            if not leaf.marked:
                _say_unmarked(work, leaf)
            if not one.is_guard:
                work.remaining[leaf.name] = leaf.span
                if leaf.span != one.span:
                    work.say(
                        "other-bounds",
                        f"{leaf.name} goes from {told(work.table, *leaf.span)}, and is declared "
                        f"from {told(work.table, *one.span)}",
                        "attach it with the declared bounds again, or " + _take_out(work, leaf.name),
                        leaf=leaf.name,
                    )
        elif leaf is not None and leaf.stranger:
            _say_stranger(work, leaf)
        elif leaf is None and one.name in work.shape.taken:
            work.say(
                "name-taken",
                f"something else is called {one.name}",
                "rename it; the partition is made by the next run",
                leaf=one.name,
            )
        elif one.is_guard:
            missing.append(one)
        elif leaf is not None and leaf.attached:
            missing.append(one)  # pending: attached again after it was finalized
        elif one.lower is None or one.upper is None or uncovered(one.lower, one.upper, covered) != [one.span]:
            others = [other.name for other in attached if overlap(other.span, one.span)]
            if not others:
                missing.append(one)
                continue
            work.say(
                "in-the-way",
                f"{one.name} cannot be attached: {', '.join(others)} covers a part of it",
                _take_out(work, others[0]),
                leaf=one.name,
            )
        else:
            missing.append(one)
    return missing


def _retired(work: _Work, leaves: dict[str, Leaf]) -> list[Step]:
    """Steps by which windows go whose time is over."""
    going: list[Step] = []

    def go(kind: str, one: Leaf) -> None:
        going.append(Step(kind, one.name, one.lower, one.upper, one.role))

    for one, retired_at in work.declared.retired:
        leaf = leaves.get(one.name)
        if leaf is None or leaf.pending:
            continue
        if leaf.stranger:
            _say_stranger(work, leaf)
        elif not leaf.marked:
            _say_unmarked(work, leaf)
        elif work.frozen:
            pass
        elif leaf.attached:
            if one.name not in work.needed:
                go("detach", leaf)
        elif not leaf.relkind or leaf.state == "made":
            go("drop", leaf)
        elif is_due(work.table, leaf.detached_at or retired_at, work.now):
            if leaf.state not in ("archived", "replaced") and work.table.policy.archive is not None:
                go("archive", leaf)
            go("drop", leaf)
        if leaf.attached and not any(step.name == leaf.name for step in going):
            work.remaining[leaf.name] = leaf.span
    return going


def is_due(table: PartitionedTable, detached_at: datetime, now: datetime) -> bool:
    """Whether a detached window's grace is over.

    Args:
        table: whose policy says how long it is.
        detached_at: when it left its parent.
        now: the database's clock.
    """
    grace = table.policy.grace_span
    if grace is None:
        return True
    at = calendar.now_on_axis(table.policy, "timestamptz", detached_at)
    return calendar.shift(table.policy, "timestamptz", at, grace, 1) <= calendar.now_on_axis(
        table.policy, "timestamptz", now
    )


def _unknown(work: _Work, leaves: dict[str, Leaf]) -> None:
    known = work.declared.names()
    for leaf in leaves.values():
        if leaf.name in known or leaf.pending:
            continue
        if leaf.attached:
            if not _is_guard(leaf):
                work.remaining[leaf.name] = leaf.span
            if leaf.marked:
                work.say(
                    "extra",
                    f"{leaf.name} carries our mark, and the catalog does not list it",
                    f"shardwright partition adopt {work.table.full_name}, which lists it",
                    leaf=leaf.name,
                )
            else:
                _say_unmarked(work, leaf)
        elif leaf.relkind and not leaf.stranger:
            work.say(
                "loose-table",
                f"{leaf.name} carries our mark ({leaf.state}), is not attached, and the catalog does not list it",
                f"shardwright partition restore, or drop it by hand: it is table {work.table.schema}.{leaf.name}",
                WARNING,
                leaf=leaf.name,
            )


def _take_out(work: _Work, name: str) -> str:
    """How a person takes a partition out of the table and keeps its rows."""
    table = work.table.full_name
    return f"ALTER TABLE {table} DETACH PARTITION {name}, then insert its rows into {table}"


def _say_unmarked(work: _Work, leaf: Leaf) -> None:
    work.say(
        "unmarked-leaf",
        f"{leaf.name} is a partition without our mark: it is never detached or dropped",
        f"shardwright partition adopt {work.table.full_name}",
        leaf=leaf.name,
    )


def _say_stranger(work: _Work, leaf: Leaf) -> None:
    work.say(
        "name-taken",
        f"{leaf.name} is another table than the one that we marked under this name: it is left alone",
        "rename it; what is missing is made by the next run",
        leaf=leaf.name,
    )


def _is_guard(leaf: Leaf) -> bool:
    return leaf.role in ("before", "after")


# ---------------------------------------------------------------- attaching, and the guards at the ends


def _attach(work: _Work, missing: list[Partition], going: list[Step], leaves: dict[str, Leaf]) -> None:
    """Steps that attach what is missing, with the guards making room; then those that detach, and guards that follow."""
    guards = {leaf.role: leaf for leaf in leaves.values() if leaf.attached and not leaf.pending and _is_guard(leaf)}
    windows = [one for one in missing if not one.is_guard]
    behind_guard: dict[str, list[Partition]] = {role: [] for role in guards}
    plain: list[Partition] = []
    for one in windows:
        role = next((role for role, guard in guards.items() if overlap(guard.span, one.span)), None)
        (plain if role is None else behind_guard[role]).append(one)
    full = {role for role, guard in guards.items() if behind_guard[role] and _is_full(work, guard)}
    for role in full:
        behind_guard[role] = []
    can = {one.name for some in (plain, *behind_guard.values()) for one in some}
    for one in [*windows, *(one for one in missing if one.is_guard)]:
        leaf = leaves.get(one.name)
        if (one.is_guard or one.name in can) and (leaf is None or not leaf.relkind):
            work.step("create", one)
    for one in plain:
        work.step("attach", one)
        work.remaining[one.name] = one.span
    for role, guard in guards.items():
        if role not in full:
            _make_room(work, guard, sorted(behind_guard[role], key=by_position))
    work.found.steps += [step for step in going if step.kind == "detach"]
    for guard in guards.values():
        _follow(work, guard, full)
    for one in missing:
        if one.is_guard and (span := _guard_span(work, one.role)) is not None:
            work.step("attach", Partition(one.name, *span, one.role))
    work.found.steps += [step for step in going if step.kind != "detach"]
    _say_rows(work, behind_guard)


def _guard_span(work: _Work, role: str) -> Span | None:
    """What a guard covers beside the leaves that remain; None: there is no room for one."""
    spans = sorted((Partition("", *span) for span in work.remaining.values()), key=by_position)
    if not spans:
        return None
    span: Span = (None, spans[0].lower) if role == "before" else (spans[-1].upper, None)
    return None if span == (None, None) else span


def _make_room(work: _Work, guard: Leaf, windows: list[Partition]) -> None:
    """A guard gives way to windows, a few in each transaction."""
    if guard.role == "before":
        windows = windows[::-1]
    for at in range(0, len(windows), AT_ONCE):
        some = windows[at : at + AT_ONCE]
        for one in some:
            work.remaining[one.name] = one.span
        span = _guard_span(work, guard.role)
        assert span is not None
        work.step("guard", Partition(guard.name, *span, guard.role), sorted(some, key=by_position))


def _follow(work: _Work, guard: Leaf, full: Collection[str]) -> None:
    """A guard takes the bounds that the windows beside it leave, where no step has given it those already."""
    last = next((step for step in reversed(work.found.steps) if step.name == guard.name), None)
    span = _guard_span(work, guard.role)
    if span is None or guard.role in full or span == (guard.span if last is None else (last.lower, last.upper)):
        return
    work.step("guard", Partition(guard.name, *span, guard.role))


def _is_full(work: _Work, guard: Leaf) -> bool:
    return any(rows.more for rows in work.shape.guard_rows if rows.name == guard.name)


def _say_rows(work: _Work, behind_guard: dict[str, list[Partition]]) -> None:
    """Rows in a guard that no step moves into a window."""
    for rows in work.shape.guard_rows:
        leaf = next((leaf for leaf in work.shape.leaves if leaf.name == rows.name), None)
        if leaf is None:
            continue
        making_room = behind_guard.get(leaf.role, [])
        if not rows.more and making_room and _covers(making_room[0].lower, making_room[-1].upper, rows):
            continue  # all of them go into windows
        many = f"more than {rows.count}" if rows.more else str(rows.count)
        between = f", from {rows.examples[0]} to {rows.examples[-1]}" if rows.examples else ""
        work.say(
            "rows-in-guard",
            f"{many} rows are in the guard {rows.name}{between}: no window takes them",
            f"look at them: SELECT * FROM {work.table.schema}.{rows.name}; delete or correct them"
            + (
                ", or have them moved while everybody waits for the table: "
                f"shardwright partition tick --table {work.table.full_name} --guard-rows N"
                if rows.more
                else ""
            ),
            leaf=rows.name,
            rows=rows.count,
            more=rows.more,
        )


def _covers(low: int | None, high: int | None, rows: GuardRows) -> bool:
    if rows.least is None or rows.most is None:
        return False
    return (
        (low is None or low <= rows.least)
        and (high is None or rows.most < high)
        and "infinity" not in str(rows.examples)
    )
