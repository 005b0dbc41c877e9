"""``shardwright partition``: keep the time partitions of every shard in step with their policies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table, bad, good, warn
from shardwright.cli.reshard_drive import Interrupts
from shardwright.partition import apply as applying
from shardwright.partition import status as standing
from shardwright.partition import tick as ticking
from shardwright.partition.outcomes import Report
from shardwright.partition.plan import HUMAN, Finding, Plan
from shardwright.partition.shapes import Partition
from shardwright.partition.site import MOST_MOVED, PATIENCE

#: Verbs of this group that have a file of their own, and what the group's help says of them.
VERBS: dict[str, str] = {
    "restore": "Bring archived windows back: loaded, compared with their archives, attached again.",
    "archives": "List the windows of a table that were archived.",
    "adopt": "Take over partitions that were made by hand, by pg_partman or by pg-partsmith, by their bounds.",
    "convert": "Make an ordinary table partitioned on every shard, without copying.",
    "split": "Cut a fat partition into windows while its rows are read and written.",
}

app = App(name="partition", help="Keep the time partitions of every shard in step with their policies.")
for _verb, _help in VERBS.items():
    app.command(f"shardwright.cli.partition_{_verb}:{_verb}", name=_verb, help=_help)

#: Options that several verbs take.
Tables = Annotated[list[str] | None, Parameter(name="--table", negative=(), consume_multiple=False)]


def _example(*commands: str) -> str:
    return "\n\n".join(["Example:", *(f"    {command}" for command in commands)])


@app.command(
    help_epilogue=_example(
        "shardwright partition plan --table analytics_events", "shardwright partition plan --out plan.json"
    )
)
def plan(*, table: Tables = None, out: Path | None = None, common: Common = DEFAULTS) -> Answer:
    """Show what there is to do: windows to declare, and steps on each shard. Nothing is changed.

    Args:
        table: only this table; may be given more than once.
        out: a file to save the plan in, for `shardwright partition apply FILE`.
    """
    made = applying.plan(_catalog(common), _names(table))
    if out is not None:
        _write(out, made)
    shown: list[Part] = [_moves(made)] if not made.is_empty else ["every shard that was asked has what it should have"]
    shown += _problems(made)
    shown.append(f"plan {made.fingerprint}" + (f", saved in {out}" if out is not None else ""))
    todo = [f"shardwright partition apply {out}" if out is not None else "shardwright partition apply"]
    return Answer(made.to_json(), shown, next_steps=(todo if not made.is_empty else []) + _fixes(made.findings))


@app.command(help_epilogue=_example("shardwright partition apply", "shardwright partition apply plan.json"))
def apply(
    file: Path | None = None, /, *, table: Tables = None, patience: float = PATIENCE, common: Common = DEFAULTS
) -> Answer:
    """Do what a saved plan says, if that is still what there is to do; without a file, plan and do it.

    Exit code 0: done; 3: a person must act; 4: something was deferred, call again (or the saved plan is stale).

    Args:
        file: a plan that `plan --out` saved.
        table: only this table; may be given more than once.
        patience: seconds that a step waits for its locks before it is deferred.
    """
    if file is not None and table:
        raise errors.BadOption("a saved plan says which tables it is for", fix=f"shardwright partition apply {file}")
    _check_patience(patience)
    with Interrupts() as interrupts:
        if file is not None:
            report = applying.apply(_catalog(common), _read(file), on_progress=interrupts.check, patience=patience)
        else:
            report = ticking.tick(_catalog(common), _names(table), on_progress=interrupts.check, patience=patience)
    return _answer(report)


@app.command(help_epilogue=_example("shardwright partition tick --json"))
def tick(
    *,
    table: Tables = None,
    patience: float = PATIENCE,
    guard_rows: int = MOST_MOVED,
    common: Common = DEFAULTS,
) -> Answer:
    """Plan and do it, for every table with a policy: to be called every hour, by cron, or left to a worker.

    Exit code 0: all is well; 3: a person must act; 4: something was deferred, the next tick takes it up.

    Args:
        table: only this table; may be given more than once.
        patience: seconds that a step waits for its locks before it is deferred.
        guard_rows: rows that a step may move out of a guard while everybody waits for the table.
    """
    _check_patience(patience)
    if guard_rows < 0:
        raise errors.BadOption(f"--guard-rows {guard_rows}: 0 or more", fix=f"--guard-rows {MOST_MOVED}")
    with Interrupts() as interrupts:
        return _answer(
            ticking.tick(
                _catalog(common),
                _names(table),
                on_progress=interrupts.check,
                patience=patience,
                most_moved=guard_rows,
            )
        )


@app.command(help_epilogue=_example("shardwright partition status --table analytics_events"))
def status(*, table: Tables = None, common: Common = DEFAULTS) -> Answer:
    """Show each window on each shard, and for how many days each shard has windows.

    Exit code 0: all is well; 3: a shard has windows for less than the length of one, or a person must act; 4: a shard
    could not be asked.

    Args:
        table: only this table; may be given more than once.
    """
    found = standing.status(_catalog(common), _names(table))
    shown: list[Part] = []
    for one in found.tables:
        shards = list(one.runway_days)
        rows = [
            (window.name, window.lower, window.upper, window.state, *(_cell(window.shards[shard]) for shard in shards))
            for window in one.windows
        ]
        runway = [_runway(one, shard) for shard in shards]
        shown += [
            f"{one.table}: {one.policy['every']} by {one.policy['column']}, keep {one.policy.get('keep', 'for ever')}",
            Table(("window", "from", "to", "", *shards), [*rows, ("runway", None, None, "days", *runway)]),
        ]
        shown += [f"{count} rows in guards on shard {shard}" for shard, count in one.guard_rows.items() if count]
    if not found.tables:
        shown.append("no table has a policy of time partitions")
    shown += [f"shard {name}: {why}" for name, why in found.shards.items() if why]
    shown += _told(found.findings)
    steps = ["shardwright partition apply"] if any(one.to_do for one in found.tables) else []
    return Answer(found.to_json(), shown, next_steps=steps + _fixes(found.findings), exit_code=found.exit_code)


# ---------------------------------------------------------------- what is given


def _catalog(common: Common) -> str:
    """The catalog's DSN, after its schema was checked."""
    with common.connect():
        return common.dsn()


def _names(given: Sequence[str] | None) -> list[tuple[str, str]]:
    return [tables.split_name(name) for name in given or ()]


def _check_patience(patience: float) -> None:
    if not 0 < patience <= 3600:
        raise errors.BadOption(f"--patience {patience}: above 0 and up to 3600 seconds", fix="--patience 10")


def _write(path: Path, made: Plan) -> None:
    try:
        path.write_text(json.dumps(made.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise errors.BadOption(
            f"the plan cannot be saved: {error}", fix="--out with a file that can be written"
        ) from error


def _read(path: Path) -> Plan:
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise errors.BadOption(
            f"no plan can be read from {path}: {' '.join(str(error).split())}",
            fix=f"shardwright partition plan --out {path}",
        ) from error


# ---------------------------------------------------------------- what is shown


def _moves(made: Plan) -> Table:
    """One row for each thing that is done, with the shards on which it is."""
    rows: dict[tuple[object, ...], list[str]] = {}
    for one in made.tables:
        shown = {partition.name: partition for partition in (*one.add, *one.resize)}
        for what, names in (("declare", shown), ("retire", one.retire), ("forget", one.forget)):
            for name in names:
                new = shown.get(name) if what == "declare" else None
                word = "resize" if new is not None and new in one.resize else what
                rows[one.table, word, name, *_span(one.key, new)] = ["catalog"]
    for one, shard, step in made.steps():
        rows.setdefault((one.table, step.kind, step.name, *_span(one.key, step.partition)), []).append(shard)
    return Table(("table", "", "partition", "from", "to", "on"), [(*key, " ".join(on)) for key, on in rows.items()])


def _span(key: str, one: object) -> tuple[str | None, str | None]:
    if not isinstance(one, Partition):
        return None, None
    return standing.iso_of(key, one.lower), standing.iso_of(key, one.upper)


def _problems(made: Plan) -> list[Part]:
    return [f"shard {name} could not be asked: {why}" for name, why in made.deferred.items()] + _told(made.findings)


def _told(findings: Iterable[Finding]) -> list[Part]:
    shown: list[Part] = []
    for finding in findings:
        word = bad(f"needs you: {finding.message}") if finding.severity == HUMAN else warn(f"note: {finding.message}")
        shown += [word, f"  fix: {finding.fix}"]
    return shown


def _fixes(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(one.fix for one in findings if one.fix.startswith("shardwright ")))


def _answer(report: Report) -> Answer:
    shown: list[Part] = [_moves(report.plan)] if not report.plan.is_empty else []
    words = {"done": good, "deferred": warn, "failed": bad}
    outcomes = [
        (one.table, one.shard, words[one.outcome](one.outcome), one.done, one.reason.get("message"))
        for one in report.outcomes
    ]
    shown += [Table(("table", "shard", "", "steps", "why"), outcomes, empty="no table has a policy of time partitions")]
    shown += _told(report.plan.findings)
    steps = ["shardwright partition tick"] if report.deferred else []
    steps += _fixes(report.plan.findings)
    return Answer(
        report.to_json(), shown, next_steps=steps or ["shardwright partition status"], exit_code=report.exit_code
    )


def _cell(state: str) -> object:
    if state in ("present", ""):
        return good(state)
    return bad(state) if state in ("missing", "unmarked", "extra") else warn(state)


def _runway(one: standing.TableStatus, shard: str) -> object:
    days = one.runway_days[shard]
    if days is None:
        return None
    return bad(f"{days:.1f}") if shard in one.short else good(f"{days:.1f}")
