"""Aggregates over shards: each shard sends *parts* of its groups, and *recipes* say how one value is made of many parts.

Pure. An expression of a grouped statement, HAVING and ORDER BY included, is split where its aggregates are: what stands
around them is left to the database that puts the groups together, over the columns ``x0``, ``x1``, ... of the recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.sql import elements, functions, operators, selectable, visitors

from shardwright.errors import NotMergeable

Kind = Literal[
    "group", "any", "count", "sum", "min", "max", "avg", "bool_and", "bool_or", "every", "bit_and", "bit_or", "bit_xor",
    "array_agg", "string_agg",
]  # fmt: skip

#: Aggregates that are made of their parts by themselves, or as `Recipe` says.
MERGED: frozenset[str] = frozenset(Kind.__args__) - {"group", "any"}  # type: ignore[attr-defined]

_NOT_MERGED = """
    any_value corr covar_pop covar_samp cume_dist dense_rank first_value grouping json_agg json_agg_strict json_arrayagg
    json_object_agg json_objectagg jsonb_agg jsonb_agg_strict jsonb_object_agg lag last_value lead mode nth_value ntile
    percent_rank percentile_cont percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number stddev stddev_pop stddev_samp var_pop var_samp
    variance xmlagg
"""
#: Aggregates and window functions of PostgreSQL that are not merged.
NOT_MERGED = frozenset(_NOT_MERGED.split())

_QUERIES = (selectable.SelectBase, selectable.ScalarSelect, selectable.Exists)


def refusal(why: str, fix: str = "name the shard key, so that one shard can answer") -> NotMergeable:
    """The error for a statement that several shards cannot answer together.

    Args:
        why: the reason, for people.
        fix: what to do instead.
    """
    return NotMergeable(f"the shards' answers cannot be merged: {why}", fix=fix)


def bare(expression: Any) -> Any:
    """An expression without its label and without the ORM's annotations.

    Args:
        expression: any expression.
    """
    while isinstance(expression, (elements.Label, elements.Grouping)):
        expression = expression.element
    return expression._deannotate() if hasattr(expression, "_deannotate") else expression


@dataclass(frozen=True)
class Recipe:
    """How one value of a group is made."""

    kind: Kind
    #: numbers of the parts that it is made of: sums and counts for avg, values and delimiters for string_agg
    parts: tuple[int, ...]


@dataclass
class Splitter:
    """Splits the expressions of one statement.

    Args:
        groups: the expressions of its GROUP BY.
        is_key: whether an expression is the shard key.
    """

    groups: Sequence[Any]
    is_key: Callable[[Any], bool]
    #: what each shard sends
    parts: list[Any] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)
    #: functions of whom only the database knows whether they aggregate
    functions: set[str] = field(default_factory=set)
    _known: dict[int, Any] = field(default_factory=dict)

    def split(self, expression: Any) -> Any:
        """An expression over the recipes' columns that is what `expression` is over the rows.

        Args:
            expression: of the statement's columns, HAVING or ORDER BY.

        Raises:
            NotMergeable: an aggregate in it cannot be made of parts.
        """
        plain = bare(expression)
        check_inside(plain, self.functions, self.is_key)
        replaced: Any = self._replaced
        made: Any = visitors.replacement_traverse(plain, {}, replaced)
        return made

    def group(self, expression: Any) -> Any:
        """The column of a grouping key."""
        return self._column(expression, "group", expression)

    def _replaced(self, item: Any, **_: Any) -> Any | None:
        if not isinstance(item, elements.ColumnElement) or isinstance(item, (elements.BindParameter, elements.Tuple)):
            return None
        if (found := as_aggregate(item)) is not None:
            return self._aggregate(item, *found)
        if has_aggregate(item) or not _speaks_of_rows(item):
            return None
        if isinstance(item, elements.Grouping) and not isinstance(item.element, elements.ColumnElement):
            return None
        plain = bare(item)
        if any(_same(plain, group) for group in self.groups):
            return self._column(item, "group", plain)
        if any(_same(inner, group) for inner in visitors.iterate(plain) for group in self.groups):
            return None
        return self._column(item, "any", plain)

    def _aggregate(self, item: Any, name: str, function: Any, criteria: tuple[Any, ...]) -> Any:
        arguments = list(function.clauses)
        if any(bare(one).__visit_name__ == "aggregate_order_by" for one in arguments):
            raise refusal(f"the order inside {name}() goes over the rows of all shards at once")
        if any(_is_distinct(one) for one in arguments):
            if name == "count" and self.is_key(bare(arguments[0]).element):
                return self._column(item, "count", item)
            if name not in ("min", "max", "bool_and", "bool_or", "every", "bit_and", "bit_or"):
                raise refusal(
                    f"{name}(DISTINCT ..) needs the rows of all shards at once",
                    "select the values with DISTINCT, and count them in the application",
                )

        def part(make: Any, *given: Any) -> Any:
            made = make(*given)
            return made.filter(*criteria) if criteria else made

        if name == "avg":
            return self._column(item, "avg", part(sa.func.sum, *arguments), part(sa.func.count, *arguments))
        if name == "string_agg":
            if not isinstance(bare(arguments[1]), elements.BindParameter):
                raise refusal("the delimiter of string_agg() is an expression", "give a text")
            return self._column(item, "string_agg", item, arguments[1])
        return self._column(item, name, item)

    def _column(self, item: Any, kind: Any, *made_of: Any) -> Any:
        if id(item) in self._known:
            return self._known[id(item)][0]
        numbers = []
        for one in made_of:
            at = next((n for n, part in enumerate(self.parts) if part is one), None)
            if at is None:
                self.parts.append(one)
                at = len(self.parts) - 1
            numbers.append(at)
        recipe = Recipe(kind, tuple(numbers))
        if recipe not in self.recipes:
            self.recipes.append(recipe)
        column: Any = sa.column(f"x{self.recipes.index(recipe)}", item.type)
        self._known[id(item)] = (column, item)  # the item lives as long as its id is known
        return column


def as_aggregate(expression: Any) -> tuple[str, Any, tuple[Any, ...]] | None:
    """Name, function and FILTER of an expression that is one of the aggregates which can be made of parts.

    Args:
        expression: any expression.
    """
    expression = bare(expression)
    criteria: tuple[Any, ...] = ()
    if isinstance(expression, elements.FunctionFilter):
        criteria = () if expression.criterion is None else (expression.criterion,)
        expression = bare(expression.func)
    if not isinstance(expression, functions.FunctionElement) or (name := name_of(expression)) not in MERGED:
        return None
    return name, expression, criteria


def has_aggregate(expression: Any) -> bool:
    """Whether an aggregate that is known here stands in an expression.

    Args:
        expression: any expression.
    """
    return next(_aggregates(expression), None) is not None


def check_inside(expression: Any, unknown: set[str], is_key: Callable[[Any], bool], *, whole: bool = False) -> None:
    """Refuse what shards cannot compute of their own rows alone.

    Args:
        expression: what each shard computes.
        unknown: gets the names of functions of whom only the database knows whether they aggregate.
        is_key: whether an expression is the shard key.
        whole: each group is on one shard, so that any aggregate is whole there.

    Raises:
        NotMergeable: it contains such a thing.
    """
    stack = [bare(expression)]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, _QUERIES):
            continue  # a query of its own: one value for each row
        if isinstance(item, elements.Over):
            if item.range_ is None and any(is_key(one) for one in _listed(item.partition_by)):
                continue  # no shard has rows of another's partitions
            raise refusal(
                "a window function needs the rows of all shards at once", "add the shard key to its PARTITION BY"
            )
        if item.__visit_name__ == "aggregateorderby" and not whole:
            raise refusal("the order inside an aggregate goes over the rows of all shards at once")
        if isinstance(item, elements.WithinGroup) and not whole:
            raise refusal("an ordered-set aggregate needs the rows of all shards at once")
        if isinstance(item, elements.ColumnClause) and item.is_literal and item.name == "*":
            continue  # count(*)
        if item.__visit_name__ in ("textclause", "tstring") or getattr(item, "is_literal", False):
            raise refusal(
                "text in its columns or its order cannot be looked through", "build it of SQLAlchemy's expressions"
            )
        if isinstance(item, functions.FunctionElement) and hasattr(item, "name") and not whole:
            name = name_of(item)
            if name in NOT_MERGED:
                raise refusal(f"{name}() needs the rows of all shards at once", "add the shard key to GROUP BY")
            if name not in MERGED:
                unknown.add(name)
        if isinstance(item, (elements.ColumnClause, elements.BindParameter)):
            continue
        stack.extend(item.get_children())


def name_of(function: Any) -> str:
    """The name of a function in lower case; empty for anything else.

    Args:
        function: any expression.
    """
    return (
        str(function.name).lower()
        if isinstance(function, functions.FunctionElement) and hasattr(function, "name")
        else ""
    )


def _listed(clauses: Any) -> Sequence[Any]:
    if clauses is None:
        return ()
    return list(clauses.clauses) if hasattr(clauses, "clauses") else [clauses]


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one.compare(other))


def _is_distinct(argument: Any) -> bool:
    plain = bare(argument)
    return isinstance(plain, elements.UnaryExpression) and plain.operator is operators.distinct_op


def _aggregates(expression: Any) -> Iterator[Any]:
    stack = [expression]
    while stack:
        item = stack.pop()
        if isinstance(item, (*_QUERIES, elements.Over)):
            continue
        if as_aggregate(item) is not None:
            yield item
        elif not isinstance(item, (elements.ColumnClause, elements.BindParameter)):
            stack.extend(item.get_children())


def _speaks_of_rows(expression: Any) -> bool:
    """Whether there is more in it than constants: a column, a query or a function."""
    kinds = (elements.ColumnClause, functions.FunctionElement, *_QUERIES)
    return any(isinstance(item, kinds) for item in visitors.iterate(expression))
