"""``op.convert_to_partitioned`` where the table is not partitioned yet: the conversion is a job of many transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic.operations import Operations

from shardwright import errors


def convert_here(operations: Operations, schema: str | None, table: str, info: Mapping[str, Any]) -> None:
    """Convert a table of the shard that a revision runs on.

    Args:
        operations: Alembic's.
        schema: the table's schema; None for the default one.
        table: its name.
        info: what is declared of it.

    Raises:
        MigrationRefused: it has to be converted before.
    """
    name = f"{schema}.{table}" if schema else table
    raise errors.MigrationRefused(
        f"table {name} is not partitioned yet, and a conversion is not done within a revision's transaction",
        fix=f"shardwright partition convert {name}",
    )
