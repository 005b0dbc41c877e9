"""``shardwright doctor``: what is wrong, or will be, and what to do about it."""

from __future__ import annotations

from cyclopts import App

from shardwright import errors
from shardwright.catalog import budget as budgets
from shardwright.catalog import roster, sickness
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table, Word, bad, good, warn

app = App(
    name="doctor",
    help="Look for what is wrong or will be: connections that do not fit, shards that are not there.",
    help_epilogue="Example:\n\n    shardwright doctor budget --workers 2\n\n    shardwright doctor shards --json",
)


@app.command
def budget(*, workers: int = 1, more: int = 0, common: Common = DEFAULTS) -> Answer:
    """Do the connections that all processes may open to each shard fit into what its server allows?

    Exits with 3 where they do not, or where a shard cannot be asked. Processes are known from their heartbeats; those with
    refresh="never" are not.

    Args:
        workers: `shardwright worker` processes that may run an operation at the same time.
        more: connections that applications will open besides to each shard, as those of a deployment to come.
    """
    if workers < 0 or more < 0:
        raise errors.BadOption("--workers and --more cannot be below 0", fix="shardwright doctor budget --help")
    with common.connect() as catalog:
        shards, processes = roster.list_shards(catalog), budgets.list_processes(catalog)
    rooms: dict[str, budgets.Room | errors.ShardwrightError] = {}
    for shard in shards:
        try:
            rooms[shard.name] = budgets.measure(shard)
        except errors.ShardwrightError as error:
            rooms[shard.name] = error
    verdicts = budgets.judge(shards, rooms, processes, workers=workers, more=more)
    fits = all(verdict.fits for verdict in verdicts)
    shown: list[Part] = [
        Table(
            ("shard", "max", "reserved", "others", "workers", "budget", "allowed", "may open", "open now", "verdict"),
            [_row(verdict) for verdict in verdicts],
            empty="no shard yet",
        ),
        "",
        Table(
            ("application", "host", "processes", "connections of each"),
            [(one.application, one.host, one.count, _limits(one)) for one in processes],
            empty="no process follows the map",
        ),
    ]
    for verdict in verdicts:
        if not verdict.fits:
            shown += [bad(f"{verdict.shard}: {verdict.problem}"), f"fix: {verdict.fix}"]
    value = {
        "fits": fits,
        "shards": [budgets.to_json(verdict) for verdict in verdicts],
        "processes": [
            {
                "application": one.application,
                "host": one.host,
                "processes": one.count,
                "connections": dict(one.connections),
                "may_open": one.may_open,
            }
            for one in processes
        ],
    }
    steps = [verdict.fix for verdict in verdicts if verdict.fix.startswith("shardwright ")]
    return Answer(value, shown, next_steps=steps, exit_code=0 if fits else errors.PreconditionError.exit_code)


@app.command
def shards(*, common: Common = DEFAULTS) -> Answer:
    """Is each shard there, is it the primary that was seen last, and does it have standbys?

    Exits with 3 where one is not as it must be.
    """
    with common.connect() as catalog:
        found = [sickness.examine(shard) for shard in roster.list_shards(catalog)]
    healthy = all(not one.problem for one in found)
    shown: list[Part] = [
        Table(
            ("shard", "state", "host", "postgres", "timeline", "seen", "standbys"),
            [
                (
                    one.shard,
                    bad(one.state) if one.problem else good(one.state),
                    one.address,
                    one.version,
                    one.timeline,
                    one.highest or None,
                    one.standbys,
                )
                for one in found
            ],
            empty="no shard yet",
        )
    ]
    for one in found:
        if one.problem:
            shown += [bad(f"{one.shard}: {one.problem}"), f"fix: {one.fix}"]
    return Answer(
        {"healthy": healthy, "shards": [one.to_json() for one in found]},
        shown,
        next_steps=[] if healthy else ["shardwright shard list"],
        exit_code=0 if healthy else errors.PreconditionError.exit_code,
    )


def _row(verdict: budgets.Verdict) -> tuple[object, ...]:
    room = verdict.room
    state: Word = good("fits") if verdict.fits else bad("unreachable" if room is None else "too many")
    asked = warn("no limit") if verdict.may_open is None else verdict.may_open
    if room is None:
        return (verdict.shard, None, None, None, verdict.workers, verdict.budget, None, asked, None, state)
    most = room.max_connections
    figures = (most, room.reserved, room.others, verdict.workers, verdict.budget, verdict.allowed, asked, room.in_use)
    return (verdict.shard, *figures, state)


def _limits(one: budgets.Processes) -> str:
    return ", ".join(f"{name} {'no limit' if n is None else n}" for name, n in one.connections.items()) or "unknown"
