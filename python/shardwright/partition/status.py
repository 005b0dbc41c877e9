"""How all shards stand: a matrix shard x window, and for how many days each shard has windows. One value, for every face."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from shardwright.partition import calendar, moments
from shardwright.partition.declare import Declared, by_position
from shardwright.partition.fleet import Fleet
from shardwright.partition.plan import HUMAN, Finding, Plan
from shardwright.partition.planner import Facts, make_plan
from shardwright.partition.shapes import Leaf, Partition, PartitionedTable, ShardShape, TableShape

#: What one shard has of one window.
STATES = ("present", "missing", "made", "pending", "detached", "archived", "extra", "unmarked", "unknown")

_DAY = 86_400 * 1_000_000


@dataclass(frozen=True)
class WindowStatus:
    """One partition on all shards."""

    name: str
    role: str
    #: ISO 8601; None: the axis' end.
    lower: str | None
    upper: str | None
    #: ``wanted``, ``retired``, or ``undeclared``.
    state: str
    #: By shard, one of `STATES`.
    shards: dict[str, str]


@dataclass(frozen=True)
class TableStatus:
    """One table."""

    table: str
    policy: dict[str, Any]
    windows: tuple[WindowStatus, ...]
    #: By shard, days for which windows are attached from now on without a gap; None: for ever, or not known.
    runway_days: dict[str, float | None]
    #: Shards whose runway is shorter than one window's length.
    short: tuple[str, ...]
    #: By shard, rows in guards.
    guard_rows: dict[str, int]
    #: Steps that are to be done.
    to_do: int


@dataclass(frozen=True)
class Status:
    """All tables with a policy."""

    now: datetime
    #: By shard: None, or why it could not be asked.
    shards: dict[str, str | None]
    tables: tuple[TableStatus, ...]
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def exit_code(self) -> int:
        """3: a runway is too short, or a finding asks for a person; 4: a shard could not be asked; else 0."""
        if any(table.short for table in self.tables) or any(one.severity == HUMAN for one in self.findings):
            return 3
        return 4 if any(self.shards.values()) else 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "now": self.now.isoformat(),
            "shards": dict(self.shards),
            "tables": [asdict(table) for table in self.tables],
            "findings": [asdict(finding) for finding in self.findings],
        }


def status(catalog_dsn: str, names: Collection[tuple[str, str]] = (), *, now: datetime | None = None) -> Status:
    """Look at all shards; nothing is changed.

    Args:
        catalog_dsn: where the catalog is.
        names: schema and name of the only tables that count; all with a policy by default.
        now: the moment to judge by; the databases' clock unless given.

    Raises:
        UnknownTable, BadDeclaration: a named table is not registered, or has no policy.
        CannotConnect, PasswordMissing, NotPrimary: the catalog cannot be asked.
    """
    with Fleet(catalog_dsn, names) as fleet:
        facts = fleet.look(now)
        planned = make_plan(facts)
        return status_of(facts, planned, fleet.findings)


def status_of(facts: Facts, planned: Plan, findings: Sequence[Finding] = ()) -> Status:
    """The status, from what is known.

    Args:
        facts: what was seen.
        planned: the plan that was made from it.
        findings: more of them.
    """
    steps = {table.table_id: sum(map(len, table.steps.values())) for table in planned.tables}
    return Status(
        facts.now,
        {shard.name: shard.problem[1] if shard.problem else None for shard in facts.shards},
        tuple(_table(facts, table, steps.get(table.id, 0)) for table in facts.tables),
        (*findings, *planned.findings),
    )


def _table(facts: Facts, table: PartitionedTable, to_do: int) -> TableStatus:
    declared = facts.declared_of(table)
    here = [shard for shard in facts.shards if table.is_on(shard.name)]
    runways = {shard.name: _runway(facts, table, shard) for shard in here}
    return TableStatus(
        table.full_name,
        table.policy.to_json(),
        tuple(_windows(table, declared, here)),
        {name: None if days is None else round(days, 1) for name, days in runways.items()},
        tuple(
            shard.name
            for shard in here
            if shard.problem is None and (days := runways[shard.name]) is not None and days < _length(facts, table)
        ),
        {
            shard.name: sum(rows.count for rows in shard.tables[table.id].guard_rows)
            for shard in here
            if table.id in shard.tables
        },
        to_do,
    )


def _windows(table: PartitionedTable, declared: Declared, here: Sequence[ShardShape]) -> list[WindowStatus]:
    listed = {one.name: (one, "wanted") for one in declared.wanted}
    listed |= {one.name: (one, "retired") for one, _ in declared.retired}
    for shard in here:
        for leaf in _shape(table, shard).leaves:
            if leaf.relkind:
                one = Partition(
                    leaf.name, leaf.lower, leaf.upper, leaf.role or ("default" if leaf.default else "window")
                )
                listed.setdefault(leaf.name, (one, "undeclared"))
    return [
        WindowStatus(
            one.name,
            one.role,
            iso(table, one.lower),
            iso(table, one.upper),
            state,
            {shard.name: _cell(table, one.name, state, shard) for shard in here},
        )
        for one, state in sorted(listed.values(), key=lambda pair: by_position(pair[0]))
    ]


def _shape(table: PartitionedTable, shard: ShardShape) -> TableShape:
    return shard.tables.get(table.id, TableShape(None))


def _cell(table: PartitionedTable, name: str, state: str, shard: ShardShape) -> str:
    if shard.problem is not None:
        return "unknown"
    leaf = next((leaf for leaf in _shape(table, shard).leaves if leaf.name == name), None)
    if leaf is None or not leaf.relkind or leaf.stranger:
        return "missing" if state == "wanted" else ""
    if leaf.pending:
        return "pending"
    if leaf.attached:
        return "unmarked" if not leaf.marked else "extra" if state == "undeclared" else "present"
    return leaf.state


def _runway(facts: Facts, table: PartitionedTable, shard: ShardShape) -> float | None:
    """Days from now to where the attached windows have their first gap; None: for ever, or not known."""
    if shard.problem is not None:
        return None
    now = calendar.now_on_axis(table.policy, table.key, facts.now)
    at = now
    leaves = [leaf for leaf in _shape(table, shard).leaves if _holds(leaf)]
    for leaf in sorted(leaves, key=lambda leaf: by_position(Partition("", *leaf.span))):
        if leaf.default:
            return None
        if (leaf.lower is None or leaf.lower <= at) and (leaf.upper is None or leaf.upper > at):
            if leaf.upper is None:
                return None
            at = leaf.upper
    return (at - now) / _DAY


def _holds(leaf: Leaf) -> bool:
    return leaf.attached and not leaf.pending and leaf.role not in ("before", "after")


def _length(facts: Facts, table: PartitionedTable) -> float:
    """Days of the window of now."""
    now = calendar.now_on_axis(table.policy, table.key, facts.now)
    window = calendar.window_at(table.policy, table.key, now)
    return (window.upper - window.lower) / _DAY


def iso(table: PartitionedTable, at: int | None) -> str | None:
    """A bound for people and programs, as `iso_of`.

    Args:
        table: whose axis.
        at: microseconds on it; None: its end.
    """
    return iso_of(table.key, at)


def iso_of(key: str, at: int | None) -> str | None:
    """A bound for people and programs: ``2026-11-01T00:00:00Z``, without the Z where the column has no zone.

    Args:
        key: one of `policy.KEYS`.
        at: microseconds on the axis; None: its end.
    """
    if at is None:
        return None
    if key == "date":
        return moments.text_of(at, "date")
    text = moments.text_of(at, "timestamp").replace(" ", "T", 1)
    return text if key in calendar.WALL_KEYS or "infinity" in text else f"{text}Z"
