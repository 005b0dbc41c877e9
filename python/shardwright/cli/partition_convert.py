"""``shardwright partition convert``: an ordinary table becomes partitioned on every shard."""

from __future__ import annotations

import shlex
from typing import Annotated

from cyclopts import Parameter
from sqlalchemy import MetaData

from shardwright import errors
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.moments import asked_moment
from shardwright.cli.output import Part, Table
from shardwright.cli.reshard_drive import Interrupts
from shardwright.cli.reshard_screen import size
from shardwright.partition import convert as converting
from shardwright.partition import tick as ticking
from shardwright.partition.convert_plan import ConvertPlan
from shardwright.partition.site import PATIENCE
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration, declaration_of

Flag = Parameter(negative=())


def convert(
    table: str,
    /,
    *,
    by: str | None = None,
    every: str | None = None,
    keep: str | None = None,
    ahead: int = 3,
    holds: str | None = None,
    zone: str = "UTC",
    declared: str | None = None,
    extend_key: Annotated[bool, Flag] = False,
    until: str | None = None,
    dry_run: Annotated[bool, Flag] = False,
    abort: Annotated[bool, Flag] = False,
    patience: float = PATIENCE,
    common: Common = DEFAULTS,
) -> Answer:
    """Make an ordinary table partitioned on every shard that has it, without copying: it becomes the first partition.

    Keys, indexes, foreign keys both ways, triggers, privileges, row security, publications, identity and sequences, views
    and comments are carried over. What cannot be is refused before anything is changed, with every reason. Run again, an
    interrupted conversion goes on; a table that is not registered yet becomes one of kind local, or as --declared says.

    Args:
        table: table or schema.table.
        by: the column that it is to be partitioned by.
        every: length of a window, such as "1 month".
        keep: how long rows are kept after their window has ended.
        ahead: how many windows exist ahead of that of now.
        holds: what an integer column counts: epoch_s, epoch_ms, epoch_us or snowflake.
        zone: IANA zone in which days and longer windows begin.
        declared: takes the policy, and the kind, from a declaration instead: MODULE:NAME or a TOML file.
        extend_key: adds the column to the primary key where it lacks it; an index is built beside it first.
        until: the old table takes rows up to the end of this moment's window; two days from now unless given.
        dry_run: only looks, and shows the statements.
        abort: gives an interrupted conversion up; possible until a shard is converted.
        patience: seconds of tries for each lock.
    """
    schema, name = tables.split_name(table)
    with common.connect():
        dsn = common.dsn()
    if abort:
        given_up = converting.abort(dsn, schema, name, patience=patience)
        return Answer(
            {"aborted": given_up},
            [f"{schema}.{name} is an ordinary table on {', '.join(given_up)}, as before"],
            next_steps=[f"shardwright partition convert {table} --dry-run"],
        )
    declaration = _declaration(schema, name, by, every, keep, ahead, holds, zone, declared)
    moment = asked_moment(until)
    if dry_run:
        made = converting.plan(dsn, schema, name, declaration, extend_key=extend_key, until=moment)
        given = {
            "--by": by,
            "--every": every,
            "--keep": keep,
            "--ahead": ahead if ahead != 3 else None,
            "--holds": holds,
        }
        given |= {"--zone": zone if zone != "UTC" else None, "--declared": declared, "--until": until}
        words = [str(word) for option, value in given.items() if value is not None for word in (option, value)]
        again = shlex.join([table, *words, *(["--extend-key"] if extend_key else [])])
        return Answer(made.to_json(), _planned(made), next_steps=[f"shardwright partition convert {again}"])
    with Interrupts() as interrupts:
        done = converting.convert(
            dsn,
            schema,
            name,
            declaration,
            extend_key=extend_key,
            until=moment,
            watch=lambda shard, what: None if common.json else common.output.note(f"shard {shard}: {what}"),
            on_progress=interrupts.check,
            patience=patience,
        )
        report = ticking.tick(dsn, [(schema, name)], on_progress=interrupts.check, patience=patience)
    rows = [(one.shard, one.step, one.lock_ms, one.lock_tries or None, one.validate_seconds) for one in done.shards]
    return Answer(
        {**done.to_json(), "windows": report.to_json()},
        [
            f"{done.plan.table} is partitioned by {done.plan.policy.column}; what it held is {done.plan.whole.name}",
            Table(("shard", "", "lock held (ms)", "tries", "check (s)"), rows),
        ],
        next_steps=["shardwright partition status", f"shardwright partition split {table}"],
        exit_code=report.exit_code,
    )


def _declaration(
    schema: str,
    name: str,
    by: str | None,
    every: str | None,
    keep: str | None,
    ahead: int,
    holds: str | None,
    zone: str,
    declared: str | None,
) -> Declaration:
    if declared is not None:
        if by is not None or every is not None:
            raise errors.BadOption("--declared says it all", fix="leave out --by and --every")
        return declared_in(schema, name, declared)
    if by is None and every is None:
        return Declaration("local")
    if by is None or every is None:
        raise errors.BadOption("a policy has a column and a length", fix='--by created_at --every "1 month"')
    return Declaration("local", policy=Policy(by, every, keep, ahead, holds, zone))


def declared_in(schema: str, name: str, declared: str) -> Declaration:
    """What a file or model declares of a table.

    Args:
        schema: its schema.
        name: its name.
        declared: MODULE:NAME or a TOML file.

    Raises:
        BadDeclaration: it declares nothing of that table.
    """
    from shardwright.cli.table import read_declared

    found = read_declared(declared)
    if isinstance(found, MetaData):
        for table in found.tables.values():
            if (table.schema or "public", table.name) == (schema, name):
                declaration = declaration_of(table)
                if declaration is not None:
                    return declaration
    else:
        for one in found:
            if (one.schema, one.table) == (schema, name):
                return one.declaration
    raise errors.BadDeclaration(f"{declared} declares nothing of {schema}.{name}", fix="name where it is declared")


def _planned(made: ConvertPlan) -> list[Part]:
    value = made.to_json()
    shown: list[Part] = [
        f"{made.table} would be partitioned by {made.policy.column} from {value['cut']} on; until then rows go to "
        f"{made.whole.name}, which is the table as it is",
        Table(("shard", "size"), [(shard, size(amount)) for shard, amount in (made.bytes or {}).items()]),
    ]
    for shard, said in (made.notes or {}).items():
        shown += [f"note, shard {shard}: {one}" for one in said]
    return [*shown, "", *(f"{statement};" for statement in made.statements), "", "nothing was changed"]
