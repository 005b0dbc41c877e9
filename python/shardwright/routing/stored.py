"""Values of columns whose type is one of the application's (a TypeDecorator): as the database has them, and as Python does."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column
from sqlalchemy.types import TypeDecorator

from shardwright.routing.clauses import DIALECT


def as_stored(value: Any, column: Column[Any]) -> Any:
    """A value as the database gets it.

    Args:
        value: as an object's attribute or a parameter has it.
        column: its column.
    """
    if value is not None and isinstance(column.type, TypeDecorator):
        return column.type.process_bind_param(value, DIALECT)
    return value


def as_read(value: Any, column: Column[Any]) -> Any:
    """A value as Python gets it.

    Args:
        value: as the database has it.
        column: its column.
    """
    if isinstance(column.type, TypeDecorator):
        return column.type.process_result_value(value, DIALECT)
    return value
