"""Whether the answers of several shards to one SELECT amount to its answer, and how they are put together.

Pure. Three ways: rows in the statement's order are merged as they come (`Merging.order`); groups that may be on several
shards are put together by one of the databases (`Merging.finish`); and a statement whose groups hold the shard key
needs neither, since each group is whole on its shard. What the plan here cannot know (which function is an aggregate of
the application's own, which type and collation an expression has) is asked of the databases by whoever merges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import elements, operators, selectable

from shardwright.routing.aggregates import (
    Recipe,
    Splitter,
    bare,
    check_inside,
    has_aggregate,
    name_of,
)
from shardwright.routing.aggregates import refusal as refusal
from shardwright.routing.clauses import DIALECT, is_portable

_SETS = frozenset({"rollup", "cube", "grouping sets", "grouping_sets"})
#: Type oids of bpchar, name, text and varchar.
_TEXTS = (19, 25, 1042, 1043)
#: Types whose values Python may be able to order as PostgreSQL does; the column's real type decides.
_ORDERED = (sa.Integer, sa.Numeric, sa.Boolean, sa.Date, sa.DateTime, sa.Time, sa.Uuid, sa.LargeBinary)
_MODIFIERS = (operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op)
_SYNTAX = ("_post_select_clause", "_pre_columns_clause", "_post_criteria_clause", "_post_body_clause")


@dataclass(frozen=True)
class OrderKey:
    """One key of ORDER BY. Positions are those of the rows that the shards send."""

    at: int
    descending: bool = False
    nulls_first: bool = False
    #: position of the key's `shape`; None where Python knows how its values are ordered
    shape: int | None = None


@dataclass(frozen=True)
class Finish:
    """What one database does with the groups that all of them sent."""

    #: position of each part's `shape` in the rows that the shards send
    parts: tuple[int, ...]
    #: the parts themselves
    of: tuple[Any, ...]
    #: how the columns ``x0``, ``x1``, ... are made of the parts
    recipes: tuple[Recipe, ...]
    #: the caller's columns, over those
    columns: tuple[Any, ...]
    having: tuple[Any, ...] = ()
    order: tuple[Any, ...] = ()
    distinct: bool = False


@dataclass(frozen=True)
class Merging:
    """How the rows of several shards become one result. Positions are those of the rows that the shards send."""

    #: columns that the shards send beyond the caller's
    hidden: tuple[elements.ColumnElement[Any], ...] = ()
    order: tuple[OrderKey, ...] = ()
    finish: Finish | None = None
    #: functions of whom only the database knows whether they aggregate
    functions: frozenset[str] = frozenset()
    #: how many columns of the caller's there are
    width: int = 0

    @property
    def is_portable(self) -> bool:
        """Whether it holds for each statement of the same shape."""
        finish = self.finish or Finish((), (), (), ())
        made = (*self.hidden, *finish.columns, *finish.having, *finish.order)
        return all(is_portable(one) for one in made)


@dataclass
class _Builder:
    selected: list[Any]
    keys: Sequence[Any]
    hidden: list[elements.ColumnElement[Any]] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)

    def add(self, expression: Any) -> int:
        """Let the shards send an expression too; returns its position."""
        self.hidden.append(expression.label(f"_shardwright_{len(self.hidden)}"))
        return len(self.selected) + len(self.hidden) - 1

    def position(self, expression: Any) -> int | None:
        """The position of an expression among the caller's columns."""
        plain = bare(expression)
        return next((at for at, column in enumerate(self.selected) if bare(column) is plain), None)

    def is_key(self, expression: Any) -> bool:
        """Whether an expression is the shard key of the rows that are read."""
        plain = bare(expression)
        return any(plain is bare(key) for key in self.keys)


def shape(expression: Any) -> Any:
    """What another database needs to make a value anew: its text, its type, and its collation where it has one.

    Args:
        expression: gives the value.
    """
    catalog = sa.func.pg_catalog
    kind = catalog.pg_typeof(expression)
    # A cast would creep under COLLATE, and then be another expression than the one of GROUP BY.
    collated = getattr(bare(expression), "operator", None) is operators.collate
    value: Any = postgresql.array([expression])[1] if collated else expression
    parts = [sa.cast(value, sa.Text), catalog.format_type(kind, sa.literal_column("-1"))]
    if isinstance(getattr(expression, "type", None), (sa.String, sa.types.NullType)):
        is_text = sa.cast(kind, postgresql.OID).in_([sa.literal_column(str(oid)) for oid in _TEXTS])
        parts.append(sa.case((is_text, catalog.pg_collation_for(expression))))
    return postgresql.array(parts, type_=sa.Text())


def merging(statement: Any, keys: Sequence[Any] = ()) -> Merging:
    """Find out how the shards' answers to a SELECT are put together.

    Args:
        statement: a SELECT that each shard may answer for its own rows.
        keys: columns that hold, in each row, the shard key by which the row is where it is.

    Raises:
        NotMergeable: they cannot be; the message says why.
    """
    if not isinstance(statement, selectable.Select):
        raise refusal(f"it is a {type(statement).__name__}, not a SELECT")
    options = statement._fetch_clause_options or {}
    if options.get("with_ties") or options.get("percent"):
        raise refusal("FETCH .. WITH TIES or PERCENT needs the rows of all shards at once", "use LIMIT")
    compiled: Any = statement.compile(dialect=DIALECT)
    state = compiled.compile_state
    if _is_cut(statement) and getattr(state, "multi_row_eager_loaders", False):
        raise refusal(
            "LIMIT with a joined collection counts rows, not objects", "load the collection by selectinload()"
        )
    builder = _Builder(list(getattr(state, "statement", statement)._all_selected_columns), keys)
    if len(builder.selected) != len(compiled._result_columns):
        raise refusal("its columns cannot be followed", "name the columns one by one")
    distinct_on = _distinct_on(statement)
    if distinct_on and not any(builder.is_key(_resolved(builder, one)) for one in distinct_on):
        raise refusal("DISTINCT ON needs the rows of all shards at once", "add the shard key to it")
    groups = [_resolved(builder, clause) for clause in statement._group_by_clauses]
    order = [_order_clause(builder, clause) for clause in statement._order_by_clauses]
    grouped = bool(groups or statement._having_criteria) or any(
        has_aggregate(one) for one in (*builder.selected, *(expression for expression, _, _ in order))
    )
    whole = any(builder.is_key(group) for group in groups)
    distinct = bool(statement._distinct and not distinct_on)
    if distinct and not whole and not grouped:
        whole = any(builder.is_key(column) for column in builder.selected)
    if (grouped or distinct) and not whole:
        return _in_groups(builder, statement, groups, order, distinct)
    for one in (*builder.selected, *statement._having_criteria, *groups):
        check_inside(one, builder.functions, builder.is_key, whole=whole and grouped)
    keys_of_order = tuple(_order_keys(builder, order, distinct, whole and grouped))
    return Merging(tuple(builder.hidden), keys_of_order, None, frozenset(builder.functions), len(builder.selected))


def _in_groups(
    builder: _Builder, statement: Any, groups: Sequence[Any], order: Sequence[tuple[Any, bool, bool]], distinct: bool
) -> Merging:
    """Groups that may be on several shards."""
    for group in groups:
        if has_aggregate(group):
            raise refusal("it groups by an aggregate")
        if not isinstance(group, elements.ColumnElement) or name_of(group) in _SETS:
            raise refusal("it is grouped by more than columns and expressions", "group by one after the other")
        check_inside(group, builder.functions, builder.is_key)
    only_distinct = distinct and not groups and not any(has_aggregate(one) for one in builder.selected)
    by = [bare(one) for one in (builder.selected if only_distinct else groups)]
    splitter = Splitter(by, builder.is_key, functions=builder.functions)
    for group in by:
        splitter.group(group)
    columns = tuple(splitter.split(one) for one in builder.selected)
    having = tuple(splitter.split(one) for one in statement._having_criteria)
    shown = [bare(one) for one in builder.selected]
    made = []
    for expression, descending, nulls_first in order:
        plain = bare(expression)
        if distinct and not any(plain is one or plain.compare(one) for one in shown):
            raise refusal("ORDER BY of SELECT DISTINCT names what is not selected", "select it too")
        key = splitter.split(expression)
        key = key.desc() if descending else key.asc()
        made.append(key.nulls_first() if nulls_first else key.nulls_last())
    parts = tuple(builder.add(shape(part)) for part in splitter.parts)
    finish = Finish(parts, tuple(splitter.parts), tuple(splitter.recipes), columns, having, tuple(made), distinct)
    return Merging(tuple(builder.hidden), (), finish, frozenset(builder.functions), len(builder.selected))


def _order_clause(builder: _Builder, clause: Any) -> tuple[Any, bool, bool]:
    """The expression, whether it is descending, and whether NULLs come first."""
    descending, nulls_first = False, None
    expression = clause
    while True:
        expression = _resolved(builder, expression)
        if not isinstance(expression, elements.UnaryExpression) or expression.modifier not in _MODIFIERS:
            break
        if expression.modifier in (operators.desc_op, operators.asc_op):
            descending = expression.modifier is operators.desc_op
        else:
            nulls_first = expression.modifier is operators.nulls_first_op
        expression = expression.element
    return expression, descending, descending if nulls_first is None else nulls_first


def _order_keys(
    builder: _Builder, order: Sequence[tuple[Any, bool, bool]], distinct: bool, whole: bool
) -> Iterator[OrderKey]:
    for expression, descending, nulls_first in order:
        check_inside(expression, builder.functions, builder.is_key, whole=whole)
        at = builder.position(expression)
        if at is None:
            if distinct:
                raise refusal("ORDER BY of SELECT DISTINCT names what is not selected", "select it too")
            at = builder.add(expression)
        plain = bare(expression)
        known = isinstance(plain.type, _ORDERED)
        yield OrderKey(at, descending, nulls_first, None if known else builder.add(shape(plain)))


def _resolved(builder: _Builder, clause: Any) -> Any:
    """The expression that a name in ORDER BY or GROUP BY stands for."""
    while True:
        kind = clause.__visit_name__
        if kind == "textual_label_reference":
            wanted = clause.element
            found = [
                c for c in builder.selected if getattr(c, "key", None) == wanted or getattr(c, "name", None) == wanted
            ]
            if not found:
                raise refusal(
                    f"{wanted!r} in its order cannot be looked through", "build it of SQLAlchemy's expressions"
                )
            clause = found[0]
        elif kind == "label_reference" or isinstance(clause, elements.Grouping):
            clause = clause.element
        else:
            return clause


def _is_cut(statement: Any) -> bool:
    clauses = (statement._limit_clause, statement._offset_clause, statement._fetch_clause)
    return any(clause is not None for clause in clauses)


def _distinct_on(statement: Any) -> list[Any]:
    """The expressions of DISTINCT ON, in either of the forms that SQLAlchemy has for it."""
    found = list(statement._distinct_on)
    for name in _SYNTAX:
        clause = getattr(statement, name, None)
        if clause is None:
            continue
        parts = list(clause.clauses) if hasattr(clause, "clauses") else [clause]
        for part in parts:
            if part.__visit_name__ != "postgresql_distinct_on":
                raise refusal(f"it contains a {type(part).__name__}")
            found += part._distinct_on
    return found
