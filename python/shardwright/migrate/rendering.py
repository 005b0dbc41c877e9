"""How our operations look in a revision that autogenerate writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops

from shardwright.migrate import declared
from shardwright.migrate.operations import (
    ConvertToPartitioned,
    CreateTimePartitioned,
    Nothing,
    RegisterTable,
    SetPartitionPolicy,
    StayPartitioned,
)
from shardwright.routing.policy import Policy

_KINDS = {"sharded": "sharded_by", "reference": "reference", "global": "global_on", "local": "local"}
_PARTITIONED = "shardwright.partitioned"


def declaring(info: Mapping[str, Any]) -> str:
    """Python that makes entries of ``Table.info``: ``shardwright.sharded_by('user_id') | shardwright.time_partitioned(..)``.

    Args:
        info: the entries.
    """
    parts = []
    for key, value in sorted(info.items(), key=lambda item: item[0] == _PARTITIONED):
        kind = key.removeprefix("shardwright.")
        if key == _PARTITIONED:
            parts.append(f"shardwright.time_partitioned({_policy(Policy.from_json(value))})")
        elif kind == "sharded":
            parts.append(f"shardwright.sharded_by({value['key_column']!r}, keyspace={value['keyspace']!r})")
        elif kind in _KINDS:
            home = value.get("home")
            parts.append(f"shardwright.{_KINDS[kind]}({repr(home) if home is not None else ''})")
        else:
            parts.append(repr({key: value}))
    return " | ".join(parts)


def _policy(policy: Policy) -> str:
    given = policy.to_json()
    named = [
        f"{field.name}={given[field.name]!r}"
        for field in fields(policy)
        if field.name in given and field.name != "column"
    ]
    return ", ".join([repr(policy.column), *named])


def _prefix(context: AutogenContext) -> str:
    context.imports.add("import shardwright")
    return str(context.opts.get("alembic_module_prefix") or "op.")


@renderers.dispatch_for(CreateTimePartitioned)
def _create(context: AutogenContext, operation: CreateTimePartitioned) -> str:
    prefix = _prefix(context)
    plain = copy.copy(operation)
    ours = declared.entries(operation.info)
    plain.info = {key: value for key, value in operation.info.items() if key not in ours}
    plain.kw = {key: value for key, value in operation.kw.items() if key != "postgresql_partition_by"}
    text = str(renderers.dispatch(ops.CreateTableOp)(context, plain))
    body = text.removeprefix(f"{prefix}create_table(").rstrip().removesuffix(")").rstrip()
    return f"{prefix}create_time_partitioned({body},\ndeclared={declaring(ours)}\n)"


@renderers.dispatch_for(SetPartitionPolicy)
def _set(context: AutogenContext, operation: SetPartitionPolicy) -> str:
    return _on_table(context, "set_partition_policy", operation)


@renderers.dispatch_for(ConvertToPartitioned)
def _convert(context: AutogenContext, operation: ConvertToPartitioned) -> str:
    return _on_table(context, "convert_to_partitioned", operation)


@renderers.dispatch_for(RegisterTable)
def _register(context: AutogenContext, operation: RegisterTable) -> str:
    return _on_table(context, "register_table", operation)


@renderers.dispatch_for(Nothing)
def _nothing(_context: AutogenContext, _operation: Nothing) -> list[str]:
    return []


def _on_table(
    context: AutogenContext, what: str, operation: SetPartitionPolicy | ConvertToPartitioned | RegisterTable
) -> str:
    schema = f", schema={operation.schema!r}" if operation.schema else ""
    called = f"{_prefix(context)}{what}({str(operation.table_name)!r}"
    return f"{called}, {declaring(declared.entries(operation.declared))}{schema})"


@renderers.dispatch_for(StayPartitioned)
def _stay(_context: AutogenContext, operation: StayPartitioned) -> str:
    return f"pass  # {operation.table_name} stays partitioned: code of before can use it as it is"
