"""``shardwright partition adopt``: partitions that others made come under our care."""

from __future__ import annotations

import shlex
from typing import Annotated

from cyclopts import Parameter

from shardwright import errors
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table
from shardwright.cli.partition_convert import declared_in
from shardwright.cli.reshard_drive import Interrupts
from shardwright.partition import adopt as adopting
from shardwright.partition.adopt_plan import AdoptPlan
from shardwright.partition.site import PATIENCE
from shardwright.partition.status import iso_of
from shardwright.partition.wishes import Wish

Flag = Parameter(negative=())


def adopt(
    table: str,
    /,
    *,
    by: str | None = None,
    every: str | None = None,
    keep: str | None = None,
    ahead: int | None = None,
    holds: str | None = None,
    zone: str | None = None,
    anchor: str | None = None,
    declared: str | None = None,
    dry_run: Annotated[bool, Flag] = False,
    fingerprint: str | None = None,
    patience: float = PATIENCE,
    common: Common = DEFAULTS,
) -> Answer:
    """Take over a table's partitions that were made by hand, by pg_partman or by pg-partsmith, on every shard.

    By their bounds: names, rows and indexes stay as they are. Windows from now on follow the policy; what is not said of it
    is taken from pg_partman's settings where it has some. A DEFAULT partition gives way to guards. What cannot be taken over
    is refused before anything is changed, with every reason. Run again, an interrupted adoption goes on.

    Args:
        table: table or schema.table.
        by: the column by which it is partitioned; it is found out unless given.
        every: length of a window from now on, such as "1 month".
        keep: how long rows are kept after their window has ended.
        ahead: how many windows exist ahead of that of now; 3 unless given.
        holds: what an integer column counts: epoch_s, epoch_ms, epoch_us or snowflake.
        zone: IANA zone in which days and longer windows begin; UTC unless given.
        anchor: a moment at which some window begins, without offset; as the newest partition has it unless given.
        declared: takes the policy, and the kind, from a declaration instead: MODULE:NAME or a TOML file.
        dry_run: only looks, and shows what would be done.
        fingerprint: only does the plan that --dry-run showed with it.
        patience: seconds of tries for each lock.
    """
    schema, name = tables.split_name(table)
    given = {"by": by, "every": every, "keep": keep, "holds": holds, "zone": zone, "anchor": anchor}
    if declared is not None and (ahead is not None or any(given.values())):
        raise errors.BadOption("--declared says it all", fix="leave the other options of the policy out")
    wish = Wish(declared_in(schema, name, declared) if declared is not None else None, ahead=ahead, **given)
    with common.connect():
        dsn = common.dsn()
    if dry_run:
        made = adopting.plan(dsn, schema, name, wish)
        again = {**given, "ahead": ahead, "declared": declared, "fingerprint": made.fingerprint}
        words = [str(word) for option, value in again.items() if value is not None for word in (f"--{option}", value)]
        return Answer(
            made.to_json(), _planned(made), next_steps=[f"shardwright partition adopt {shlex.join([table, *words])}"]
        )
    with Interrupts() as interrupts:
        done = adopting.adopt(
            dsn,
            schema,
            name,
            wish,
            fingerprint=fingerprint,
            watch=lambda shard, what: None if common.json else common.output.note(f"shard {shard}: {what}"),
            on_progress=interrupts.check,
            patience=patience,
        )
    assert done.windows is not None
    rows = [
        (one.shard, one.taken, one.default, one.moved_rows if one.default else None, one.lock_ms) for one in done.shards
    ]
    return Answer(
        done.to_json(),
        [
            f"{done.plan.table} is ours: {done.plan.policy['every']} by {done.plan.policy['column']}",
            Table(("shard", "partitions taken over", "replaced", "rows moved", "lock held (ms)"), rows),
            *_notes(done.plan),
        ],
        next_steps=["shardwright partition status"],
        exit_code=done.windows.exit_code,
    )


def _planned(made: AdoptPlan) -> list[Part]:
    rows = [(one.name, one.role, iso_of(made.key, one.lower), iso_of(made.key, one.upper)) for one in made.add]
    policy = ", ".join(f"{name} {value}" for name, value in made.policy.items())
    where = {"given": "as asked for", "catalog": "as the catalog has it", "pg_partman": "from pg_partman's settings"}
    shown: list[Part] = [
        f"{made.table} would be kept by this policy, {where[made.policy_from]}: {policy}",
        Table(("window", "", "from", "to"), rows),
        Table(
            ("shard", "to take over", "lacking", "DEFAULT", "rows in it", "in its place"),
            [
                (
                    name,
                    len(shard.take),
                    ", ".join(shard.lacks) or None,
                    *((shard.default.name, shard.default.rows) if shard.default else (None, None)),
                    ", ".join(one.name for one in shard.default.instead) if shard.default else None,
                )
                for name, shard in made.shards.items()
            ],
        ),
    ]
    stays = {shard.default.turned.name for shard in made.shards.values() if shard.default and shard.default.turned}
    shown += [f"{name} has too many rows to be moved: it becomes a partition with bounds" for name in sorted(stays)]
    if made.over:
        shown.append(f"over by the policy, and the first tick detaches them: {', '.join(made.over)}")
    return [*shown, *_notes(made), f"plan {made.fingerprint}; nothing was changed"]


def _notes(made: AdoptPlan) -> list[Part]:
    return [f"note: {note}" for note in made.notes]
