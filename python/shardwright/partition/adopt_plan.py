"""What taking a partitioned table over means: windows to declare, partitions to mark, what takes a DEFAULT's place. Pure.

Bounds decide. What a shard has becomes the catalog's list; what another shard lacks of it is made there by ticks. Names
are only compared, since the list has one name for a window on every shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from shardwright.partition import agreeing, calendar, codecs, instead
from shardwright.partition.agreeing import Here
from shardwright.partition.calendar import Window
from shardwright.partition.carried import qualified
from shardwright.partition.clocks import LAST
from shardwright.partition.convertible import Reason
from shardwright.partition.declare import Declared, by_position, expiring, told
from shardwright.partition.handmade import COUNTED, FoundLeaf, FoundTable
from shardwright.partition.shapes import Partition, PartitionedTable
from shardwright.routing.predicates import quote_identifier as ident

#: Tables that take a DEFAULT partition's place in one transaction: each holds the parent a little longer.
MOST_INSTEAD: Final = 64


@dataclass(frozen=True)
class Taken:
    """A partition that is to carry our mark."""

    relid: int
    name: str
    lower: int | None
    upper: int | None
    role: str

    @property
    def partition(self) -> Partition:
        """As the catalog lists it."""
        return Partition(self.name, self.lower, self.upper, self.role)


@dataclass(frozen=True)
class Default:
    """A DEFAULT partition that goes."""

    relid: int
    name: str
    rows: int
    #: What takes its place, in order: what the shard lacks of the list.
    instead: tuple[Partition, ...] = ()
    #: As the partition with bounds that it becomes, with its rows; None: it goes, its rows are moved.
    turned: Partition | None = None


@dataclass(frozen=True)
class ShardPlan:
    """What is done on one shard."""

    take: tuple[Taken, ...] = ()
    default: Default | None = None
    #: Windows that it lacks, and that ticks make.
    lacks: tuple[str, ...] = ()
    #: Every partition without our mark: relid, name, bounds. What is found under the lock must be these.
    seen: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True)
class AdoptPlan:
    """What is done on all shards; the same plan has the same fingerprint."""

    #: ``schema.table``.
    table: str
    kind: str
    policy: Mapping[str, Any]
    #: Where the policy is from: ``given``, ``catalog`` or ``pg_partman``.
    policy_from: str
    key: str
    #: What the catalog is to list besides what it lists.
    add: tuple[Partition, ...]
    shards: Mapping[str, ShardPlan]
    #: Windows whose time is over by the policy: the next tick retires them.
    over: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether the table is ours already, on every shard."""
        return not self.add and not any(one.take or one.default for one in self.shards.values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two plans share which do the same; what ticks do afterwards does not count."""
        value: list[Any] = [self.table, dict(self.policy), self.key, [asdict(one) for one in self.add]]
        for name, shard in sorted(self.shards.items()):
            default = shard.default
            places = [asdict(one) for one in (default.instead if default is not None else ())]
            value.append([name, shard.seen, default.name if default is not None else None, places])
        text = json.dumps(value, sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "fingerprint": self.fingerprint,
            "table": self.table,
            "kind": self.kind,
            "policy": dict(self.policy),
            "policy_from": self.policy_from,
            "key": self.key,
            "windows": [asdict(one) for one in self.add],
            "shards": {
                name: {
                    "take": [one.name for one in shard.take],
                    "lacks": list(shard.lacks),
                    "default": None
                    if shard.default is None
                    else {
                        "name": shard.default.name,
                        "rows": shard.default.rows,
                        "instead": [one.name for one in shard.default.instead],
                        "stays": shard.default.turned is not None,
                    },
                }
                for name, shard in self.shards.items()
            },
            "over": list(self.over),
            "notes": list(self.notes),
        }


@dataclass
class Facts:
    """Everything that a plan is made from."""

    table: PartitionedTable
    policy_from: str
    #: The databases' clock.
    now: datetime
    #: By shard, the canary first; None where the table is not there yet.
    shards: Mapping[str, FoundTable | None]
    #: As the catalog has it.
    declared: Declared = field(default_factory=Declared)
    #: By shard, the calendar's windows that have rows in its DEFAULT partition.
    occupied: Mapping[str, Sequence[Window]] = field(default_factory=dict)
    #: By shard, positions of the first and the last row in its DEFAULT partition, where some shard's has too many to move.
    extents: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    #: Names that a new partition cannot have.
    taken: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def make(facts: Facts) -> tuple[AdoptPlan, list[tuple[str, Reason]]]:
    """The plan, and what keeps it from being carried out, by shard.

    Args:
        facts: of shards that are fit by themselves (`adoptable.reasons`).
    """
    policy, key = facts.table.policy, facts.table.key
    here = [
        Here(shard, leaf, *codecs.parse_bounds(policy, key, leaf.bounds))
        for shard, found in facts.shards.items()
        for leaf in (found.leaves if found is not None else ())
        if not leaf.is_default
    ]
    problems = agreeing.contradictions(facts.table, facts.declared, here)
    if problems:
        return _plan(facts, here, ()), problems
    known = facts.declared.names()
    new = _roles(facts, [one for one in here if one.leaf.name not in known])
    defaults = {shard: found.default for shard, found in facts.shards.items() if found is not None and found.default}
    if not defaults:
        return _plan(facts, here, new), []
    listed = [*facts.declared.wanted, *new]
    fat, problems = _turned(facts, listed, defaults)
    if problems:
        return _plan(facts, here, new), problems
    if fat is not None and fat not in listed:
        new, listed = (*new, fat), [*listed, fat]
    rows = {window for some in facts.occupied.values() for window in some} if fat is None else set()
    new = (*new, *instead.instead(facts.table, listed, rows, facts.now, facts.taken))
    made = _plan(facts, here, new, fat)
    return made, list(_too_many(made))


def _turned(
    facts: Facts, listed: Sequence[Partition], defaults: Mapping[str, FoundLeaf]
) -> tuple[Partition | None, list[tuple[str, Reason]]]:
    """The partition that DEFAULT partitions become, where they have too many rows to be moved; and why they cannot."""
    name = next(iter(defaults.values())).name
    decided = next((one for one in facts.declared.wanted if one.name == name), None)
    if decided is not None or not any(leaf.has_many for leaf in defaults.values()):
        return decided, []
    problems = [
        (
            shard,
            Reason(
                f"calls its DEFAULT partition {leaf.name}, and another shard {name}, which is to become one window",
                f"ALTER TABLE {qualified(leaf.schema, leaf.name)} RENAME TO {ident(name)}",
            ),
        )
        for shard, leaf in defaults.items()
        if leaf.name != name
    ]
    least, most = min(low for low, _ in facts.extents.values()), max(high for _, high in facts.extents.values())
    fat, wrong = instead.turned(facts.table, listed, name, least, most, facts.now)
    if wrong:
        shard, leaf = max(defaults.items(), key=lambda item: item[1].rows or 0)
        problems.append(
            (
                shard,
                Reason(
                    f"has more than {COUNTED} rows in its DEFAULT partition {leaf.name}, too many to move under a lock, and it "
                    f"cannot become one window: {wrong}",
                    f"look at them: SELECT * FROM {qualified(leaf.schema, leaf.name)}; delete or correct those, or move them "
                    f"to partitions of their own, until all rows lie together or at most {COUNTED} are left",
                ),
            )
        )
    return fat, problems


def _roles(facts: Facts, here: Sequence[Here]) -> tuple[Partition, ...]:
    """What is new, each window once. One without an end, and without rows, is a guard."""
    policy, key = facts.table.policy, facts.table.key
    found: dict[str, Partition] = {}
    with_rows = {one.leaf.name for one in here if one.leaf.rows != 0}
    for one in here:
        name, (lower, upper) = one.leaf.name, one.span
        role = "window"
        if one.leaf.role:
            role = one.leaf.role
        elif lower is None:
            role = "before" if policy.guards and name not in with_rows else "whole"
        elif upper is None:
            role = "after"
        elif upper > calendar.window_at(policy, key, lower).upper:
            role = "whole"
        found.setdefault(name, Partition(name, lower, upper, role))
    return tuple(sorted(found.values(), key=by_position))


def _plan(facts: Facts, here: Sequence[Here], new: Sequence[Partition], fat: Partition | None = None) -> AdoptPlan:
    table = facts.table
    listed = tuple(sorted([*facts.declared.wanted, *new], key=by_position))
    by_name = {one.name: one for one in listed}
    shards = {}
    for shard, found in facts.shards.items():
        mine = [one for one in here if one.shard == shard]
        attached = {one.leaf.name for one in mine}
        default = found.default if found is not None else None
        lacks = tuple(one for one in listed if one.name not in attached and (default is None or one != fat))
        shards[shard] = ShardPlan(
            tuple(
                Taken(one.leaf.relid, one.leaf.name, one.lower, one.upper, by_name[one.leaf.name].role)
                for one in mine
                if not one.leaf.role and one.leaf.name in by_name
            ),
            None if default is None else Default(default.relid, default.name, default.rows or 0, lacks, fat),
            tuple(one.name for one in lacks if not one.is_guard),
            tuple((one.relid, one.name, one.bounds) for one in (found.leaves if found else ()) if not one.role),
        )
    after = Declared(listed, facts.declared.retired, facts.declared.kept)
    return AdoptPlan(
        table.full_name,
        table.kind,
        table.policy.to_json(),
        facts.policy_from,
        table.key,
        tuple(new),
        shards,
        tuple(one.name for one in expiring(table, after, facts.now)),
        (*facts.notes, *_bridge(facts, listed)),
    )


def _bridge(facts: Facts, listed: Sequence[Partition]) -> Iterator[str]:
    """Says how the calendar goes on where the newest partition does not end at one of its borders."""
    policy, key = facts.table.policy, facts.table.key
    ends = [one.upper for one in listed if not one.is_guard and one.upper is not None]
    if not ends or not (last := max(ends)) < LAST:
        return
    window = calendar.window_at(policy, key, last)
    if window.lower != last:
        yield (
            f"the newest partition does not end where a window of {policy.every} begins: the next one is shorter, from "
            f"{told(facts.table, last, window.upper)}. If they should follow another calendar, give --zone or --anchor"
        )


def _too_many(made: AdoptPlan) -> Iterator[tuple[str, Reason]]:
    for name, shard in made.shards.items():
        if shard.default is not None and len(shard.default.instead) > MOST_INSTEAD:
            yield (
                name,
                Reason(
                    f"needs {len(shard.default.instead)} partitions in the place of its DEFAULT partition "
                    f"{shard.default.name}, and at most {MOST_INSTEAD} are attached under one lock",
                    "longer windows (--every); or delete the rows that are far from all others",
                ),
            )
