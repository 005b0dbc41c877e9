"""Whether the answers of several shards to one SELECT amount to its answer, and how they are put together.

Pure. What the plan here cannot know (which function is an aggregate of the application's own, which type and collation
an expression has) is named in it, for whoever merges to ask the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import elements, functions, operators, selectable

from shardwright.errors import NotMergeable

Kind = Literal["count", "sum", "min", "max", "avg"]

#: Aggregates and window functions of PostgreSQL that are not merged.
_AGGREGATES = frozenset(
    {
        "any_value",
        "array_agg",
        "bit_and",
        "bit_or",
        "bit_xor",
        "bool_and",
        "bool_or",
        "corr",
        "covar_pop",
        "covar_samp",
        "cume_dist",
        "dense_rank",
        "every",
        "first_value",
        "grouping",
        "json_agg",
        "json_agg_strict",
        "json_arrayagg",
        "json_object_agg",
        "json_objectagg",
        "jsonb_agg",
        "jsonb_agg_strict",
        "jsonb_object_agg",
        "lag",
        "last_value",
        "lead",
        "mode",
        "nth_value",
        "ntile",
        "percent_rank",
        "percentile_cont",
        "percentile_disc",
        "range_agg",
        "range_intersect_agg",
        "rank",
        "regr_avgx",
        "regr_avgy",
        "regr_count",
        "regr_intercept",
        "regr_r2",
        "regr_slope",
        "regr_sxx",
        "regr_sxy",
        "regr_syy",
        "row_number",
        "stddev",
        "stddev_pop",
        "stddev_samp",
        "string_agg",
        "var_pop",
        "var_samp",
        "variance",
        "xmlagg",
    }
)
_SETS = frozenset({"rollup", "cube", "grouping sets", "grouping_sets"})
#: Type oids of name, text and varchar.
_TEXTS = (19, 25, 1043)
_MERGED = frozenset({"count", "sum", "min", "max", "avg"})
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Aggregate:
    """How one column of the result is made of the shards' columns."""

    kind: Kind
    #: position of the column; of the sums and of the counts for avg
    at: int
    sums: int = 0
    counts: int = 0


@dataclass(frozen=True)
class OrderKey:
    """One key of ORDER BY, or of GROUP BY."""

    at: int
    descending: bool = False
    nulls_first: bool = False
    #: position of the column that says which collation the key has; None where it can have none
    collation: int | None = None


@dataclass(frozen=True)
class Merging:
    """How the rows of several shards become one result. Positions are those of the rows that the shards send."""

    #: columns that the shards send beyond the caller's
    hidden: tuple[elements.ColumnElement[Any], ...] = ()
    order: tuple[OrderKey, ...] = ()
    #: the statement has aggregates or GROUP BY: one row of the result for each distinct value of `groups`
    grouped: bool = False
    groups: tuple[OrderKey, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    #: collations of min and max over texts: position of the value, position of its collation
    compared: tuple[tuple[int, int], ...] = ()
    #: functions of whom only the database knows whether they aggregate
    functions: frozenset[str] = frozenset()
    #: how many columns of the caller's there are
    width: int = 0


@dataclass
class _Builder:
    selected: list[Any]
    hidden: list[elements.ColumnElement[Any]] = field(default_factory=list)
    aggregates: dict[int, Aggregate] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)

    def add(self, expression: Any) -> int:
        """Let the shards send an expression too; returns its position."""
        self.hidden.append(expression.label(f"_shardwright_{len(self.hidden)}"))
        return len(self.selected) + len(self.hidden) - 1

    def position(self, expression: Any) -> int:
        """The position of an expression among the columns; it is added where it is not there."""
        plain = _bare(expression)
        for at, column in enumerate(self.selected):
            if _bare(column) is plain:
                return at
        return self.add(expression)

    def collation(self, expression: Any) -> int | None:
        """The position of the name of an expression's collation, where it may have one."""
        if not isinstance(getattr(expression, "type", None), (sa.String, sa.types.NullType)):
            return None
        catalog = sa.func.pg_catalog
        is_text = sa.cast(catalog.pg_typeof(expression), postgresql.OID).in_(
            [sa.literal_column(str(oid)) for oid in _TEXTS]
        )
        return self.add(sa.case((is_text, catalog.pg_collation_for(expression))))

    def aggregate(self, at: int, expression: Any) -> None:
        """Note the aggregate that a column is."""
        found = _as_aggregate(expression)
        assert found is not None
        name, function, criteria = found
        if name == "avg":

            def part(make: Any) -> int:
                made = make(*function.clauses)
                return self.add(made.filter(*criteria) if criteria else made)

            self.aggregates[at] = Aggregate("avg", at, part(sa.func.sum), part(sa.func.count))
        else:
            self.aggregates[at] = Aggregate(name, at)


def merging(statement: Any) -> Merging:
    """Find out how the shards' answers to a SELECT are put together.

    Args:
        statement: a SELECT that each shard may answer for its own rows.

    Raises:
        NotMergeable: they cannot be; the message says why.
    """
    if not isinstance(statement, selectable.Select):
        raise refusal(f"it is a {type(statement).__name__}, not a SELECT")
    if statement._distinct or statement._distinct_on:
        raise refusal("DISTINCT needs the rows of all shards at once", "group by the columns instead")
    if statement._having_criteria:
        raise refusal("HAVING needs the groups of all shards at once", "filter the groups in the application")
    options = statement._fetch_clause_options or {}
    if options.get("with_ties") or options.get("percent"):
        raise refusal("FETCH .. WITH TIES or PERCENT needs the rows of all shards at once", "use LIMIT")
    compiled: Any = statement.compile(dialect=_DIALECT)
    state = compiled.compile_state
    is_cut = any(
        clause is not None for clause in (statement._limit_clause, statement._offset_clause, statement._fetch_clause)
    )
    if is_cut and getattr(state, "multi_row_eager_loaders", False):
        raise refusal(
            "LIMIT with a joined collection counts rows, not objects", "load the collection by selectinload()"
        )
    builder = _Builder(list(getattr(state, "statement", statement)._all_selected_columns))
    if len(builder.selected) != len(compiled._result_columns):
        raise refusal("its columns cannot be followed", "name the columns one by one")
    for at, column in enumerate(builder.selected):
        if _as_aggregate(column) is not None:
            builder.aggregate(at, column)
        _look_through(builder, column, is_aggregate=at in builder.aggregates)
    group_by = [_resolved(builder, clause) for clause in statement._group_by_clauses]
    grouped = bool(group_by or builder.aggregates)
    return Merging(
        groups=tuple(_group_keys(builder, group_by)),
        order=tuple(_order_keys(builder, statement._order_by_clauses)),
        compared=tuple(_compared(builder)),
        grouped=grouped or bool(builder.aggregates),
        aggregates=tuple(builder.aggregates.values()),
        hidden=tuple(builder.hidden),
        functions=frozenset(builder.functions),
        width=len(builder.selected),
    )


def refusal(why: str, fix: str = "name the shard key, so that one shard can answer") -> NotMergeable:
    """The error for a statement that several shards cannot answer together.

    Args:
        why: the reason, for people.
        fix: what to do instead.
    """
    return NotMergeable(f"the shards' answers cannot be merged: {why}", fix=fix)


def _group_keys(builder: _Builder, clauses: Sequence[Any]) -> Iterator[OrderKey]:
    for expression in clauses:
        if _as_aggregate(expression) is not None:
            raise refusal("it groups by an aggregate")
        _look_through(builder, expression)
        if not isinstance(expression, elements.ColumnElement) or _name_of(expression) in _SETS:
            raise refusal("it is grouped by more than columns and expressions", "group by one after the other")
        yield OrderKey(builder.position(expression), collation=builder.collation(expression))


def _order_keys(builder: _Builder, clauses: Sequence[Any]) -> Iterator[OrderKey]:
    for clause in clauses:
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
        is_aggregate = _as_aggregate(expression) is not None
        _look_through(builder, expression, is_aggregate=is_aggregate)
        at = builder.position(expression)
        if is_aggregate and at not in builder.aggregates:
            builder.aggregate(at, expression)
        yield OrderKey(
            at, descending, descending if nulls_first is None else nulls_first, builder.collation(expression)
        )


def _compared(builder: _Builder) -> Iterator[tuple[int, int]]:
    """The collations by which texts were compared for min and max."""
    columns = [*builder.selected, *builder.hidden]
    for aggregate in list(builder.aggregates.values()):
        if aggregate.kind in ("min", "max"):
            collation = builder.collation(_bare(columns[aggregate.at]))
            if collation is not None:
                yield aggregate.at, collation


def _as_aggregate(expression: Any) -> tuple[Kind, Any, tuple[Any, ...]] | None:
    """Name, function and FILTER of a column that is one of the aggregates which can be merged."""
    expression = _bare(expression)
    criteria: tuple[Any, ...] = ()
    if isinstance(expression, elements.FunctionFilter):
        criteria = () if expression.criterion is None else (expression.criterion,)
        expression = _bare(expression.func)
    if not isinstance(expression, functions.FunctionElement) or (name := _name(expression)) not in _MERGED:
        return None
    return name, expression, criteria  # type: ignore[return-value]


def _look_through(builder: _Builder, expression: Any, *, is_aggregate: bool = False) -> None:
    """Refuse what cannot be merged inside an expression; note the functions of whom only the database knows."""
    top = _bare(expression)
    if is_aggregate:
        function = top.func if isinstance(top, elements.FunctionFilter) else top
        for argument in function.clauses:
            if (
                isinstance(_bare(argument), elements.UnaryExpression)
                and _bare(argument).operator is operators.distinct_op
            ):
                raise refusal(f"{_name(function)}(DISTINCT ..) needs the rows of all shards at once")
        stack = list(top.get_children())
        if isinstance(top, elements.FunctionFilter):
            stack = [*function.get_children(), top.criterion]
    else:
        stack = [top]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, (selectable.SelectBase, selectable.ScalarSelect, selectable.Exists)):
            continue  # a query of its own: one value for each row
        if isinstance(item, elements.Over):
            raise refusal("a window function needs the rows of all shards at once")
        if isinstance(item, elements.WithinGroup):
            raise refusal("an ordered-set aggregate needs the rows of all shards at once")
        if isinstance(item, elements.ColumnClause) and item.is_literal and item.name == "*":
            continue  # count(*)
        if item.__visit_name__ in ("textclause", "tstring") or getattr(item, "is_literal", False):
            raise refusal(
                "text in its columns or its order cannot be looked through", "build it of SQLAlchemy's expressions"
            )
        if isinstance(item, functions.FunctionElement) and hasattr(item, "name"):
            name = _name(item)
            if name in _MERGED:
                raise refusal(
                    f"{name}() is a part of a larger expression", "select the aggregate alone and compute in Python"
                )
            if name in _AGGREGATES:
                raise refusal(f"{name}() needs the rows of all shards at once")
            builder.functions.add(name)
        if isinstance(item, (elements.ColumnClause, elements.BindParameter)):
            continue
        stack.extend(item.get_children())


_MODIFIERS = (operators.asc_op, operators.desc_op, operators.nulls_first_op, operators.nulls_last_op)


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


def _bare(expression: Any) -> Any:
    """An expression without its label and without the ORM's annotations."""
    while isinstance(expression, (elements.Label, elements.Grouping)):
        expression = expression.element
    return expression._deannotate() if hasattr(expression, "_deannotate") else expression


def _name_of(expression: Any) -> str:
    return _name(expression) if isinstance(expression, functions.FunctionElement) else ""


def _name(function: Any) -> str:
    return str(function.name).lower()
