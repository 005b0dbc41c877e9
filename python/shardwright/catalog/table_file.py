"""Tables declared in a TOML file, for those that no SQLAlchemy model describes.

::

    [tables.user_activity]
    sharded_by = "user_id"                # with keyspace = "users"; or reference = true, global_on = "s1", local = true
    time_partitioned = { column = "at", every = "1 week", keep = "3 months" }

    [tables."audit.system_logs"]          # time_partitioned alone: local
    time_partitioned = { column = "log_date", every = "1 day", keep = "30 days" }
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from shardwright import errors
from shardwright.catalog.adoption import Wanted
from shardwright.catalog.tables import split_name
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

#: What says the kind, and the fields that may stand beside it.
_KINDS = {"sharded_by": {"keyspace"}, "reference": {"home"}, "global_on": set[str](), "local": set[str]()}

#: Fields of a policy for which ``false`` says that there is none.
_MAY_BE_FALSE = ("keep", "grace", "archive")


def read(text: str, name: str) -> list[Wanted]:
    """The tables that a file declares, in its order.

    Args:
        text: TOML.
        name: the file's name, for messages.

    Raises:
        BadDeclaration: it is no TOML, or declares something wrong; the message names the table.
        BadOption: a table's name is none.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.BadDeclaration(f"{name} is no TOML: {error}", fix="mend the file") from error
    tables = found.get("tables")
    if not isinstance(tables, dict) or not tables or set(found) != {"tables"}:
        raise errors.BadDeclaration(
            f"{name} declares no table, or something else beside tables",
            fix='one section a table: [tables.orders], with sharded_by = "user_id" in it',
        )
    return [Wanted(*split_name(table), _declaration(table, fields)) for table, fields in tables.items()]


def _declaration(table: str, fields: Any) -> Declaration:
    def refuse(what: str, fix: str) -> errors.BadDeclaration:
        return errors.BadDeclaration(f"table {table} {what}", fix=fix, table=table)

    if not isinstance(fields, Mapping):
        raise refuse("is no section", f"[tables.{table}]")
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) > 1:
        raise refuse(f"is declared {' and '.join(kinds)}", "declare one of them")
    allowed = {"time_partitioned", *kinds, *(_KINDS[kinds[0]] if kinds else ())}
    if unknown := sorted(set(fields) - allowed):
        raise refuse(f"has the field {', '.join(unknown)}", f"its fields may be {', '.join(sorted(allowed))}")
    policy = fields.get("time_partitioned")
    if policy is not None and not isinstance(policy, Mapping):
        raise refuse("has a time_partitioned that is no table", 'time_partitioned = { column = "at", every = "1 day" }')
    made = Policy.from_json(_without_false(policy)) if policy is not None else None
    if not kinds:
        if made is None:
            raise refuse("declares nothing", f"one of {', '.join(_KINDS)}, or time_partitioned")
        return Declaration("local", policy=made)
    kind, value = kinds[0], fields[kinds[0]]
    if kind in ("reference", "local"):
        if value is not True:
            raise refuse(f"has {kind} = {value!r}", f"{kind} = true, or leave it out")
        return Declaration(kind, home=_text(refuse, fields, "home"), policy=made)
    named = _text(refuse, fields, kind)
    if kind == "global_on":
        return Declaration("global", home=named, policy=made)
    return Declaration("sharded", named, _text(refuse, fields, "keyspace") or "users", policy=made)


def _without_false(policy: Mapping[str, Any]) -> dict[str, Any]:
    """What a model says by None: TOML has no such value."""
    return {name: None if value is False and name in _MAY_BE_FALSE else value for name, value in policy.items()}


def _text(refuse: Any, fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise refuse(f"has {name} = {value!r}", f'{name} = "NAME"')
    return value
