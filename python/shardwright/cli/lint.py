"""``shardwright lint``: what of an application's models and statements would be refused, before anything is sharded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from cyclopts import App
from sqlalchemy import MetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.modules import import_named
from shardwright.cli.output import Part, Table
from shardwright.routing import proposing, readiness
from shardwright.routing.readiness import Finding, Readiness
from shardwright.routing.tables import declaration_of

app = App(
    name="lint",
    help="Tell what of an application's models and statements would be refused, or ask every shard.",
    help_epilogue="Example:\n\n    shardwright lint app.models --key user_id --statements recorded.jsonl\n\n"
    "No database is asked. The exit code is 3 where something would be refused.",
)

_PLACES = 3


@app.default
def lint(
    models: str,
    /,
    *,
    key: str | None = None,
    keyspace: str = "users",
    statements: Path | None = None,
    common: Common = DEFAULTS,
) -> Answer:
    """Tell what of an application's models and statements would be refused, or ask every shard.

    No database is asked, and the models need not have heard of shardwright: where no table declares anything, the column
    that most tables share is proposed as the shard key. The exit code is 3 where something would be refused.

    Args:
        models: MODULE, or MODULE:NAME of a declarative base or MetaData, such as app.models:Base.
        key: the column by which tables that declare nothing are taken to be sharded.
        keyspace: the name of its keyspace.
        statements: what `pytest --shardwright-record FILE` wrote.
    """
    metadata, mappers = _find(models)
    declares = any(_declares(table) for table in metadata.tables.values())
    proposed = None if key is not None or declares else proposing.propose_key(metadata)
    found = readiness.judge(metadata, mappers, key=key or proposed, keyspace=keyspace)
    if statements is not None:
        found = readiness.with_statements(found, _read(statements))
    value = {
        "readiness": found.percent,
        "refused": found.refused,
        "key": key or proposed,
        "key_proposed": proposed is not None,
        "tables": dict(found.tables),
        "proposed": list(found.proposed),
        "findings": [asdict(one) for one in found.findings],
        "statements": dict(found.statements),
        "executions": dict(found.executions),
    }
    steps = [] if found.refused or found.proposed else [f"shardwright table register {models}"]
    return Answer(value, _shown(found, proposed), next_steps=steps, exit_code=3 if found.refused else 0)


def _find(path: str) -> tuple[MetaData, list[Mapper[Any]]]:
    """The tables that a module or a name in it has, and the classes that are mapped to them."""
    named = import_named(path)
    candidates = list(vars(named).values()) if isinstance(named, ModuleType) else [named]
    bases = {id(one.metadata): one for one in candidates if isinstance(getattr(one, "metadata", None), MetaData)}
    plain = {id(one): one for one in candidates if isinstance(one, MetaData)}
    found = {number: one.metadata for number, one in bases.items()} | plain
    found = {number: one for number, one in found.items() if one.tables}
    if len(found) != 1:
        what = "no tables" if not found else f"{len(found)} sets of tables"
        raise errors.BadOption(f"{path} has {what}", fix="name one declarative base or MetaData: app.models:Base")
    ((number, metadata),) = found.items()
    registry = getattr(bases.get(number), "registry", None)
    if registry is None:
        return metadata, []
    try:
        registry.configure()
    except SQLAlchemyError as error:
        raise errors.BadOption(f"the models of {path} contradict themselves: {error}", fix="mend the models") from error
    return metadata, sorted(registry.mappers, key=lambda mapper: str(mapper.class_.__name__))


def _declares(table: Any) -> bool:
    try:
        return declaration_of(table) is not None
    except errors.BadDeclaration:
        return True


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadOption(
            f"{path} cannot be read: {error}", fix="record it: pytest --shardwright-record FILE"
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
            yield {name: found[name] for name in ("statement", "where", "at", "count")} | found
        except (ValueError, KeyError, TypeError) as error:
            raise errors.BadOption(
                f"{path}, line {number}: this is no recorded statement: {error!r}",
                fix="record it: pytest --shardwright-record FILE",
            ) from error


def _shown(found: Readiness, proposed: str | None) -> list[Part]:
    shown: list[Part] = []
    if proposed is not None:
        shown.append(f"no table declares anything: judged as if sharded by {proposed} (--key)")
    rows = [(name, kind, "proposed" if name in found.proposed else None) for name, kind in found.tables.items()]
    shown.append(Table(("table", "is", ""), rows))
    for one in found.findings:
        shown += _lines(one)
    for fate, count in found.statements.items():
        shown.append(f"{fate}: {count} different statements, executed {found.executions[fate]} times")
    shown.append(f"readiness {found.percent} %; {found.refused} findings would be refused")
    return shown


def _lines(one: Finding) -> Iterator[str]:
    times = f" ({one.count} times)" if one.places else ""
    yield f"{one.weight}: {one.subject}{times}: {one.what} [{one.rule}]"
    yield f"  fix: {one.fix}"
    more = len(one.places) - _PLACES
    if one.places:
        yield f"  at: {'; '.join(one.places[:_PLACES])}{f'; and {more} more places' if more > 0 else ''}"
