"""Where one execution of a statement goes: one shard, some, or all; or why nowhere."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.dml import Delete, Insert, Update

from shardwright import errors
from shardwright.routing.merging import Merging, refusal
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap
from shardwright.routing.statement import Params, Plan
from shardwright.session.instances import unknown_table

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

#: Keys from which on they are hashed together.
_MANY = 16


@dataclass(frozen=True)
class Target:
    """One shard."""

    shard: str
    #: ids of the ranges that must be served there
    ranges: frozenset[int]
    #: it may change rows
    writes: bool
    #: the map by which it was chosen
    version: int


@dataclass(frozen=True)
class Some:
    """Several shards, each with the ranges of some keys."""

    ranges: Mapping[str, frozenset[int]]
    #: the points of those ranges, by shard
    points: Mapping[str, Multirange]
    plan: Plan
    merging: Merging
    version: int
    writes = False


@dataclass(frozen=True)
class Everywhere:
    """All shards of a keyspace."""

    plan: Plan
    merging: Merging
    version: int
    writes = False


@dataclass(frozen=True)
class Spread:
    """A write on several shards, in a session that may do that."""

    ranges: Mapping[str, frozenset[int]]
    #: the points of those ranges, by shard
    points: Mapping[str, Multirange]
    #: positions of the sets of values that each shard executes; empty where each executes the statement on its own points
    rows: Mapping[str, Sequence[int]]
    plan: Plan
    version: int
    writes = True


def find_target(
    cluster: Cluster,
    statement: Any,
    params: Params,
    in_use: Sequence[str],
    writer: str | None,
    *,
    may_spread: bool = False,
) -> Target | Some | Everywhere | Spread:
    """Decide where a statement goes, by the map as it is now.

    Args:
        cluster: knows map, tables and plans.
        statement: a statement of SQLAlchemy.
        params: what it is executed with.
        in_use: shards on which the transaction is open already.
        writer: the one that it has written on.
        may_spread: it may write on several.

    Raises:
        NoShardKey: nobody can tell.
        NotMergeable: several shards would have to answer, and their answers cannot be merged.
        CrossShardTransaction: it writes, and not on the shard on which the transaction has written.
        UnknownTable: a table is neither declared nor registered.
        BadKey: a key is no key.
    """
    if not looks_through(statement):
        raise no_key("it is text, or no query, and cannot be looked through")
    plan, binds = cluster.known.planner.plan(statement, params)
    if plan.unknown:
        raise unknown_table(plan.unknown[0])
    if plan.opaque is not None:
        raise no_key(plan.opaque)
    shard_map = cluster.map
    _refuse_local(plan, in_use)
    homes = homes_of(plan)
    if plan.unbound is not None:
        return _everywhere(cluster, statement, cluster.known.planner.exact(statement, params, plan), homes)
    ranges: dict[str, set[int]] = {}
    routes = _routes(shard_map, plan.keys(binds, params))
    for shard, range_id in routes if len(routes) < _MANY else set(routes):
        ranges.setdefault(shard, set()).add(range_id)
    for home in homes:
        ranges.setdefault(home, set())
    if len(ranges) > 1:
        if plan.writes:
            if not may_spread:
                raise one_shard_only(ranges)
            if homes:
                raise one_shard_only(ranges, "write the tables of one shard with a statement of their own")
            return _spread(cluster, statement, params, plan, ranges, [shard for shard, _ in routes])
        if homes:
            raise refusal(f"it reads a table of shard {', '.join(sorted(homes))} together with rows of other shards")
        if plan.local is not None:
            raise refusal(plan.local)
        each = {shard: frozenset(ids) for shard, ids in sorted(ranges.items())}
        plan = cluster.known.planner.exact(statement, params, plan)
        points = {shard: _points(shard_map, plan.root_keyspace, ids) for shard, ids in each.items()}
        return Some(each, points, plan, cluster.known.merging(statement, plan.row_keys), shard_map.version)
    if ranges:
        shard, ids = next(iter(ranges.items()))
    else:
        # Only tables that are everywhere, or no key at all: IN ().
        shard, ids = (
            in_use[0] if in_use else random.choice(shard_map.shards() or tuple(cluster.directory.shards)),
            set(),
        )
    if plan.writes:
        refuse_second_writer(writer, shard)
    return Target(shard, frozenset(ids), plan.writes, shard_map.version)


def _routes(shard_map: ShardMap, keys: Iterable[tuple[str, Any]]) -> list[tuple[str, int]]:
    """The shard and the range of each key; many of them are hashed in one go."""
    given = list(keys)
    if len(given) < _MANY:
        return [(route.shard, route.range_id) for route in (shard_map.route(*one) for one in given)]
    found: list[tuple[str, int]] = [("", 0)] * len(given)
    for keyspace in {keyspace for keyspace, _ in given}:
        owners = {one.id: (one.shard, one.id) for one in shard_map.ranges_of(keyspace)}
        at = [position for position, one in enumerate(given) if one[0] == keyspace]
        ids = shard_map.route_many(keyspace, [given[position][1] for position in at])
        for position, number in zip(at, ids, strict=True):
            found[position] = owners[number]
    return found


def _spread(
    cluster: Cluster, statement: Any, params: Params, plan: Plan, ranges: Mapping[str, set[int]], owners: Sequence[str]
) -> Spread:
    """Deal a write out to the shards, or say why that cannot be done."""
    each = {shard: frozenset(ids) for shard, ids in sorted(ranges.items())}
    rows: dict[str, list[int]] = {}
    if len(params) > 1 and len(owners) == len(params):
        rows = {shard: [] for shard in each}
        for at, shard in enumerate(owners):
            rows[shard].append(at)
    elif isinstance(statement, Insert):
        raise one_shard_only(each, "give its rows as a list of mappings beside it: session.execute(insert(..), rows)")
    elif not isinstance(statement, (Update, Delete)):
        raise one_shard_only(each, "lock rows of one shard with a statement")
    plan = cluster.known.planner.exact(statement, params, plan)
    if not rows and plan.root is None:
        raise one_shard_only(each, "tie its tables by the shard key, or write on one shard a statement")
    keyspace = plan.keyspaces[0] if plan.keyspaces else ""
    points = {shard: _points(cluster.map, keyspace, ids) for shard, ids in each.items()}
    return Spread(each, points, rows, plan, cluster.map.version)


def looks_through(statement: Any) -> bool:
    """Whether a statement can be looked through: it is built of SQLAlchemy's expressions.

    Args:
        statement: what is to be executed.
    """
    return hasattr(statement, "_generate_cache_key") and statement.__visit_name__ not in ("textclause", "tstring")


def homes_of(plan: Plan) -> set[str]:
    """The shards that a statement needs for what it reads or writes of tables that live on one shard.

    Args:
        plan: the statement's.

    Raises:
        UnknownTable: a home is not known.
    """
    homes = {home_of(declared.home, name) for _, name, declared in plan.others if declared.kind == "global"}
    if plan.target is not None and plan.target[2].kind != "local":
        homes.add(home_of(plan.target[2].home, plan.target[1]))
    return homes


def _refuse_local(plan: Plan, in_use: Sequence[str]) -> None:
    """Only a transaction that is on one shard already can tell whose rows of a local table are meant."""
    touched = [*plan.others, *([plan.target] if plan.target is not None else [])]
    if len(in_use) == 1 and plan.unbound is None:
        return
    for _, name, declared in touched:
        if declared.kind == "local":
            raise local_to_each(name)


def _everywhere(cluster: Cluster, statement: Any, plan: Plan, homes: Iterable[str]) -> Everywhere:
    """All shards, for a read without a key, or the reason why not."""
    if plan.writes:
        raise no_key(f"it changes or locks rows, and {plan.unbound}")
    if homes:
        raise refusal(f"it reads a table of shard {', '.join(sorted(homes))} together with rows of all shards")
    if plan.local is not None:
        raise refusal(f"{plan.local}, and {plan.unbound}")
    return Everywhere(plan, cluster.known.merging(statement, plan.row_keys), cluster.map.version)


def within(cluster: Cluster, target: Everywhere, points: Multirange) -> Some:
    """The part of a read of all shards that concerns some points: it is asked of those who serve them now.

    Args:
        cluster: knows who does.
        target: the whole.
        points: which.
    """
    shard_map = cluster.map
    ranges: dict[str, set[int]] = {}
    served: dict[str, Multirange] = {}
    for one in shard_map.ranges_of(target.plan.root_keyspace):
        if found := one.points() & points:
            ranges.setdefault(one.shard, set()).add(one.id)
            served[one.shard] = served.get(one.shard, Multirange(())) | found
    each = {shard: frozenset(ids) for shard, ids in sorted(ranges.items())}
    return Some(each, served, target.plan, target.merging, shard_map.version)


def _points(shard_map: ShardMap, keyspace: str, ids: Iterable[int]) -> Multirange:
    wanted = set(ids)
    return Multirange(tuple((one.lo, one.hi) for one in shard_map.ranges_of(keyspace) if one.id in wanted))


def home_of(home: str | None, table: str) -> str:
    """The shard where a reference table is written or a global one lives.

    Args:
        home: what is known.
        table: whose.

    Raises:
        UnknownTable: nothing is known: the table is not registered.
    """
    if home is None:
        raise errors.UnknownTable(
            f"the home shard of table {table} is not known: it is not registered",
            fix="shardwright table register",
            table=table,
        )
    return home


def no_key(why: str) -> errors.NoShardKey:
    """The error for a statement whose shard nobody can tell.

    Args:
        why: the reason, for people.
    """
    return errors.NoShardKey(
        f"no shard can be chosen for the statement: {why}",
        fix='name the shard key in it, use Session(key=...), or give bind_arguments={"key": ...} or {"shard": ...}',
    )


def local_to_each(table: str) -> errors.NoShardKey:
    """The error for a local table when nothing says which shard's is meant.

    Args:
        table: its name.
    """
    return no_key(f"every shard has a table {table} with rows of its own")


def one_shard_only(
    shards: Iterable[str], fix: str = 'write on one shard a transaction, or ask for Session(cross_shard="two_phase")'
) -> errors.CrossShardTransaction:
    """The error for a write on several shards.

    Args:
        shards: their names.
        fix: the way out.
    """
    return errors.CrossShardTransaction(
        f"it would write on shards {', '.join(sorted(shards))} in one transaction",
        fix=fix,
    )


def refuse_second_writer(writer: str | None, shard: str) -> None:
    """Refuse a write on another shard than the one that the transaction has written on.

    Args:
        writer: that one, or None.
        shard: where the next write goes.

    Raises:
        CrossShardTransaction: they differ.
    """
    if writer is not None and writer != shard:
        raise errors.CrossShardTransaction(
            f"the transaction has written on shard {writer}, and now writes on shard {shard}",
            fix="commit first, or use a session for each key",
            shards=[writer, shard],
        )
