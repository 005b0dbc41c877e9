"""What a revision can do with time partitions: ``op.create_time_partitioned`` and its kin.

They change the shard that they run on, in the revision's transaction, and leave a word for the catalog beside
(`declared`). `shardwright migrate upgrade` tells the catalog once every shard is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations, ops

from shardwright import errors
from shardwright.migrate import declared
from shardwright.migrate.conversion import convert_here
from shardwright.migrate.declared import PARTITIONED, policy_of
from shardwright.routing.policy import Policy
from shardwright.routing.predicates import quote_identifier
from shardwright.routing.tables import check_declared, declaration_of


@Operations.register_operation("create_time_partitioned")
class CreateTimePartitioned(ops.CreateTableOp):
    """CREATE TABLE .. PARTITION BY RANGE, and what it declares. Its windows are made once all shards have the table."""

    @classmethod
    def create_time_partitioned(
        cls,
        operations: Operations,
        table_name: str,
        *columns: Any,
        declared: Mapping[str, Any],
        schema: str | None = None,
        **options: Any,
    ) -> sa.Table:
        """Create a table that is partitioned by time; called as ``op.create_time_partitioned``.

        Args:
            operations: Alembic's, which ``op`` stands for.
            table_name: its name.
            columns: columns and constraints, as for ``op.create_table``.
            declared: entries of ``Table.info``: ``sharded_by(..) | time_partitioned(..)``.
            schema: its schema; the connection's default unless given.
            options: as for ``op.create_table``.

        Returns:
            The table.

        Raises:
            BadDeclaration: the declaration contradicts itself or the table.
        """
        info = {**options.pop("info", {}), **declared}
        made: sa.Table = operations.invoke(cls(table_name, columns, schema=schema, info=info, **options))
        return made

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic reports a difference."""
        return ("create_time_partitioned", self.to_table())


@Operations.register_operation("set_partition_policy")
class SetPartitionPolicy(ops.MigrateOperation):
    """Another policy for a table that is partitioned by time. What exists stays; new windows follow the new policy."""

    def __init__(
        self,
        table_name: str,
        declared: Mapping[str, Any],
        *,
        schema: str | None = None,
        before: Policy | None = None,
    ) -> None:
        self.table_name, self.schema = table_name, schema
        self.declared, self.before = dict(declared), before

    @classmethod
    def set_partition_policy(
        cls, operations: Operations, table_name: str, declared: Mapping[str, Any], *, schema: str | None = None
    ) -> None:
        """Change a table's policy; called as ``op.set_partition_policy``.

        Args:
            operations: Alembic's, which ``op`` stands for.
            table_name: the table.
            declared: ``shardwright.time_partitioned(..)``.
            schema: its schema; the connection's default unless given.

        Raises:
            BadDeclaration: no policy, or a wrong one.
            MigrationRefused: the table is not partitioned by that column.
        """
        policy_of(declared)
        operations.invoke(cls(table_name, declared, schema=schema))

    def reverse(self) -> ops.MigrateOperation:
        """Back to the policy that was in force when the revision was generated."""
        if self.before is None:
            raise errors.MigrationRefused(
                f"it is not known which policy {self.table_name} had before",
                fix="write the revision's downgrade() by hand",
            )
        return SetPartitionPolicy(
            self.table_name, {PARTITIONED: self.before.to_json()}, schema=self.schema, before=policy_of(self.declared)
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic reports a difference."""
        return ("set_partition_policy", self.schema, self.table_name, self.before, policy_of(self.declared))


@Operations.register_operation("convert_to_partitioned")
class ConvertToPartitioned(ops.MigrateOperation):
    """A table becomes partitioned: an empty new one here, one with rows by `shardwright partition convert` before."""

    def __init__(self, table_name: str, declared: Mapping[str, Any], *, schema: str | None = None) -> None:
        self.table_name, self.schema, self.declared = table_name, schema, dict(declared)

    @classmethod
    def convert_to_partitioned(
        cls, operations: Operations, table_name: str, declared: Mapping[str, Any], *, schema: str | None = None
    ) -> None:
        """Convert a table that is there; called as ``op.convert_to_partitioned``. Nothing to do where it is partitioned.

        Args:
            operations: Alembic's, which ``op`` stands for.
            table_name: the table.
            declared: entries of ``Table.info``: ``sharded_by(..) | time_partitioned(..)``.
            schema: its schema; the connection's default unless given.

        Raises:
            BadDeclaration: no policy, or a wrong one.
            MigrationRefused: it is partitioned by something else, or has to be converted before the revision runs.
        """
        policy_of(declared)
        operations.invoke(cls(table_name, declared, schema=schema))

    def reverse(self) -> ops.MigrateOperation:
        """Nothing: a partitioned table serves old code as well."""
        return StayPartitioned(self.table_name, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic reports a difference."""
        return ("convert_to_partitioned", self.schema, self.table_name, policy_of(self.declared))


@Operations.register_operation("register_table")
class RegisterTable(ops.MigrateOperation):
    """A table without a policy is registered once all shards have it: guarded, copied everywhere, as it is declared."""

    def __init__(self, table_name: str, declared: Mapping[str, Any], *, schema: str | None = None) -> None:
        self.table_name, self.schema, self.declared = table_name, schema, dict(declared)

    @classmethod
    def register_table(
        cls, operations: Operations, table_name: str, declared: Mapping[str, Any], *, schema: str | None = None
    ) -> None:
        """Declare a table that was created before; called as ``op.register_table``.

        Args:
            operations: Alembic's, which ``op`` stands for.
            table_name: the table.
            declared: entries of ``Table.info``: ``shardwright.sharded_by("user_id")``.
            schema: its schema; the connection's default unless given.
        """
        operations.invoke(cls(table_name, declared, schema=schema))

    def reverse(self) -> ops.MigrateOperation:
        """Nothing: what a table is goes with the table."""
        return Nothing()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic reports a difference."""
        return ("register_table", self.schema, self.table_name, dict(self.declared))


class Nothing(ops.MigrateOperation):
    """What is not in a revision."""


class StayPartitioned(ops.MigrateOperation):
    """What a downgrade does with a table that was converted: nothing."""

    def __init__(self, table_name: str, *, schema: str | None = None) -> None:
        self.table_name, self.schema = table_name, schema

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """As Alembic reports a difference."""
        return ("stay_partitioned", self.schema, self.table_name)


# ---------------------------------------------------------------- how they are done


@Operations.implementation_for(CreateTimePartitioned)
def _create(operations: Operations, operation: CreateTimePartitioned) -> sa.Table:
    table = operation.to_table(operations.migration_context)
    declaration = declaration_of(table)
    if declaration is None or declaration.policy is None:
        raise errors.BadDeclaration(
            f"op.create_time_partitioned({operation.table_name!r}) declares no policy",
            fix='declared=shardwright.time_partitioned("created_at", every="1 month")',
        )
    check_declared(table, declaration)
    table.dialect_options["postgresql"]["partition_by"] = f"RANGE ({quote_identifier(declaration.policy.column)})"
    operations.impl.create_table(table)
    _declare(operations, operation.schema, operation.table_name, declared.entries(table.info))
    return table


@Operations.implementation_for(SetPartitionPolicy)
def _set(operations: Operations, operation: SetPartitionPolicy) -> None:
    column = policy_of(operation.declared).column
    by = _partitioned_by(operations, operation.schema, operation.table_name)
    if by is not None and by != ("p", column):
        raise _not_by(operation.table_name, by, column)
    _declare(operations, operation.schema, operation.table_name, declared.entries(operation.declared))


@Operations.implementation_for(ConvertToPartitioned)
def _convert(operations: Operations, operation: ConvertToPartitioned) -> None:
    column = policy_of(operation.declared).column
    by = _partitioned_by(operations, operation.schema, operation.table_name)
    if by is not None and by[0] == "p" and by[1] != column:
        raise _not_by(operation.table_name, by, column)
    if by is not None and by[0] != "p":
        convert_here(operations, operation.schema, operation.table_name, operation.declared)
    _declare(operations, operation.schema, operation.table_name, declared.entries(operation.declared))


@Operations.implementation_for(RegisterTable)
def _register(operations: Operations, operation: RegisterTable) -> None:
    _partitioned_by(operations, operation.schema, operation.table_name)
    _declare(operations, operation.schema, operation.table_name, declared.entries(operation.declared))


@Operations.implementation_for(StayPartitioned)
def _stay(_operations: Operations, _operation: StayPartitioned) -> None:
    """Nothing."""


def _partitioned_by(operations: Operations, schema: str | None, table: str) -> tuple[str, str | None] | None:
    """The table's kind and the column that it is partitioned by; None where nobody can be asked (a script is written)."""
    bind = operations.migration_context.bind
    if operations.migration_context.as_sql or bind is None:
        return None
    row = bind.execute(
        sa.text(
            "SELECT c.relkind, (SELECT a.attname FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = c.oid "
            "AND a.attnum = p.partattrs[0] WHERE p.partrelid = c.oid AND p.partstrat = 'r' AND p.partnatts = 1) "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = :table AND n.nspname = coalesce(:schema, current_schema())"
        ),
        {"table": table, "schema": schema},
    ).fetchone()
    if row is None:
        raise errors.UnknownTable(
            f"there is no table {schema + '.' if schema else ''}{table}", fix="check the name; names are case-sensitive"
        )
    return (row[0], row[1])


def _not_by(table: str, by: tuple[str, str | None], column: str) -> errors.MigrationRefused:
    if by[0] != "p":
        return errors.MigrationRefused(
            f"table {table} is not partitioned, and its policy is of column {column}",
            fix=f"op.convert_to_partitioned({table!r}, ..) comes first",
        )
    return errors.MigrationRefused(
        f"table {table} is partitioned by {by[1] or 'an expression'}, and its policy is of column {column}: "
        "no DDL changes that",
        fix="make a table that is partitioned by the new column, and fill it from the old one",
    )


def _declare(operations: Operations, schema: str | None, table: str, info: Mapping[str, Any]) -> None:
    context = operations.migration_context
    if context.as_sql or context.bind is None:
        place = schema or "public"
    else:
        known = context.bind.exec_driver_sql("SELECT to_regclass('shardwright.declared') IS NOT NULL").scalar()
        if not known:
            raise errors.MigrationRefused(
                f"this database is no shard, so nobody looks after the partitions of {table}",
                fix="shardwright shard add NAME DSN; then shardwright migrate upgrade",
            )
        place = schema or str(context.bind.exec_driver_sql("SELECT current_schema()").scalar())
    operations.execute(declared.writing(place, table, info))
