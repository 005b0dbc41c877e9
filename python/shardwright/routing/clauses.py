"""Looking into SQLAlchemy's statements and expressions: what they are made of, without knowing any shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import elements, functions, operators, selectable, visitors
from sqlalchemy.sql.dml import UpdateBase

#: What statements are compiled for, where only that tells what is in them.
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def core_of(statement: Any) -> Any:
    """The statement as SQLAlchemy Core has it: the ORM's joins and criteria are worked out.

    Args:
        statement: any statement.
    """
    if isinstance(statement, (selectable.Select, selectable.CompoundSelect)) and not _is_orm_statement(statement):
        return statement
    if not hasattr(statement, "compile") or not isinstance(statement, (selectable.SelectBase, elements.ClauseElement)):
        return statement
    if isinstance(statement, elements.TextClause):
        return statement
    compiled = statement.compile(dialect=DIALECT)
    state = getattr(compiled, "compile_state", None)
    found = getattr(state, "statement", None)
    return found if found is not None else statement


def _is_orm_statement(statement: Any) -> bool:
    return bool(statement._propagate_attrs.get("compile_state_plugin") == "orm")


def is_portable(expression: Any) -> bool:
    """Whether an expression means the same in another statement of the same shape: no alias and no value is in it.

    Args:
        expression: a column expression.
    """
    for item in visitors.iterate(expression):
        if isinstance(item, elements.BindParameter):
            return False
        if isinstance(item, elements.ColumnClause) and item.table is not None and not isinstance(item.table, Table):
            return False
    return True


def keeps_rows(query: Any) -> bool:
    """Whether a query only picks rows and columns, so that each shard's part of it is the whole's part there.

    Args:
        query: what stands in FROM.
    """
    if not isinstance(query, selectable.Select) or query._distinct or query._group_by_clauses or query._having_criteria:
        return False
    if query._limit_clause is not None or query._offset_clause is not None or query._fetch_clause is not None:
        return False
    inside = (item for column in query._raw_columns for item in visitors.iterate(column))
    return not any(isinstance(item, (elements.Over, functions.FunctionElement)) for item in inside)


def conjunction(clause: Any) -> Iterator[Any]:
    """The conditions that all hold where a condition does.

    Args:
        clause: the condition.
    """
    clause = stripped(clause)
    if isinstance(clause, elements.BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from conjunction(part)
    else:
        yield clause


def stripped(clause: Any) -> Any:
    """An expression without its parentheses and what only tells Python its type.

    Args:
        clause: the expression.
    """
    while isinstance(clause, (elements.Grouping, elements.TypeCoerce)):
        clause = clause.element if isinstance(clause, elements.Grouping) else clause.clause
    return clause


def query_of(item: Any) -> Any:
    """The query inside an expression that is one (EXISTS, scalar subquery, the right side of IN), or None."""
    while True:
        if isinstance(item, (selectable.ScalarSelect, selectable.SelectStatementGrouping, selectable.Exists)) or (
            isinstance(item, elements.Grouping) and isinstance(item.element, selectable.SelectBase)
        ):
            item = item.element
        else:
            break
    return item if isinstance(item, (selectable.SelectBase, UpdateBase)) else None


def plain(table: Any) -> Any:
    """A table without what the ORM wrote on it; the same for each statement.

    Args:
        table: the table, or None.
    """
    return table._deannotate() if table is not None and hasattr(table, "_deannotate") else table


def is_clause(value: Any) -> bool:
    """Whether a value is an SQL expression, and no value of the application.

    Args:
        value: what was given for a column.
    """
    return isinstance(value, elements.ClauseElement) and not isinstance(value, elements.BindParameter)
