"""Groups of several shards become those of the whole: one database puts them together.

What PostgreSQL can do it does: the parts travel as texts, are given their types and collations back, and aggregated
again; HAVING, DISTINCT, ORDER BY, LIMIT and what stands around the aggregates are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from shardwright.routing.aggregates import Recipe, refusal
from shardwright.routing.merging import Finish

Row = Sequence[Any]

_ITSELF = frozenset({"min", "max", "bool_and", "bool_or", "every", "bit_and", "bit_or", "bit_xor"})
#: What an average divides by, for each type of a sum.
_DIVISORS = {"bigint": "numeric", "numeric": "numeric", "double precision": "float8", "interval": "float8"}
_NO_TYPE = ("text", None)


def finished(
    finish: Finish, rows: Sequence[Row], offset: int, limit: int | None, ask: Callable[[Any], list[Row]]
) -> list[tuple[Any, ...]]:
    """Let a database put groups together.

    Args:
        finish: how.
        rows: of all shards.
        offset: how many rows of the result to leave out.
        limit: how many to give at most; None: all.
        ask: executes a statement on one of the shards, and gives its rows as the driver has them.

    Raises:
        NotMergeable: a type cannot be made anew, or its sums say too little for an average.
    """
    if not rows:
        return []
    shapes = [[row[at] for row in rows] for at in finish.parts]
    statement = sa.select(*finish.columns).select_from(_groups(finish, shapes))
    for criterion in finish.having:
        statement = statement.where(criterion)
    if finish.distinct:
        statement = statement.distinct()
    statement = statement.order_by(*finish.order).offset(offset or None).limit(limit)
    return [tuple(row) for row in ask(statement)]


def ranks(values: Sequence[str], kind: str, collation: str | None, ask: Callable[[Any], list[Row]]) -> list[int]:
    """The place of each value in a database's own order; equals have one.

    Args:
        values: as texts.
        kind: their type.
        collation: the name of their collation.
        ask: executes a statement on one of the shards.
    """
    value = _typed("v", kind, collation)
    statement = sa.text(
        f"SELECT pg_catalog.dense_rank() OVER (ORDER BY v) FROM (SELECT {_escaped(value)} AS v, n "
        "FROM pg_catalog.unnest(:_shardwright_v) WITH ORDINALITY AS t(v, n)) AS g ORDER BY n"
    ).bindparams(sa.bindparam("_shardwright_v", list(values), sa.ARRAY(sa.Text)))
    return [row[0] for row in ask(statement)]


def _groups(finish: Finish, shapes: Sequence[Sequence[Any]]) -> Any:
    """The groups of all shards, put together: columns x0, x1, ... as the recipes say."""
    kinds = [_kind(shape) for shape in shapes]
    numbers = range(len(shapes))
    typed = ", ".join(f"{_typed(f'r{n}', *kinds[n])} AS c{n}, r{n}" for n in numbers)
    texts = ", ".join(f"pg_catalog.unnest(:_shardwright_p{n})" for n in numbers)
    made = ", ".join(f"{_made(one, kinds)} AS x{at}" for at, one in enumerate(finish.recipes))
    keys = ", ".join(f"c{one.parts[0]}" for one in finish.recipes if one.kind == "group")
    text = (
        f"SELECT {_escaped(made)} FROM (SELECT {_escaped(typed)} FROM ROWS FROM ({texts}) "
        f"AS t({', '.join(f'r{n}' for n in numbers)})) AS parts" + (f" GROUP BY {keys}" if keys else "")
    )
    given = [sa.bindparam(f"_shardwright_p{n}", [one[0] for one in shapes[n]], sa.ARRAY(sa.Text)) for n in numbers]
    columns: list[Any] = [sa.column(f"x{at}") for at in range(len(finish.recipes))]
    return sa.text(text).bindparams(*given).columns(*columns).subquery("whole")


def _made(recipe: Recipe, kinds: Sequence[tuple[str, str | None]]) -> str:
    """SQL that makes one value of a group's parts."""
    part, kind = recipe.parts[0], kinds[recipe.parts[0]][0]
    if recipe.kind == "group":
        return f"c{part}"
    if recipe.kind == "any":
        return f"(pg_catalog.array_agg(c{part}))[1]"
    if recipe.kind in _ITSELF:
        return f"pg_catalog.{recipe.kind}(c{part})"
    if recipe.kind in ("count", "sum"):
        return f"CAST(pg_catalog.sum(c{part}) AS {kind})"
    if recipe.kind == "avg":
        if kind not in _DIVISORS:
            raise refusal(f"an average cannot be made of sums of type {kind}", "cast to double precision")
        return f"pg_catalog.sum(c{part}) / NULLIF(CAST(pg_catalog.sum(c{recipe.parts[1]}) AS {_DIVISORS[kind]}), 0)"
    if recipe.kind == "string_agg":
        return f"pg_catalog.string_agg(c{part}, c{recipe.parts[1]})"
    # The text of an array without its braces, one after the other.
    if not kind.endswith("[]") or kind == "box[]":
        raise refusal(f"values of type {kind} cannot be put into one array")
    inside = f"pg_catalog.substr(r{part}, 2, pg_catalog.length(r{part}) - 2)"
    return f"CAST('{{' || pg_catalog.string_agg({inside}, ',') || '}}' AS {kind})"


def _kind(shapes: Sequence[Any]) -> tuple[str, str | None]:
    """Type and collation of the values of one part: those of all shards."""
    found = {(shape[1], shape[2] if len(shape) > 2 else None) for shape in shapes}
    if len(found) > 1:
        raise refusal(f"it has other types on other shards: {sorted(map(str, found))}")
    kind, collation = found.pop()
    if kind == "record":
        raise refusal("a row of no named type cannot be made anew", "select its columns one by one")
    return _NO_TYPE if kind == "unknown" else (kind, collation)


def _typed(text: str, kind: str, collation: str | None) -> str:
    # Both names come from the database, which has quoted them.
    return f"CAST({text} AS {kind})" + (f" COLLATE {collation}" if collation not in (None, '"default"') else "")


def _escaped(sql: str) -> str:
    return sql.replace(":", "\\:")
