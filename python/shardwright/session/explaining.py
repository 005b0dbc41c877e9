"""What a session would do with a statement, told without doing it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from shardwright import errors
from shardwright.routing.aggregates import MERGED, Recipe
from shardwright.routing.clauses import DIALECT
from shardwright.routing.merging import Finish, Merging, OrderKey
from shardwright.routing.shard_map import Route
from shardwright.routing.statement import Params, Plan
from shardwright.session.results import with_hidden
from shardwright.session.targets import Everywhere, Some, Spread, Target, homes_of, looks_through

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

Where = Literal["one", "any", "some", "everywhere", "refused"]

_SAID = {
    "one": "one shard",
    "any": "one shard, whichever",
    "some": "some shards",
    "everywhere": "every shard",
    "refused": "refused",
}


@dataclass(frozen=True)
class Merge:
    """How the shards' answers would become one. Everything in it is text for people."""

    #: by what they are ordered
    order: tuple[str, ...] = ()
    #: by what they are grouped
    groups: tuple[str, ...] = ()
    #: the aggregates that are continued over the shards
    aggregates: tuple[str, ...] = ()
    #: columns that the shards send for the merge, beyond the caller's
    hidden: tuple[str, ...] = ()
    #: functions of whom the database is asked, when it is executed, whether they aggregate; those that do are refused
    asked: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"{name} {', '.join(values)}" for name, values in asdict(self).items() if values and name != "hidden"]
        if self.hidden:
            said.append(f"{len(self.hidden)} hidden column{'s' if len(self.hidden) > 1 else ''}")
        return "; ".join(said) or "one after the other"


@dataclass(frozen=True)
class Refusal:
    """Why a statement would be refused, and the way out."""

    code: str
    kind: str
    reason: str
    way_out: str


@dataclass(frozen=True)
class Explanation:
    """Where a statement would go, by the shard map of the moment. `str()` of it is for people, `as_dict()` for JSON."""

    #: "one" shard; "any" one, since each has what it reads; "some"; "everywhere"; "refused"
    where: Where
    #: whose rule it is: "pinned", "routed", or "named" where the caller named the shard or the key
    route: Literal["pinned", "routed", "named"]
    #: the shards that would be asked; of "any" those that might be: the one that the transaction is on, if it is on one
    shards: tuple[str, ...]
    #: keyspace and key of each shard key that the statement names
    keys: tuple[tuple[str, Any], ...]
    #: ids of the ranges that would be entered, by shard; a shard that is entered as a whole has none
    ranges: Mapping[str, tuple[int, ...]]
    #: the version of the shard map
    map_version: int
    #: it may change or lock rows; None where that cannot be told
    writes: bool | None
    #: why no key could be found, where none was
    without_key: str | None = None
    #: how answers would be merged; None where one shard answers
    merge: Merge | None = None
    #: each shard is read through the points that it owns: "always", "while rows move", or "never"
    narrowed: Literal["always", "while rows move", "never"] = "never"
    #: the column by which
    narrowed_by: str | None = None
    refusal: Refusal | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; keys that JSON has no form for are text."""
        return {
            **asdict(self),
            "keys": [{"keyspace": keyspace, "key": _plain(key)} for keyspace, key in self.keys],
            "ranges": {shard: list(ids) for shard, ids in self.ranges.items()},
            "shards": list(self.shards),
            "merge": None if self.merge is None else {name: list(of) for name, of in asdict(self.merge).items()},
        }

    def __str__(self) -> str:
        named = f": {', '.join(self.shards)}" if self.shards else ""
        lines = [f"{_SAID[self.where]}{named} ({self.route}, map version {self.map_version})"]
        if self.refusal is not None:
            lines[0] = (
                f"refused: {self.refusal.code} {self.refusal.kind} ({self.route}, map version {self.map_version})"
            )
            lines += [f"  because  {self.refusal.reason}", f"  way out  {self.refusal.way_out}"]
        if self.keys:
            lines.append(f"  keys     {', '.join(f'{keyspace} {key!r}' for keyspace, key in self.keys)}")
        if any(self.ranges.values()):
            entered = (f"{', '.join(map(str, ids))} on {shard}" for shard, ids in self.ranges.items() if ids)
            lines.append(f"  ranges   {'; '.join(entered)}")
        if self.without_key is not None and self.refusal is None:
            lines.append(f"  no key   {self.without_key}")
        lines.append(f"  writes   {'cannot be told' if self.writes is None else 'yes' if self.writes else 'no'}")
        if self.merge is not None:
            lines.append(f"  merged   {self.merge}")
            lines.append(f"  narrowed {self.narrowed}{f' by {self.narrowed_by}' if self.narrowed_by else ''}")
        return "\n".join(lines)


def explain_target(
    cluster: Cluster,
    statement: Any,
    params: Params,
    target: Target | Some | Everywhere | Spread,
    *,
    strict: bool,
    named: bool,
    in_use: Sequence[str],
    brief: bool,
) -> Explanation:
    """Say what a target means.

    Args:
        cluster: knows map, tables and plans.
        statement: the statement.
        params: what it would be executed with.
        target: where it would go.
        strict: shards are asked what they serve.
        named: the caller named the shard or the key.
        in_use: shards on which the transaction is open already.
        brief: leave out how answers are merged.
    """
    plan, keys = _read(cluster, statement, params)
    if isinstance(target, Target):
        shards: tuple[str, ...] = (target.shard,)
        ranges = {target.shard: tuple(sorted(target.ranges))}
        if named:
            writes = plan.writes if plan is not None else None
            return Explanation("one", "named", shards, keys, ranges, target.version, writes)
        if plan is not None and not target.ranges and not homes_of(plan):
            might = tuple(in_use[:1]) or cluster.map.shards()
            return Explanation("any", "routed", might, keys, {}, target.version, target.writes)
        return Explanation("one", "routed", shards, keys, ranges, target.version, target.writes)
    if isinstance(target, (Some, Spread)):
        ranges = {shard: tuple(sorted(ids)) for shard, ids in target.ranges.items()}
    else:
        shard_map = cluster.map
        ranges = dict.fromkeys(sorted({one.shard for one in shard_map.ranges_of(target.plan.root_keyspace)}), ())
    if isinstance(target, Spread):
        return Explanation("some", "routed", tuple(ranges), keys, ranges, target.version, True)
    root = target.plan.root
    return Explanation(
        "some" if isinstance(target, Some) else "everywhere",
        "routed",
        tuple(ranges),
        keys,
        ranges,
        target.version,
        target.writes,
        target.plan.unbound,
        None if brief else _merge(statement, target.merging),
        "always" if isinstance(target, Some) or not strict else "while rows move",
        str(root) if root is not None else None,
    )


def explain_pinned(cluster: Cluster, statement: Any, params: Params, route: Route) -> Explanation:
    """Say what a pinned session, which has found nothing to refuse, would do.

    Args:
        cluster: knows tables and plans.
        statement: the statement.
        params: what it would be executed with.
        route: of the session's key.
    """
    plan, keys = _read(cluster, statement, params)
    mine = (route.keyspace, route.key)
    ranges = {route.shard: (route.range_id,)}
    writes = plan.writes if plan is not None else None
    return Explanation("one", "pinned", (route.shard,), keys or (mine,), ranges, route.map_version, writes)


def explain_refusal(
    cluster: Cluster,
    statement: Any,
    params: Params,
    route: Literal["pinned", "routed", "named"],
    error: errors.ShardwrightError,
) -> Explanation:
    """Say why a statement would be refused.

    Args:
        cluster: knows map, tables and plans.
        statement: the statement.
        params: what it would be executed with.
        route: whose rule it is.
        error: what would be raised.
    """
    plan, keys = _read(cluster, statement, params)
    return Explanation(
        "refused",
        route,
        (),
        keys,
        {},
        cluster.map.version,
        plan.writes if plan is not None else None,
        plan.unbound if plan is not None else None,
        refusal=Refusal(error.code, error.kind, error.message, error.fix),
    )


def _read(cluster: Cluster, statement: Any, params: Params) -> tuple[Plan | None, tuple[tuple[str, Any], ...]]:
    """A statement's plan and keys; no plan where it cannot be looked through or is refused for what it is."""
    if not looks_through(statement):
        return None, ()
    try:
        plan, binds = cluster.known.planner.plan(statement, params)
    except errors.ShardwrightError:
        return None, ()
    try:
        return plan, tuple(dict.fromkeys(plan.keys(binds, params)))
    except (errors.ShardwrightError, TypeError):
        # Some row has none, or a value is of no kind that can be a key: it is refused for that.
        return plan, ()


def _merge(statement: Any, merging: Merging) -> Merge:
    compiled: Any = with_hidden(statement, merging.hidden).compile(dialect=DIALECT)
    names = [str(column.keyname) for column in compiled._result_columns]
    hidden = [str(column.element.compile(dialect=DIALECT)) for column in merging.hidden]

    def name(at: int) -> str:
        return hidden[at - merging.width] if at >= merging.width else names[at]

    def key(one: OrderKey) -> str:
        nulls = "" if one.nulls_first == one.descending else f" nulls {'first' if one.nulls_first else 'last'}"
        return f"{name(one.at)}{' desc' if one.descending else ''}{nulls}"

    finish = merging.finish or Finish((), (), (), ())
    made = [_recipe(one, finish) for one in finish.recipes]
    return Merge(
        order=tuple(key(one) for one in merging.order) or tuple(_told(one, made) for one in finish.order),
        groups=tuple(made[at] for at, one in enumerate(finish.recipes) if one.kind == "group"),
        aggregates=tuple(made[at] for at, one in enumerate(finish.recipes) if one.kind in MERGED),
        hidden=tuple(hidden),
        asked=tuple(sorted(merging.functions)),
    )


def _recipe(recipe: Recipe, finish: Finish) -> str:
    said = " / ".join(str(finish.of[part].compile(dialect=DIALECT)) for part in recipe.parts)
    return f"avg = {said}" if recipe.kind == "avg" else said


def _told(expression: Any, made: Sequence[str]) -> str:
    return re.sub(r"\bx(\d+)\b", lambda found: made[int(found[1])], str(expression.compile(dialect=DIALECT)))


def _plain(key: Any) -> Any:
    if isinstance(key, (bytes, bytearray, memoryview)):
        return f"\\x{bytes(key).hex()}"
    return str(key) if isinstance(key, uuid.UUID) or not isinstance(key, (int, str, float, type(None))) else key
