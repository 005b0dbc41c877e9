"""``shardwright table``: register tables on every shard, adopt existing ones, list them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.catalog import adoption, forgetting, overview, table_file, tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.modules import metadata_of
from shardwright.cli.output import Table
from shardwright.routing.tables import Declaration

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from shardwright.partition.outcomes import Report

app = App(name="table", help="Register tables on every shard, adopt existing ones, list them.")


@app.command
def register(declared: str, /, *, common: Common = DEFAULTS) -> Answer:
    """Register every declared table of SQLAlchemy models: made where missing, adopted where it has rows already.

    A TOML file declares tables that exist on a shard and that no model describes.

    Args:
        declared: MODULE:NAME of a MetaData or of a declarative base, such as app.models:Base; or a file, tables.toml.
    """
    from shardwright.partition.registering import register as register_tables

    found = read_declared(declared)
    with common.connect() as catalog:
        done, windows = register_tables(common.dsn(), catalog, found)
    shown = [_sentence(table, table.name in done.created) for table in done.tables]
    shown += [f"{name} declares nothing: left alone" for name in done.undeclared]
    return Answer(
        {
            "tables": [overview.table_json(table) for table in done.tables],
            "created": list(done.created),
            "undeclared": list(done.undeclared),
            "windows": windows.to_json() if windows is not None else None,
        },
        shown + (windows_shown(windows) if windows is not None else []),
        next_steps=["shardwright status"] if windows is None else ["shardwright partition status"],
    )


@app.command
def add(
    *names: str,
    key: str | None = None,
    keyspace: str = "users",
    reference: Annotated[bool, Parameter(negative=())] = False,
    home: str | None = None,
    global_on: Annotated[str | None, Parameter(name="--global")] = None,
    common: Common = DEFAULTS,
) -> Answer:
    """Register tables that exist on a shard, without models: sharded by --key, --reference tables, or --global.

    Tables that foreign keys tie together are given together.

    Args:
        names: table or schema.table.
        key: the column that rows are sharded by; one for all tables, or one a table: id,user_id.
        keyspace: the keyspace of that column's values.
        reference: a full copy on every shard.
        home: the shard where reference tables are written; the first by name unless given.
        global_on: the only shard where the tables live.
    """
    if not names:
        raise errors.BadOption("no table was named", fix="shardwright table add --help")
    if sum([key is not None, reference, global_on is not None]) != 1:
        raise errors.BadOption(
            "say what the tables are",
            fix="one of --key COLUMN, --reference or --global SHARD; see shardwright table add --help",
        )
    if home is not None and not reference:
        raise errors.BadOption("only a reference table has a home", fix="use --home together with --reference")
    if key is not None:
        keys = key.split(",") if "," in key else [key] * len(names)
        if len(keys) != len(names):
            raise errors.BadOption(
                f"{len(keys)} key columns for {len(names)} tables", fix="give one for all, or one a table"
            )
        declared = [Declaration("sharded", column, keyspace) for column in keys]
    elif reference:
        declared = [Declaration("reference", home=home)] * len(names)
    else:
        declared = [Declaration("global", home=global_on)] * len(names)
    wanted = [
        adoption.Wanted(*tables.split_name(name), declaration)
        for name, declaration in zip(names, declared, strict=True)
    ]
    with common.connect() as catalog:
        done = adoption.adopt(catalog, wanted)
    return Answer(
        {"tables": [overview.table_json(table) for table in done]},
        [_sentence(table, created=False) for table in done],
        next_steps=["shardwright table list"],
    )


@app.command
def forget(*names: str, common: Common = DEFAULTS) -> Answer:
    """Undo the registration of tables whose rows are on one shard: there they go on as plain tables.

    Copies that shardwright made on other shards are dropped.

    Args:
        names: table or schema.table.
    """
    if not names:
        raise errors.BadOption("no table was named", fix="shardwright table forget --help")
    with common.connect() as catalog:
        kept = forgetting.forget(catalog, [tables.split_name(name) for name in names])
    shown = [f"{table} is a plain table of shard {shard} now" for table, shard in kept.items()]
    return Answer({"tables": kept}, shown, next_steps=["shardwright table list"])


@app.command(name="list")
def list_(*, common: Common = DEFAULTS) -> Answer:
    """List the registered tables."""
    with common.connect() as catalog:
        found = tables.list_tables(catalog)
    rows = [
        (table.name, table.kind, table.keyspace, table.key_column, table.home_shard, _windows(table)) for table in found
    ]
    return Answer(
        {"tables": [overview.table_json(table) for table in found]},
        [Table(("table", "kind", "keyspace", "key", "home", "windows"), rows, empty="no table yet")],
        next_steps=[] if found else ["shardwright table register MODULE:METADATA"],
    )


def windows_shown(report: Report) -> list[str]:
    """What became of the first windows of tables, for people.

    Args:
        report: of the tick that made them.
    """
    made = sum(len(one.add) for one in report.plan.tables)
    shown = [f"{made} partitions are declared for every shard"] if made else []
    shown += [f"{one.message}; fix: {one.fix}" for one in report.plan.findings]
    shown += [
        f"{one.table} on shard {one.shard}: {one.outcome}: {one.reason.get('message', '')}"
        for one in (*report.deferred, *report.failed)
    ]
    return shown


def _windows(table: tables.RegisteredTable) -> str | None:
    if table.policy is None:
        return None
    kept = f", kept {table.policy.keep}" if table.policy.keep is not None else ""
    return f"{table.policy.every} of {table.policy.column}{kept}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadOption(f"{path} cannot be read: {error}", fix="name a TOML file in UTF-8") from error


def _sentence(table: tables.RegisteredTable, created: bool) -> str:
    what = "created" if created else "registered"
    if table.policy is not None:
        what = f"{what}, in windows of {_windows(table)}"
    if table.kind == "sharded":
        return f"{table.name} is {what}: sharded by {table.key_column} in keyspace {table.keyspace}"
    if table.kind == "reference":
        return f"{table.name} is {what}: a reference table, written on shard {table.home_shard}"
    if table.kind == "local":
        return f"{table.name} is {what}: every shard has rows of its own"
    return f"{table.name} is {what}: global, on shard {table.home_shard}"


def read_declared(declared: str) -> MetaData | list[adoption.Wanted]:
    """What a MODULE:NAME or a TOML file declares.

    Args:
        declared: the one or the other.

    Raises:
        BadOption, BadDeclaration: it cannot be read.
    """
    return table_file.read(_text(declared), declared) if declared.endswith(".toml") else metadata_of(declared)
