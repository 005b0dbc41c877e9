"""What an ordinary table is turned into on every shard: looked at, refused with every reason on every shard, and planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from shardwright import errors
from shardwright.catalog.layout import layout_of
from shardwright.partition import calendar, carried, codecs, convertible, moments, names, ordinary, swap
from shardwright.partition.carried import Conversion
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier as ident

#: The cut lies at least so far ahead: the old table has to be ready for it by then.
MARGIN: Final = timedelta(days=2)


@dataclass(frozen=True)
class ConvertPlan:
    """What a table is turned into; decided once, the same on every shard."""

    #: ``schema.table``.
    table: str
    policy: Policy
    extend_key: bool
    #: The old table as a partition, without a lower bound.
    whole: Partition
    #: A guard after the cut, or windows where the policy has no guards.
    after: tuple[Partition, ...]
    #: The statements of the swap, as they would be on the first shard now.
    statements: tuple[str, ...] = ()
    #: What works differently afterwards, by shard.
    notes: Mapping[str, tuple[str, ...]] | None = None
    #: Bytes of the table by shard.
    bytes: Mapping[str, int] | None = None

    @property
    def cut(self) -> int:
        """The moment from which on rows go to other partitions."""
        assert self.whole.upper is not None
        return self.whole.upper

    def state(self) -> dict[str, Any]:
        """What a job remembers."""
        return {
            "policy": self.policy.to_json(),
            "extend_key": self.extend_key,
            "whole": [self.whole.name, self.whole.lower, self.whole.upper, self.whole.role],
            "after": [[one.name, one.lower, one.upper, one.role] for one in self.after],
        }

    @classmethod
    def of(cls, table: str, state: Mapping[str, Any]) -> ConvertPlan:
        """The plan that a job remembers.

        Args:
            table: ``schema.table``.
            state: the job's.
        """
        return cls(
            table,
            Policy.from_json(state["policy"]),
            state["extend_key"],
            Partition(*state["whole"]),
            tuple(Partition(*one) for one in state["after"]),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        return {
            "table": self.table,
            "policy": self.policy.to_json(),
            "extend_key": self.extend_key,
            "cut": moments.text_of(self.cut, "timestamp"),
            "whole": self.whole.name,
            "after": [one.name for one in self.after],
            "statements": list(self.statements),
            "notes": {shard: list(said) for shard, said in (self.notes or {}).items()},
            "bytes": dict(self.bytes or {}),
        }


def conversion(site: PartitionSite, plan: ConvertPlan, table: ordinary.OrdinaryTable) -> Conversion:
    """The plan in the words of one shard's statements.

    Args:
        site: the table and shard.
        plan: what it is turned into.
        table: as it is there now.
    """

    def bound(at: int | None, side: codecs.Side) -> str:
        return codecs.bound(plan.policy, site.key, at, side, site.column_type)

    return Conversion(
        column=plan.policy.column,
        leaf=plan.whole.name,
        cut=bound(plan.cut, "upper"),
        check=check_body(site, plan),
        keep_check=codecs.lasting_check_sql(site.key, "x") is not None,
        after=tuple((one.name, bound(one.lower, "lower"), bound(one.upper, "upper")) for one in plan.after),
        new_key=swap.extended_index(table, plan.policy.column)[0] if plan.extend_key else None,
        renamed=carried.new_names(table, ()),
    )


def check_body(site: PartitionSite, plan: ConvertPlan) -> str:
    """SQL of the CHECK that all rows lie before the cut, and are neither infinite nor of another kind.

    Args:
        site: the table and shard.
        plan: what it is turned into.
    """
    column = ident(plan.policy.column)
    body = codecs.check_sql(plan.policy, site.key, column, None, plan.cut, site.column_type)
    finite = convertible.finite_check(site.key, column)
    return f"{body} AND {finite}" if finite else body


def make(sites: Sequence[PartitionSite], *, extend_key: bool, until: datetime | None, scan: bool = True) -> ConvertPlan:
    """Look at every shard and plan.

    Args:
        sites: the table on every shard that has it, the canary first.
        extend_key: add the partition column to the primary key where it lacks it.
        until: the cut lies at the end of this moment's window; two days from now unless given.
        scan: look for rows that keep it from being converted: one scan a shard.

    Raises:
        UnfitTable: it cannot be converted; every reason on every shard.
    """
    first = sites[0]
    found = {site.shard.name: ordinary.read(site.connection, site.schema, site.table.table_name) for site in sites}
    said: list[str] = []
    reasons: list[dict[str, str]] = []

    def refuse(shard: str, what: str, fix: str) -> None:
        said.append(f"shard {shard}: it {what}\n  fix: {fix}")
        reasons.append({"shard": shard, "what": what, "fix": fix})

    for site in sites:
        table = found[site.shard.name]
        for reason in convertible.reasons(
            table, site.policy, site.connection.info.server_version, extend_key=extend_key
        ):
            refuse(site.shard.name, reason.what, reason.fix)
        differing = _differs(first, site)
        if differing:
            refuse(site.shard.name, f"differs from shard {first.shard.name}: {differing}", "make the definitions equal")
    if said:
        raise _unfit(first.table.name, said, reasons)
    plan = _decide(sites, found, extend_key=extend_key, until=until)
    for site in sites if scan else ():
        count, values = swap.offenders(
            site.connection, site.schema, site.table.table_name, site.policy.column, check_body(site, plan)
        )
        if count:
            refuse(site.shard.name, *offending(site, plan, count, values))
    if said:
        raise _unfit(first.table.name, said, reasons)
    here = found[first.shard.name]
    to = conversion(first, plan, here)
    return ConvertPlan(
        plan.table,
        plan.policy,
        plan.extend_key,
        plan.whole,
        plan.after,
        (*carried.locks(here), *carried.statements(here, to)),
        {name: tuple(convertible.notes(table, first.policy)) for name, table in found.items()},
        {name: table.bytes for name, table in found.items()},
    )


def offending(site: PartitionSite, plan: ConvertPlan, count: int, values: Sequence[str]) -> tuple[str, str]:
    """What rows break the CHECK, and what helps.

    Args:
        site: the table and shard.
        plan: what it is turned into.
        count: how many were found.
        values: some of theirs.
    """
    many = "1000 or more rows" if count >= 1000 else f"{count} row{'s' if count > 1 else ''}"
    cut = moments.text_of(plan.cut, "timestamp")
    kind = " or that are no UUIDs of version 7" if site.key == "uuid7" else ""
    return (
        f"has {many} from {cut} on, infinite ones among them{kind}, such as {', '.join(values)}",
        "give them another time or delete them; or a later cut: --until MOMENT",
    )


def _unfit(table: str, said: Sequence[str], reasons: list[dict[str, str]]) -> errors.UnfitTable:
    count = f"{len(said)} reason{'s' if len(said) > 1 else ''}"
    return errors.UnfitTable(
        f"table {table} cannot be converted: {count}\n" + "\n".join(said),
        fix=reasons[0]["fix"] if len(reasons) == 1 else "see each line; nothing was changed",
        table=table,
        reasons=reasons,
    )


def _differs(first: PartitionSite, other: PartitionSite) -> str:
    if other is first:
        return ""
    name = (first.schema, first.table.table_name)
    found = layout_of(first.connection, *name).differences(layout_of(other.connection, *name))
    return "; ".join(found[:3])


def _decide(
    sites: Sequence[PartitionSite],
    found: Mapping[str, ordinary.OrdinaryTable],
    *,
    extend_key: bool,
    until: datetime | None,
) -> ConvertPlan:
    site = sites[0]
    policy, key, table = site.policy, site.key, site.table.table_name
    now = max(one.clock() for one in sites)
    at = calendar.now_on_axis(policy, key, until or now + MARGIN)
    cut = calendar.window_at(policy, key, at).upper
    if cut <= calendar.now_on_axis(policy, key, now + timedelta(minutes=10)):
        raise errors.BadOption(
            f"the cut would be {moments.text_of(cut, 'timestamp')}: rows that are written before all is done would not fit",
            fix="--until with a moment that is to come",
        )
    taken = set().union(*(swap.names_in(one.connection, one.schema) for one in sites))
    whole = Partition(names.leaf_name(table, "_whole", taken), None, cut, "whole")
    taken.add(whole.name)
    if policy.guards:
        after = [Partition(names.guard_name(table, "after", taken), cut, None, "after")]
    else:
        after = []
        for _ in range(policy.ahead):
            window = calendar.window_at(policy, key, after[-1].upper or cut if after else cut)
            name = names.leaf_name(table, calendar.label(policy, key, window), taken)
            taken.add(name)
            after.append(Partition(name, window.lower, window.upper, "window"))
    lacking = any(
        one["primary"] and policy.column not in one["columns"] for there in found.values() for one in there.indexes
    )
    return ConvertPlan(site.table.name, policy, extend_key and lacking, whole, tuple(after))
