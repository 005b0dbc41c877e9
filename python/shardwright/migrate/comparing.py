"""Autogenerate: models that declare a policy against what a shard and the catalog have."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext

from shardwright.migrate import declared, facts
from shardwright.migrate.facts import Facts
from shardwright.migrate.operations import (
    ConvertToPartitioned,
    CreateTimePartitioned,
    RegisterTable,
    SetPartitionPolicy,
)
from shardwright.routing.tables import check_declared, declaration_of

try:
    from alembic.util import DispatchPriority

    _LAST: dict[str, Any] = {"priority": DispatchPriority.LAST}
except ImportError:  # before 1.18 comparators came in the order in which they were registered
    _LAST = {}

_log = logging.getLogger(__name__)
_known: WeakKeyDictionary[MigrationContext, Facts] = WeakKeyDictionary()


@comparators.dispatch_for("table")
def _compare_table(
    context: AutogenContext,
    changes: ops.ModifyTableOps,
    schema: str | None,
    name: str,
    found: sa.Table | None,
    model: sa.Table | None,
) -> None:
    """A table that is there and in a model: is it partitioned as the model says?"""
    if found is None or model is None:
        return
    declaration = declaration_of(model)
    wanted = declaration.policy if declaration is not None else None
    seen = _facts(context)
    place = seen.name(schema, name)
    if declaration is None or wanted is None:
        if place in seen.managed or (seen.policies or {}).get(place) is not None:
            _log.warning("table %s.%s has a policy that its model does not declare: left alone", *place)
        return
    info = declared.entries(model.info)
    if seen.parents.get(place) != wanted.column:
        # Of a table that is partitioned by something else this is refused when it runs, with the way out.
        check_declared(model, declaration)
        changes.ops.insert(0, ConvertToPartitioned(name, info, schema=schema))
        _log.info("Detected a policy on table '%s', which is not partitioned by %s", name, wanted.column)
        return
    if seen.policies is None:
        _log.warning("policy of table %s.%s not compared: no catalog is given (SHARDWRIGHT_CATALOG)", *place)
        return
    if place not in seen.policies:
        _log.warning("table %s.%s is not registered: shardwright table register", *place)
        return
    before = seen.policies[place]
    if before != wanted:
        only = {"shardwright.partitioned": wanted.to_json()}
        changes.ops.append(SetPartitionPolicy(name, only, schema=schema, before=before))
        _log.info("Detected a changed policy of table '%s'", name)


@comparators.dispatch_for("schema", **_LAST)
def _compare_schema(context: AutogenContext, upgrade: ops.UpgradeOps, _schemas: object) -> None:
    """New tables with a policy are created partitioned; conversions come first in the revision."""
    models = {(table.schema, table.name): table for table in context.sorted_tables}
    created: list[ops.MigrateOperation] = []
    for operation in upgrade.ops:
        created.append(operation)
        if type(operation) is not ops.CreateTableOp:
            continue
        model = models[operation.schema, operation.table_name]
        declaration = declaration_of(model)
        if declaration is None:
            continue
        check_declared(model, declaration)
        if declaration.policy is not None:
            created[-1] = CreateTimePartitioned.from_table(model)
        else:
            info = declared.entries(model.info)
            operation.info = {key: value for key, value in operation.info.items() if key not in info}
            created.append(RegisterTable(operation.table_name, info, schema=operation.schema))
    upgrade.ops[:] = created
    conversions: list[ops.MigrateOperation] = []
    for operation in upgrade.ops:
        if isinstance(operation, ops.ModifyTableOps):
            mine = [one for one in operation.ops if isinstance(one, ConvertToPartitioned)]
            conversions += mine
            operation.ops[:] = [one for one in operation.ops if one not in mine]
    kept = [one for one in upgrade.ops if not (isinstance(one, ops.ModifyTableOps) and one.is_empty())]
    upgrade.ops[:] = [*conversions, *kept]


def _facts(context: AutogenContext) -> Facts:
    running = context.migration_context
    if running not in _known:
        assert context.connection is not None
        seen = facts.read(context.connection)
        dsn = facts.catalog_dsn(running.config)
        policies = facts.policies(context.connection, dsn) if dsn else None
        _known[running] = Facts(**{**vars(seen), "policies": policies})
    return _known[running]
