"""Long reads as pages: each its own short transaction, begun where the one before ended, so that no switch waits for them.

A page goes on behind the last row's keys (keyset paging), never by OFFSET. Over all shards, the keyspace is cut into
segments by who serves what at the start; a segment is a set of points, and means the same rows wherever they are by now.
So nothing is lost or given twice when ranges move between two pages.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Row
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Session
from sqlalchemy.sql import elements, operators, selectable

from shardwright import errors
from shardwright.routing.aggregates import bare
from shardwright.routing.multirange import Multirange
from shardwright.session.session import ShardSession
from shardwright.session.tokens import Position, fingerprint

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.pools import AsyncDriver

_NO_KEY: Any = object()


@dataclass(frozen=True)
class Page(Sequence[Row[Any]]):
    """Some rows, and where the next page begins."""

    rows: Sequence[Row[Any]]
    #: gives the pages behind this one, to whoever hands it to `Cluster.pages`; None for the last page
    after: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def scalars(self) -> list[Any]:
        """The first column of each row: the objects of ``select(Model)``."""
        return [row[0] for row in self.rows]


class PagedCluster:
    """The part of `Cluster` that reads in pages."""

    def pages(
        self,
        statement: Any,
        *,
        size: int = 1000,
        key: Any = _NO_KEY,
        keyspace: str | None = None,
        merged: bool = False,
        after: str | None = None,
        **session_options: Any,
    ) -> Iterator[Page]:
        """Read a SELECT in pages, each in a transaction of its own; the way to read much.

        The pages are not one snapshot: a row that is changed meanwhile is given as it was when its page was read. A row
        whose place in the order does not change is given exactly once.

        Args:
            statement: a SELECT of tables, joined by inner joins if need be; its ORDER BY names columns that are never
                NULL. What is missing there of the tables' primary keys is added to it.
            size: rows of a page at most.
            key: only rows of this shard key.
            keyspace: the key's keyspace, where there are several.
            merged: one order over all shards. Otherwise one shard's rows come after the other's, each in order, which asks
                one shard a page instead of all.
            after: go on behind a page of an earlier call with the same arguments: its `Page.after`.
            session_options: for the session of each page, as `reads`.

        Raises:
            BadOption: the statement cannot be paged, or `after` is of another one.
            NotMergeable: several shards cannot answer it.
        """
        paging = _Paging(cast("Cluster", self), statement, size, key, keyspace, merged)
        position: Position | None = paging.start(after)
        while position is not None:
            with ShardSession(cluster=paging.cluster, **paging.session_options(session_options)) as session:
                page, position = paging.read(session, position)
            if page.rows:
                yield page

    async def apages(
        self,
        statement: Any,
        *,
        size: int = 1000,
        key: Any = _NO_KEY,
        keyspace: str | None = None,
        merged: bool = False,
        after: str | None = None,
        driver: AsyncDriver = "psycopg",
        **session_options: Any,
    ) -> AsyncIterator[Page]:
        """As `pages`, for tasks.

        Args:
            statement: as for `pages`.
            size: as for `pages`.
            key: as for `pages`.
            keyspace: as for `pages`.
            merged: as for `pages`.
            after: as for `pages`.
            driver: as for `async_sessionmaker`.
            session_options: as for `pages`.
        """
        cluster = cast("Cluster", self)
        paging = _Paging(cluster, statement, size, key, keyspace, merged)
        sessions = cluster.async_sessionmaker(driver=driver)
        position: Position | None = paging.start(after)
        while position is not None:
            async with sessions(**paging.session_options(session_options)) as session:
                page, position = await session.run_sync(paging.read, position)
            if page.rows:
                yield page


class _Paging:
    """One statement, read in pages."""

    def __init__(
        self, cluster: Cluster, statement: Any, size: int, key: Any, keyspace: str | None, merged: bool
    ) -> None:
        if size < 1:
            raise errors.BadOption(f"a page of {size} rows has no meaning", fix="give a size of 1 or more")
        self.cluster = cluster
        self._size = size
        self._keys = _sort_keys(statement)
        self._width = 0
        hidden = [expression.label(f"_page_{at}") for at, (expression, _) in enumerate(self._keys)]
        order = [key.desc() if descending else key for key, descending in self._keys]
        self._statement = statement.order_by(None).order_by(*order).limit(size).add_columns(*hidden)
        self._own = {} if key is _NO_KEY else {"key": key, "keyspace": keyspace}
        self._merged = merged or bool(self._own)
        self._plan = cluster.known.planner.plan(statement, ())[0]
        self._mark = fingerprint(statement, repr(key) if self._own else "", keyspace or "", str(self._merged))

    def session_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """What each page's session is made with."""
        return {"expire_on_commit": False, **given, **self._own}

    def start(self, after: str | None) -> Position:
        """Where to begin."""
        if after is not None:
            return Position.parse(after, self._mark, len(self._keys))
        keyspace = self._plan.root_keyspace
        if self._merged or not keyspace or self._plan.unbound is None:
            return Position((), None)
        shard_map = self.cluster.map
        shards = sorted({one.shard for one in shard_map.ranges_of(keyspace)})
        return Position(tuple(shard_map.owned(keyspace, shard).literal() for shard in shards), None)

    def read(self, session: Session, position: Position) -> tuple[Page, Position | None]:
        """One page, and where the next one begins; None behind the last one."""
        statement = self._statement
        if position.values is not None:
            statement = statement.where(_behind(self._keys, position.values))
        within = {"points": Multirange.parse(position.segments[0])} if position.segments else {}
        result = session.execute(statement, bind_arguments=within)
        names = list(result.keys())[: -len(self._keys)]
        found = [tuple(row) for row in result]
        shown: Any = IteratorResult(SimpleResultMetaData(names), iter([row[: len(names)] for row in found])).all()
        following = position.following(found[-1][len(names) :] if len(found) == self._size else None)
        return Page(shown, following.token(self._mark) if following is not None else None), following


def _sort_keys(statement: Any) -> list[tuple[Any, bool]]:
    """The columns by which the rows of a statement have one order, and whether each is descending."""
    if not isinstance(statement, selectable.Select):
        raise _unfit(f"it is a {type(statement).__name__}, not a SELECT")
    cut = (statement._limit_clause, statement._offset_clause, statement._fetch_clause, statement._for_update_arg)
    if any(one is not None for one in cut):
        raise _unfit("it has a LIMIT, an OFFSET or FOR UPDATE of its own")
    if statement._distinct or statement._group_by_clauses or statement._having_criteria:
        raise _unfit("it groups its rows")
    keys: list[tuple[Any, bool]] = []
    for clause in statement._order_by_clauses:
        expression, descending = clause, False
        while isinstance(expression, (elements.UnaryExpression, elements._label_reference)):
            if isinstance(expression, elements.UnaryExpression):
                if expression.modifier not in (operators.asc_op, operators.desc_op):
                    raise _unfit("its ORDER BY says where NULLs go")
                descending = expression.modifier is operators.desc_op
            expression = expression.element
        column = bare(expression)
        if not isinstance(column, sa.Column) or column.nullable:
            raise _unfit(f"its ORDER BY names {expression}, which is no column of a table, or may be NULL")
        keys.append((column, descending))
    for table in (one for item in statement.get_final_froms() for one in _tables(item)):
        for column in table.primary_key:
            if all(column is not known for known, _ in keys):
                keys.append((column, False))
    if not keys:
        raise _unfit("its tables have no primary key")
    return keys


def _tables(item: Any) -> Iterator[Any]:
    if isinstance(item, selectable.Join):
        if item.isouter or item.full:
            raise _unfit("an outer join gives rows without a primary key")
        yield from _tables(item.left)
        yield from _tables(item.right)
        return
    plain = item._deannotate()
    if not isinstance(plain, sa.Table) and not (
        isinstance(plain, selectable.Alias) and isinstance(plain.element, sa.Table)
    ):
        raise _unfit(f"it reads from a {type(plain).__name__}")
    yield plain


def _behind(keys: Sequence[tuple[Any, bool]], values: Sequence[Any]) -> Any:
    """True for the rows that come after the one with these values."""
    pairs = [(key, sa.literal(value, key.type)) for (key, _), value in zip(keys, values, strict=True)]
    directions = {descending for _, descending in keys}
    if len(directions) == 1:
        # One comparison of rows, for which PostgreSQL uses an index of these columns.
        compare = operator.lt if directions.pop() else operator.gt
        return compare(sa.tuple_(*(key for key, _ in pairs)), sa.tuple_(*(value for _, value in pairs)))
    branches = []
    for at, (key, value) in enumerate(pairs):
        same = [one == other for one, other in pairs[:at]]
        branches.append(sa.and_(*same, key < value if keys[at][1] else key > value))
    return sa.or_(*branches)


def _unfit(why: str) -> errors.BadOption:
    return errors.BadOption(
        f"the statement cannot be read in pages: {why}",
        fix="order it by columns that are never NULL, and let the pages cut it",
    )
