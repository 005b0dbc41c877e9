"""Which tables a statement touches, and what each one's shard key is tied to: a value, or another table's key.

A row of a sharded table can matter to a statement only if its key equals what the statement says of it. Those facts are
collected over the whole statement, subqueries included, as *sources* (``key = :x``, ``key IN (:xs)``) and *ties*
(``a.key = b.key``). A tie has a direction: with ``a LEFT JOIN b ON a.key = b.key`` only rows of b with a's key matter,
but all rows of a. Whatever is not understood adds no fact, which makes a statement need more shards, never fewer.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table
from sqlalchemy.sql import elements, functions, operators, selectable
from sqlalchemy.sql.dml import UpdateBase

from shardwright.routing.clauses import conjunction, keeps_rows, query_of, stripped
from shardwright.routing.sources import Bound, Either, Source, breadth
from shardwright.routing.tables import Declaration

#: What the catalog or a table itself says about where its rows live; None for a table that is not ours.
Lookup = Callable[[selectable.TableClause], "Declaration | None"]
From = selectable.FromClause

_WRAPPERS = (selectable.FromGrouping, selectable.Alias, selectable.TableSample, selectable.Subquery)
_HIDDEN_QUERY = re.compile(r"\b(?:select|from|table|with|insert|update|delete|merge|copy)\b", re.IGNORECASE)


@dataclass
class Ties:
    """What is known of one statement; see the module."""

    lookup: Lookup
    #: sharded tables and their aliases
    sharded: dict[From, Declaration] = field(default_factory=dict)
    #: reference and global tables, and their aliases
    others: dict[From, Declaration] = field(default_factory=dict)
    #: tables that nothing is known of
    unknown: list[str] = field(default_factory=list)
    #: sharded tables all of whose rows may appear in the result
    roots: list[From] = field(default_factory=list)
    #: the key columns of roots that stand inside a subquery in FROM
    exposed: dict[From, Any] = field(default_factory=dict)
    sources: dict[From, list[Source]] = field(default_factory=dict)
    edges: dict[From, set[From]] = field(default_factory=dict)
    #: why the statement cannot be looked through
    opaque: str | None = None
    #: why it cannot be answered by several shards
    local: str | None = None
    #: it has a side effect although it is a SELECT
    writes: bool = False
    _done: set[int] = field(default_factory=set)
    _opened: set[int] = field(default_factory=set)

    # ------------------------------------------------------------------ statements

    def select(self, statement: Any, outer: Sequence[From] = (), *, top: bool = False) -> list[From]:
        """Look through a SELECT; returns the tables that it adds to those around it."""
        if isinstance(statement, selectable.SelectStatementGrouping):
            return self.select(statement.element, outer, top=top)
        if isinstance(statement, selectable.CompoundSelect):
            self.local = self.local or "UNION and its like"
            return [one for part in statement.selects for one in self.select(part, outer)]
        if not isinstance(statement, selectable.Select):
            self.opaque = self.opaque or f"it contains a {type(statement).__name__}"
            return []
        for independent in statement._independent_ctes:
            self.nested(independent.element, (), "a CTE")
        if statement._for_update_arg is not None:
            self.writes = True
        own: list[From] = []
        for item in self._own_froms(statement, outer):
            own += self.from_clause(item, [*outer, *own], nullable=False, top=top)
        visible = [*outer, *own]
        for clause in statement._where_criteria:
            self.terms(clause, own, visible)
        expressions: tuple[Any, ...] = (
            *statement._raw_columns,
            *statement._having_criteria,
            *statement._group_by_clauses,
            *statement._order_by_clauses,
        )
        for clause in expressions:
            self.expressions(clause, visible)
        return own

    def change(self, statement: UpdateBase, where: Iterable[Any], expressions: Iterable[Any]) -> list[From]:
        """Look through an UPDATE or DELETE: its table, and those that its WHERE names."""
        froms: list[Any] = [statement.table]
        terms = list(where)
        for clause in (*terms, *expressions):
            for item in getattr(clause, "_from_objects", ()):
                if item not in froms:
                    froms.append(item)
        own: list[From] = []
        for item in froms:
            own += self.from_clause(item, own, nullable=False, top=True)
        for clause in terms:
            self.terms(clause, own, own)
        for clause in expressions:
            self.expressions(clause, own)
        return own

    def nested(self, statement: Any, outer: Sequence[From], where: str) -> list[From]:
        """Look through a query inside another one."""
        if isinstance(statement, UpdateBase):
            self.writes = True
            self.opaque = self.opaque or f"{where} changes rows"
            return []
        return self.select(statement, outer)

    # ------------------------------------------------------------------ FROM

    def from_clause(self, item: Any, outer: Sequence[From], *, nullable: bool, top: bool) -> list[From]:
        """Look through one item of FROM; returns the sharded tables and subqueries in it."""
        if isinstance(item, selectable.FromGrouping):
            return self.from_clause(item.element, outer, nullable=nullable, top=top)
        if isinstance(item, selectable.Join):
            return self._join(item, outer, nullable=nullable, top=top)
        if isinstance(item, selectable.TableClause):
            return self._table(item, item, nullable=nullable, top=top)
        if isinstance(item, (selectable.Values, selectable.TableValuedAlias, functions.FunctionElement)):
            self.expressions(item, outer)
            return []
        if isinstance(item, selectable.AliasedReturnsRows):
            inner = item.element
            subquery = isinstance(item, selectable.Subquery)
            while isinstance(inner, _WRAPPERS):
                subquery = subquery or isinstance(inner, selectable.Subquery)
                inner = inner.element
            if isinstance(inner, selectable.TableClause):
                return self._table(item, inner, nullable=nullable, top=top)
            if isinstance(inner, selectable.Join):
                self.opaque = self.opaque or "it contains an alias of a join"
                return []
            if isinstance(item, selectable.CTE) and item.recursive:
                self.opaque = self.opaque or "it contains a recursive CTE"
                return []
            if id(inner) in self._done:
                if id(inner) in self._opened:
                    self.opaque = self.opaque or "a subquery stands twice in its FROM; write it twice"
                return [item]
            self._done.add(id(inner))
            # Its rows are those of the tables in it: what is said of them outside is said of those.
            opens = subquery and keeps_rows(inner)
            before, roots = len(self.sharded), len(self.roots)
            if opens:
                within = self.select(inner, top=top and not nullable)
                self._opened.add(id(inner))
                self._expose(item, roots)
                return [item, *within]
            self.nested(inner, outer if isinstance(item, selectable.Lateral) else (), "a subquery")
            if len(self.sharded) > before and not keeps_rows(inner):
                self.local = self.local or "a subquery in FROM that limits, groups or counts rows"
            return [item]
        self.opaque = self.opaque or f"its FROM contains a {type(item).__name__}"
        return []

    def _expose(self, item: Any, since: int) -> None:
        """Name the columns of a subquery that are the keys of its roots; what shows no key is no root outside."""
        found, self.roots = self.roots[since:], self.roots[:since]
        for column in item.c:
            table = self.key_of(column)
            if table is not None and table in found and table not in self.roots:
                self.roots.append(table)
                self.exposed[table] = column

    def _table(self, item: From, table: selectable.TableClause, *, nullable: bool, top: bool) -> list[From]:
        declared = self.lookup(table)
        if declared is None:
            # A lightweight table() may be a view of the system; a Table that is not declared is a mistake.
            if isinstance(table, Table) and table.schema not in ("pg_catalog", "information_schema"):
                self.unknown.append(table.fullname)
            return [item]
        if item in self.sharded or item in self.others:
            if declared.kind == "sharded":
                self.opaque = self.opaque or f"{table.name} appears twice in it; give one an alias"
            return [item]
        if declared.kind != "sharded":
            self.others[item] = declared
            return [item]
        self.sharded[item] = declared
        if top and not nullable:
            self.roots.append(item)
        return [item]

    def _join(self, join: selectable.Join, outer: Sequence[From], *, nullable: bool, top: bool) -> list[From]:
        outer_join = join.isouter or join.full
        before = len(self.sharded)
        left = self.from_clause(join.left, outer, nullable=nullable or join.full, top=top)
        between = len(self.sharded)
        right = self.from_clause(join.right, [*outer, *left], nullable=nullable or outer_join, top=top)
        if join.full and len(self.sharded) > before:
            self.local = self.local or "FULL JOIN"
        elif outer_join and before == between and len(self.sharded) > between:
            # The left side is whole on every shard: each would add its own rows without a partner.
            self.local = self.local or "an outer join that keeps the rows of a table which is on every shard"
        visible = [*outer, *left, *right]
        if join.onclause is not None:
            may_bind = [] if join.full else right if outer_join else [*left, *right]
            self.terms(join.onclause, may_bind, visible)
        return [*left, *right]

    @staticmethod
    def _own_froms(statement: selectable.Select[Any], outer: Sequence[From]) -> list[Any]:
        """The FROM list without what is correlated to the queries around it."""
        froms = list(statement.get_final_froms())
        if not outer:
            return froms
        if statement._correlate_except is not None:
            kept = [item for item in froms if item not in outer or item in statement._correlate_except]
        elif statement._correlate:
            kept = [item for item in froms if not (item in outer and item in statement._correlate)]
        elif statement._auto_correlate:
            kept = [item for item in froms if item not in outer]
        else:
            kept = froms
        return kept or froms

    # ------------------------------------------------------------------ conditions

    def terms(self, clause: Any, own: Sequence[From], visible: Sequence[From]) -> None:
        """Learn from a condition that every row of the result meets; it can bind the tables in `own`."""
        for term in conjunction(clause):
            self._term(term, own)
            self.expressions(term, visible)
            self._member_of_query(term, own)

    def _term(self, term: Any, own: Sequence[From]) -> None:
        if isinstance(term, elements.BinaryExpression) and term.operator is operator.eq:
            left, right = self.key_of(term.left), self.key_of(term.right)
            if left is not None and right is not None:
                if self.keyspace_of(left) == self.keyspace_of(right):
                    if left in own:
                        self.edges.setdefault(left, set()).add(right)
                    if right in own:
                        self.edges.setdefault(right, set()).add(left)
                return
        for table, source in self._literal(term):
            if table in own:
                self.sources.setdefault(table, []).append(source)

    def _literal(self, term: Any) -> Iterator[tuple[From, Source]]:
        """The keys that one condition names."""
        term = stripped(term)
        if isinstance(term, elements.BooleanClauseList) and term.operator is operators.or_:
            branches = [_by_table(self._literal_of_all(branch)) for branch in term.clauses]
            for table in set.intersection(*(set(branch) for branch in branches)) if branches else ():
                yield table, Either(tuple(branch[table] for branch in branches))
        elif isinstance(term, elements.BooleanClauseList):
            yield from self._literal_of_all(term)
        elif isinstance(term, elements.BinaryExpression):
            yield from self._comparison(term)

    def _literal_of_all(self, clause: Any) -> Iterator[tuple[From, Source]]:
        for term in conjunction(clause):
            yield from self._literal(term)

    def _comparison(self, term: elements.BinaryExpression[Any]) -> Iterator[tuple[From, Source]]:
        left, right = stripped(term.left), stripped(term.right)
        if term.operator is operator.eq:
            for column, value in ((left, right), (right, left)):
                table = self.key_of(column)
                if table is not None and isinstance(value, elements.BindParameter):
                    yield table, Bound(value)
                elif table is not None and isinstance(value, elements.CollectionAggregate):
                    listed = stripped(value.element)
                    if value.operator is operators.any_op and isinstance(listed, elements.BindParameter):
                        yield table, Bound(listed, many=True)
            if isinstance(left, elements.Tuple) and isinstance(right, elements.Tuple):
                for one, other in zip(left.clauses, right.clauses, strict=False):
                    table = self.key_of(one)
                    if table is not None and isinstance(stripped(other), elements.BindParameter):
                        yield table, Bound(stripped(other))
        elif term.operator is operators.in_op and isinstance(right, elements.BindParameter):
            if isinstance(left, elements.Tuple):
                for position, one in enumerate(left.clauses):
                    if (table := self.key_of(one)) is not None:
                        yield table, Bound(right, many=True, part=position)
            elif (table := self.key_of(left)) is not None:
                yield table, Bound(right, many=True)
        elif term.operator is operators.in_op and hasattr(right, "clauses"):
            table = self.key_of(left)
            items = [stripped(item) for item in right.clauses]
            if table is not None and all(isinstance(item, elements.BindParameter) for item in items):
                yield table, Either(tuple(Bound(item) for item in items))

    def _member_of_query(self, term: Any, own: Sequence[From]) -> None:
        """``key IN (SELECT key ...)`` ties both ways; the query has been looked through already."""
        term = stripped(term)
        if not (isinstance(term, elements.BinaryExpression) and term.operator is operators.in_op):
            return
        table, query = self.key_of(term.left), query_of(term.right)
        if table is None or not isinstance(query, selectable.Select) or len(query._raw_columns) != 1:
            return
        inner = self.key_of(query._raw_columns[0])
        if inner is None or self.keyspace_of(inner) != self.keyspace_of(table):
            return
        if table in own:
            self.edges.setdefault(table, set()).add(inner)
        if query._limit_clause is None and query._offset_clause is None and not query._group_by_clauses:
            self.edges.setdefault(inner, set()).add(table)

    # ------------------------------------------------------------------ expressions

    def expressions(self, clause: Any, visible: Sequence[From]) -> None:
        """Look through the queries inside an expression."""
        stack = [clause]
        while stack:
            item = stack.pop()
            query = query_of(item)
            if query is not None:
                self.nested(query, visible, "a subquery")
                continue
            if isinstance(item, elements.TextClause) and not _HIDDEN_QUERY.search(item.text):
                continue
            if item.__visit_name__ in ("textclause", "tstring"):
                self.opaque = self.opaque or "a text() in it may contain a query"
                continue
            if isinstance(item, elements.ColumnClause) and item.is_literal and _HIDDEN_QUERY.search(item.name):
                self.opaque = self.opaque or "a literal_column() in it may contain a query"
            if isinstance(item, (elements.ColumnClause, elements.BindParameter)):
                continue
            if isinstance(item, From) and not isinstance(item, (elements.ColumnElement, selectable.Values)):
                continue
            stack.extend(item.get_children())

    def key_of(self, column: Any) -> From | None:
        """The sharded table whose key a column is, through subqueries and labels; None for anything else."""
        column = stripped(column)
        for _ in range(20):
            if isinstance(column, elements.Label):
                column = stripped(column.element)
            table = getattr(column, "table", None)
            if table is None:
                return None
            declared = self.sharded.get(table)
            if declared is not None:
                return table if column.name == declared.key_column else None
            below = getattr(column, "_proxies", None)
            if not below or len(below) != 1:
                return None
            column = stripped(below[0])
        return None

    def keyspace_of(self, table: From) -> str | None:
        """The keyspace of a sharded table."""
        return self.sharded[table].keyspace

    # ------------------------------------------------------------------ conclusions

    def source_of(self, table: From) -> Source | None:
        """Where the key of a table's rows comes from, by its own conditions or through ties."""
        seen, todo = {table}, [table]
        while todo:
            here = todo.pop(0)
            if found := self.sources.get(here):
                return min(found, key=breadth)
            for there in self.edges.get(here, ()):
                if there not in seen:
                    seen.add(there)
                    todo.append(there)
        return None

    def hangs_on(self, root: From) -> bool:
        """Whether each sharded table's rows matter only with the key of a row of `root`."""
        for table in self.sharded:
            seen, todo = {table}, [table]
            while todo and root not in seen:
                for there in self.edges.get(todo.pop(), ()):
                    if there not in seen:
                        seen.add(there)
                        todo.append(there)
            if root not in seen:
                return False
        return True

    def equal_to(self, root: From | None) -> list[From]:
        """The roots whose key each row of the result has in common with `root`, itself first."""
        if root is None:
            return []
        edges = self.edges
        return [root, *(one for one in self.roots if root in edges.get(one, ()) and one in edges.get(root, ()))]


def _by_table(found: Iterable[tuple[From, Source]]) -> dict[From, Source]:
    kept: dict[From, Source] = {}
    for table, source in found:
        if table not in kept or breadth(source) < breadth(kept[table]):
            kept[table] = source
    return kept
