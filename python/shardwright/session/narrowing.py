"""A read that sees only the rows whose points a shard owns, while rows of others may be there."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import point_sql
from shardwright.routing.shard_map import Keyspace


class OwnedRow(ColumnElement[bool]):
    """True for rows whose key's point is in a set of points.

    The points are a bind parameter, so that one compiled statement serves every map.

    Args:
        keyspace: gives the point of a key.
        points: what is owned.
        column: the shard key.
    """

    __visit_name__ = "shardwright_owned_row"
    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's own name and form
        ("column", InternalTraversal.dp_clauseelement),
        ("points", InternalTraversal.dp_clauseelement),
        ("shape", InternalTraversal.dp_string),
    ]
    type = sa.Boolean()

    def __init__(self, keyspace: Keyspace, points: Multirange, column: ColumnElement[Any]) -> None:
        self.column = column
        self.points: BindParameter[str] = sa.bindparam(None, points.literal(), sa.Text(), unique=True)
        self.keyspace = keyspace
        self.shape = f"{keyspace.strategy} {keyspace.key_type} {keyspace.buckets}"

    @property
    def _from_objects(self) -> list[Any]:
        return list(self.column._from_objects)


@compiles(OwnedRow)
def _owned_row(element: OwnedRow, compiler: Any, **options: Any) -> str:
    points = compiler.process(element.points, **options)
    column = compiler.process(element.column, **options)
    return (
        f"(CAST({points} AS pg_catalog.int8multirange) OPERATOR(pg_catalog.@>) {point_sql(element.keyspace, column)})"
    )
