"""A plan: what is to be declared in the catalog, and the steps that bring each shard to agree with it. A value. Pure.

It is made by `planner`, shown to people, saved as JSON, and carried out by `apply`. Its fingerprint says what will be
done, and nothing of what merely was seen: row counts and the clock do not change it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from shardwright import errors
from shardwright.partition.shapes import Partition

#: What a step can be, in the order in which a table's steps are done on a shard.
KINDS: Final = ("finalize", "create", "attach", "guard", "detach", "archive", "drop", "lift")

#: Those that take something away; frozen while rows move.
RETENTION: Final = ("detach", "archive", "drop")

#: Findings, by what they ask for: a person must act, or should know.
HUMAN: Final = "human"
WARNING: Final = "warning"


@dataclass(frozen=True)
class Step:
    """One thing to do with one partition on one shard."""

    #: One of `KINDS`.
    kind: str
    #: The partition's; of `lift` the table's.
    name: str
    #: Its bounds; a guard's are those that it gets.
    lower: int | None
    upper: int | None
    role: str = "window"
    #: Of a guard that makes room: the windows that are attached in the same transaction.
    windows: tuple[Partition, ...] = ()

    @property
    def partition(self) -> Partition:
        """The partition, with the bounds that it is to have."""
        return Partition(self.name, self.lower, self.upper, self.role)


@dataclass(frozen=True)
class Finding:
    """Something that the plan does not mend by itself."""

    #: Stable, kebab-case.
    kind: str
    message: str
    #: A sentence or a command line.
    fix: str
    table: str = ""
    shard: str = ""
    #: `HUMAN` or `WARNING`.
    severity: str = HUMAN
    #: What programs may want.
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TablePlan:
    """What is to be done for one table."""

    table_id: int
    #: ``schema.table``.
    table: str
    policy: Mapping[str, Any]
    key: str
    #: Changes of the declared list: new partitions, guards' new bounds, windows whose time is over, rows that go.
    add: tuple[Partition, ...] = ()
    resize: tuple[Partition, ...] = ()
    retire: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    #: By shard.
    steps: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    #: The shards that have it, in the order in which they are worked on; the first is the canary.
    order: tuple[str, ...] = ()
    #: Those whose windows must be there before others get them: targets of live moves.
    leaders: tuple[str, ...] = ()
    #: Numbers of the tables that refer to it and lose their windows first.
    children: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.add or self.resize or self.retire or self.forget or any(self.steps.values()))

    def moves(self) -> dict[str, Any]:
        """What it does, JSON-ready."""
        found: dict[str, Any] = _plain(
            {
                "table_id": self.table_id,
                "table": self.table,
                "policy": dict(self.policy),
                "key": self.key,
                "add": self.add,
                "resize": self.resize,
                "retire": self.retire,
                "forget": self.forget,
                "steps": {shard: steps for shard, steps in sorted(self.steps.items()) if steps},
                "order": self.order,
                "leaders": self.leaders,
                "children": self.children,
            }
        )
        return found


@dataclass(frozen=True)
class Plan:
    """What is to be done for several tables on all shards."""

    #: The moment that it was made for: the databases' clock.
    now: datetime
    #: The shards that were asked.
    shards: tuple[str, ...]
    #: Those that could not be asked, and why.
    deferred: Mapping[str, str]
    #: Referencing tables before referenced ones.
    tables: tuple[TablePlan, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return all(table.is_empty for table in self.tables)

    @property
    def needs_human(self) -> bool:
        """Whether a finding asks for a person."""
        return any(finding.severity == HUMAN for finding in self.findings)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two plans share which do the same."""
        text = json.dumps([table.moves() for table in self.tables], sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def steps(self) -> Iterator[tuple[TablePlan, str, Step]]:
        """Every step with its table and shard, in the order in which they are done where nothing stands in the way."""
        for table in self.tables:
            for shard in table.order:
                for step in table.steps.get(shard, ()):
                    yield table, shard, step

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value; `from_json` reads it back."""
        return {
            "fingerprint": self.fingerprint,
            "now": self.now.isoformat(),
            "shards": list(self.shards),
            "deferred": dict(self.deferred),
            "tables": [table.moves() for table in self.tables],
            "findings": [_plain(asdict(finding)) for finding in self.findings],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Args:
            value: decoded JSON.

        Raises:
            BadOption: it is no plan, or was changed by hand.
        """
        try:
            found = cls(
                datetime.fromisoformat(value["now"]),
                tuple(value["shards"]),
                dict(value["deferred"]),
                tuple(_table(table) for table in value["tables"]),
                tuple(Finding(**finding) for finding in value["findings"]),
            )
            said = value["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise errors.BadOption(
                f"this is no saved plan: {' '.join(str(error).split())}", fix="shardwright partition plan --out FILE"
            ) from error
        if found.fingerprint != said:
            raise errors.BadOption(
                f"the plan was changed after it was saved: its fingerprint is {found.fingerprint}, and it says {said}",
                fix="shardwright partition plan --out FILE",
            )
        return found


def changes(before: Plan, after: Plan) -> list[str]:
    """What two plans do differently, one line each; empty where they do the same.

    Args:
        before: the older plan.
        after: the newer one.
    """

    def told(plan: Plan) -> set[str]:
        found = {
            f"{table.table}: the policy is {json.dumps(dict(table.policy), sort_keys=True)}" for table in plan.tables
        }
        for table in plan.tables:
            for what, names in (
                ("declare", [one.name for one in table.add]),
                ("resize", [f"{one.name} to {one.span}" for one in table.resize]),
                ("retire", table.retire),
                ("forget", table.forget),
            ):
                found |= {f"{table.table}: {what} {name}" for name in names}
        found |= {
            f"{table.table} on {shard}: {step.kind} {step.name} {step.lower}..{step.upper}"
            + "".join(f" {window.name}" for window in step.windows)
            for table, shard, step in plan.steps()
        }
        return found

    old, new = told(before), told(after)
    said = [f"no more: {line}" for line in sorted(old - new)] + [f"new: {line}" for line in sorted(new - old)]
    return sorted(said, key=lambda line: " on " in line)  # causes before the steps that follow from them


def _plain(value: Any) -> Any:
    if isinstance(value, (Partition, Step)):
        return {name: _plain(item) for name, item in vars(value).items() if item not in ((), None) or name in _BOUNDS}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(item) for item in value]
    return value


_BOUNDS = ("lower", "upper")


def _table(value: Mapping[str, Any]) -> TablePlan:
    return TablePlan(
        value["table_id"],
        value["table"],
        dict(value["policy"]),
        value["key"],
        tuple(Partition(**one) for one in value["add"]),
        tuple(Partition(**one) for one in value["resize"]),
        tuple(value["retire"]),
        tuple(value["forget"]),
        {
            shard: tuple(
                Step(**{**step, "windows": tuple(Partition(**one) for one in step.get("windows", ()))})
                for step in steps
            )
            for shard, steps in value["steps"].items()
        },
        tuple(value["order"]),
        tuple(value["leaders"]),
        tuple(value["children"]),
    )
