"""All shards: who is behind, a canary first, the others after it, and nothing more after a failure.

Never in threads: Alembic's ``op`` and ``context`` belong to the process, and two shards' DDL would meet on one
connection. Several shards at once are several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psycopg
from alembic.script import ScriptDirectory

from shardwright import errors, failpoints
from shardwright.catalog import roster, tables, windows
from shardwright.catalog.roster import Shard
from shardwright.migrate import joining, one_shard, processes, scripts, settling
from shardwright.migrate.one_shard import Order
from shardwright.migrate.settling import Settled
from shardwright.partition import registering
from shardwright.partition.outcomes import Report


@dataclass(frozen=True)
class Standing:
    """Where one shard stands."""

    shard: str
    heads: tuple[str, ...]
    #: Revisions that are to run there, in order.
    pending: tuple[str, ...] = ()
    #: It is at a revision that no script here has.
    unknown: bool = False


@dataclass
class Run:
    """What a run did."""

    target: str
    before: dict[str, Standing]
    #: Shards in the order in which they were brought to the target, with the revisions that they are at now.
    done: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    #: None where shards stand at different revisions.
    settled: Settled | None = None
    #: What became of the windows of tables that are new or have a new policy.
    windows: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value."""
        told = self.settled
        return {
            "target": self.target,
            "shards": [
                {
                    "shard": name,
                    "before": list(one.heads),
                    "now": list(self.done.get(name, one.heads)),
                    "revisions": list(one.pending) if name in self.done else [],
                    "seconds": round(self.seconds.get(name, 0.0), 3),
                }
                for name, one in self.before.items()
            ],
            "registered": list(told.registered) if told else [],
            "policies": list(told.policies) if told else [],
            "layouts": list(told.layouts) if told else [],
            "drift": list(told.drift) if told else [],
            "windows": self.windows.to_json() if self.windows is not None else None,
        }


def heads_of(catalog: psycopg.Connection, order: Order) -> dict[str, tuple[str, ...]]:
    """The revisions that every shard is at, by name.

    Args:
        catalog: connection to the catalog.
        order: whose configuration counts.

    Raises:
        BadOption: there is no configuration, or it is wrong.
        CannotConnect, PasswordMissing, NotPrimary: a shard cannot be asked.
    """
    return {shard.name: one_shard.heads(shard, order.config) for shard in roster.list_shards(catalog)}


def standings(order: Order, heads: Mapping[str, tuple[str, ...]]) -> dict[str, Standing]:
    """Where every shard stands on its way to a target, by name.

    Args:
        order: with the target.
        heads: the revisions that each is at.

    Raises:
        BadOption: there is no such target.
    """
    known = ScriptDirectory.from_config(scripts.configuration(order.config))
    scripts.target_of(known, order.target)
    return {name: _standing(known, order, name, found) for name, found in heads.items()}


def _standing(known: ScriptDirectory, order: Order, shard: str, heads: tuple[str, ...]) -> Standing:
    wanted = scripts.ancestors(known, order.target)
    try:
        with scripts.speaking():
            applied = scripts.ancestors(known, heads)
    except errors.BadOption:
        return Standing(shard, heads, unknown=True)
    if order.verb == "stamp":
        pending = [] if set(heads) == {one.revision for one in known.get_revisions(order.target)} else [order.target]
    elif order.verb == "downgrade":
        pending = [one for one in reversed(applied) if one not in wanted]
    else:
        pending = [one for one in wanted if one not in applied]
    return Standing(shard, heads, tuple(pending))


def run(
    catalog: psycopg.Connection,
    order: Order,
    *,
    canary: str | None = None,
    parallel: int = 1,
    on_event: Callable[[str], None] = lambda text: None,
) -> Run:
    """Bring every shard that is not there to a revision, then tell the catalog what changed.

    The canary is alone in the beginning; a failure anywhere keeps shards from being begun. Run again, it goes on where
    it stopped. The shard where reference tables are written comes last, and first in a downgrade.

    Args:
        catalog: connection to the catalog.
        order: what to do.
        canary: the first shard; by default the first by name, other than the reference tables' home.
        parallel: how many shards at a time after the canary, each in a process of its own.
        on_event: told what is going on, for people.

    Raises:
        OperationConflict: an operation is live, or a partition's conversion or split is under way.
        MigrationRefused, MigrationFailed, LockTimeout: a revision on a shard; those after it were not begun.
        UnfitTable: after the canary, a registered table is not fit for what it is registered as.
        BadOption, UnknownShard: the call is wrong.
    """
    with roster.changing(catalog):
        _refuse_others(catalog)
        shards = roster.list_shards(catalog)
        if not shards:
            raise errors.UnknownShard("the cluster has no shard yet", fix="shardwright shard add NAME DSN")
        registered = tables.list_tables(catalog)
        first = roster.get_shard(catalog, canary).name if canary else None
        heads = heads_of(catalog, order)
        standings(order, heads)  # a wrong target is refused before anything is done
        if order.verb == "upgrade":
            joining.stamp_newcomers(catalog, order, heads, on_event)
        before = standings(order, heads)
        _refuse_unknown(before)
        result = Run(order.target, before)
        turns = [shard for shard in _turns(order, shards, registered, first) if before[shard.name].pending]

        def still_ours() -> None:
            catalog.execute("SELECT 1")  # the lock is this connection's

        def finished(shard: Shard, heads: tuple[str, ...], began: float) -> None:
            result.done[shard.name], result.seconds[shard.name] = heads, monotonic() - began
            on_event(f"{shard.name}: {', '.join(heads) or 'base'}")
            failpoints.reach("migrate.shard_upgraded")

        for position, wave in enumerate(_waves(turns, registered, parallel)):
            if len(wave) > 1:
                processes.run(order, wave, parallel, still_ours, on_event, finished)
            else:
                began = monotonic()
                here = [table for table in registered if table.is_on(wave[0].name)]
                finished(wave[0], one_shard.run(order, wave[0], here, still_ours, on_event), began)
            if position == 0 and order.verb == "upgrade":
                _check_canary(catalog, wave[0], turns)
        if len({result.done.get(name, one.heads) for name, one in before.items()}) == 1:
            result.settled = settling.settle(catalog)
            changed = {*result.settled.registered, *result.settled.policies}
            # Those without windows are of a run that ended between registering them and making windows.
            kept = {window.table_id for window in windows.list_windows(catalog)}
            mine = [one for one in tables.list_tables(catalog) if one.name in changed or one.id not in kept]
            result.windows = registering.first_windows(order.catalog_dsn, catalog, mine)
        return result


def _turns(
    order: Order, shards: Sequence[Shard], registered: Sequence[tables.RegisteredTable], canary: str | None
) -> list[Shard]:
    """Most revisions add: a column must be on the copies of a reference table before its home sends it, and go after."""
    home, late = _home(registered), order.verb != "downgrade"
    return sorted(shards, key=lambda shard: (shard.name != canary, (shard.name == home) is late, shard.name))


def _waves(turns: Sequence[Shard], registered: Sequence[tables.RegisteredTable], parallel: int) -> list[list[Shard]]:
    """Which shards run side by side: the canary alone, the others together if asked for, the reference home alone."""
    if parallel <= 1 or len(turns) <= 2:
        return [[shard] for shard in turns]
    home = _home(registered)
    last = [shard for shard in turns[1:] if shard.name == home]
    middle = [shard for shard in turns[1:] if shard.name != home]
    return [wave for wave in ([turns[0]], middle, last) if wave]


def _home(registered: Sequence[tables.RegisteredTable]) -> str | None:
    return next((table.home_shard for table in registered if table.kind == "reference"), None)


def _check_canary(catalog: psycopg.Connection, shard: Shard, turns: Sequence[Shard]) -> None:
    try:
        settling.check_fit(catalog, shard)
    except errors.UnfitTable as error:
        raise errors.MigrationFailed(
            f"after the revisions ran on shard {shard.name}, {error.message}; "
            + ("no other shard was touched" if len(turns) > 1 else "it is the only one that was behind"),
            fix="shardwright migrate downgrade REVISION, mend the revision, then upgrade again",
            durable_change=True,
            shard=shard.name,
        ) from error


def _refuse_unknown(found: dict[str, Standing]) -> None:
    for one in found.values():
        if one.unknown:
            raise errors.BadOption(
                f"shard {one.shard} is at {', '.join(one.heads)}, which no script here has",
                fix="run this where the scripts of that revision are",
                shard=one.shard,
            )


def _refuse_others(catalog: psycopg.Connection) -> None:
    """Nothing that counts on tables staying as they are may be under way. Nothing begins while we hold the lock."""
    roster.refuse_live_operations(catalog, "a schema migration")
    row = catalog.execute(
        "SELECT j.kind, j.shard, quote_ident(t.schema_name) || '.' || quote_ident(t.table_name) "
        "FROM shardwright.partition_jobs j JOIN shardwright.tables t ON t.id = j.table_id ORDER BY 3, 2 LIMIT 1"
    ).fetchone()
    if row is not None:
        kind, shard, table = row
        raise errors.OperationConflict(
            f"a {kind} of {table} on shard {shard} is under way: a schema migration has to wait",
            fix=f"shardwright partition {kind} {table}, which finishes it",
            shard=shard,
        )
