"""One read on several shards. To SQLAlchemy it looks like a connection: it executes a SELECT and gives a result.

No switch runs between two shards' answers: each shard is entered as a whole before any is queried, and what they serve
must tile the keyspace. While rows of others are on a shard, it is read through the points that it owns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy

from shardwright import errors
from shardwright.routing.merging import Finish, Merging, refusal
from shardwright.routing.multirange import Multirange
from shardwright.routing.statement import Plan
from shardwright.session.commenting import ROUTE
from shardwright.session.compiling import one_at_a_time
from shardwright.session.finishing import finished, ranks
from shardwright.session.merge import Merger, Ranks
from shardwright.session.narrowing import OwnedRow
from shardwright.session.results import as_tuples
from shardwright.session.streaming import Stream, start_stream
from shardwright.session.waiting import Waiting, together

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

#: Rows that are fetched at once where the caller says nothing.
_BLOCK = 1000
_DEFAULT_COLLATION = """
SELECT pg_catalog.current_setting('server_encoding') = 'UTF8'
   AND (d.datlocprovider::text = 'b' OR (d.datlocprovider::text = 'c' AND d.datcollate IN ('C', 'POSIX', 'C.utf8', 'C.UTF-8')))
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_AGGREGATES = sa.text(
    "SELECT DISTINCT proname FROM pg_catalog.pg_proc WHERE prokind IN ('a', 'w') AND proname = ANY(:names)"
).bindparams(sa.bindparam("names", type_=postgresql.ARRAY(sa.Text)))


_Answer = tuple[CursorResult[Any], list[Any]]


class Scatter:
    """Shards that are open for one statement.

    Args:
        cluster: knows the keyspaces, and what was asked of the databases before.
        waiting: how they are asked at the same time.
        plan: of the statement.
        merging: how the answers are put together.
        connections: a connection a shard, its transaction begun.
        narrow: the points that each shard is read through; a shard that is read whole is not in it.
        on_stream: told of a stream, which fetches on these connections until it is closed.
        ended: called with the name of a shard whose transaction a stream has ended.
    """

    def __init__(
        self,
        cluster: Cluster,
        waiting: Waiting,
        plan: Plan,
        merging: Merging,
        connections: Mapping[str, Connection],
        narrow: Mapping[str, Multirange],
        on_stream: Callable[[Stream], None],
        ended: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._waiting = waiting
        self._plan = plan
        self._merging = merging
        self._connections = dict(connections)
        self._narrow = narrow
        #: a shard that is lost on the way is left out of the answer
        self.may_miss = False
        #: shards that are left out of it
        self.missing: set[str] = set()
        self._on_stream = on_stream
        self._ended = ended

    def execute(self, statement: Any, params: Any = None, *, execution_options: Any = None) -> CursorResult[Any]:
        """Ask each shard and merge the answers; as `Connection.execute`.

        Args:
            statement: the caller's statement with the columns that the merge needs behind its own.
            params: as for `Connection.execute`.
            execution_options: as for `Connection.execute`.
        """
        params = params or {}
        statement = getattr(statement, "_resolved", statement)
        options = {**statement._execution_options, **(execution_options or {}), ROUTE: "scatter"}
        limit = _value(statement._limit_clause, params)
        if statement._fetch_clause is not None:
            limit = _value(statement._fetch_clause, params)
        offset = _value(statement._offset_clause, params) or 0
        asked = _asked(statement, self._merging.finish, offset, limit)
        self._check_functions()
        if self._merging.finish is None and (options.get("stream_results") or options.get("yield_per")):
            return self._stream(asked, params, options, offset, limit)
        options["stream_results"] = False

        statements = self._for_each_shard(asked)

        def asking(shard: str, connection: Connection) -> Callable[[], _Answer | errors.ShardUnavailable]:
            def ask() -> _Answer | errors.ShardUnavailable:
                try:
                    result = connection.execute(statements[shard], params, execution_options=options)
                except errors.ShardUnavailable as error:
                    if not self.may_miss:
                        raise
                    return error
                assert result.cursor is not None
                return result, as_tuples(result.cursor.fetchall())

            return ask

        answers = self._present(together(self._waiting, [asking(*item) for item in self._connections.items()]))
        first = answers[0][0]
        parts = [rows for _, rows in answers]

        def ask_one(question: Any) -> list[Any]:
            result = next(iter(self._connections.values())).execute(question, params)
            assert result.cursor is not None
            rows = as_tuples(result.cursor.fetchall())
            result.close()
            return rows

        rows = self._put_together(first, parts, offset, limit, ask_one)
        for result, _ in answers[1:]:
            result.close()
        # The first shard's result knows columns and types; it is given everybody's rows.
        first.cursor_strategy = FullyBufferedCursorFetchStrategy(first.cursor, initial_buffer=rows)
        return first

    def _present(self, found: Sequence[_Answer | errors.ShardUnavailable]) -> list[_Answer]:
        """The answers that there are; shards that were lost on the way are noted as missing."""
        there: list[_Answer] = []
        lost: errors.ShardUnavailable | None = None
        for shard, one in zip(list(self._connections), found, strict=True):
            if isinstance(one, errors.ShardUnavailable):
                lost = one
                self.missing.add(shard)
                self._connections.pop(shard)
                self._ended(shard)
            else:
                there.append(one)
        if not there and lost is not None:
            raise lost
        return there

    def _merger(self, types: Sequence[Any], asking: Ranks) -> Merger:
        return Merger(self._merging.order, types, self._default_by_code_point(), asking)

    def _stream(
        self, asked: Any, params: Any, options: dict[str, Any], offset: int, limit: int | None
    ) -> CursorResult[Any]:
        """A cursor on each shard, whose rows are fetched while others are looked at."""
        size = int(options.get("yield_per") or options.get("max_row_buffer") or _BLOCK)
        options = {**options, "stream_results": True, "max_row_buffer": size}
        self._default_by_code_point()

        statements = self._for_each_shard(asked)

        def opening(shard: str, connection: Connection) -> Callable[[], CursorResult[Any]]:
            return lambda: connection.execute(statements[shard], params, execution_options=options)

        opened = together(self._waiting, [opening(*item) for item in self._connections.items()])
        answers = list(zip(self._connections, opened, strict=True))
        result, stream = start_stream(self._waiting, answers, size, self._merger, offset, limit, self._ended)
        self._on_stream(stream)
        return result

    def _put_together(
        self,
        first: CursorResult[Any],
        parts: Sequence[Sequence[Any]],
        offset: int,
        limit: int | None,
        ask: Callable[[Any], list[Any]],
    ) -> list[Any]:
        merging = self._merging
        if merging.finish is not None:
            nothing = (None,) * len(merging.hidden)
            groups = finished(merging.finish, [row for part in parts for row in part], offset, limit, ask)
            return [(*row, *nothing) for row in groups]
        assert first.cursor is not None
        merger = self._merger([column[1] for column in first.cursor.description], partial(ranks, ask=ask))
        end = None if limit is None else offset + limit
        return list(islice(merger.in_order(parts), offset, end))

    def scalar(self, statement: Any, params: Any = None, *, execution_options: Any = None) -> Any:
        """As `Connection.scalar`."""
        return self.execute(statement, params, execution_options=execution_options).scalar()

    def _for_each_shard(self, statement: Any) -> dict[str, Any]:
        """What each shard is asked; made here, before threads share it."""
        # A copy, since the caller may execute its own again.
        shared = one_at_a_time(statement._generate())
        return {
            shard: one_at_a_time(self._narrowed(statement, shard)) if shard in self._narrow else shared
            for shard in self._connections
        }

    def _narrowed(self, statement: Any, shard: str) -> Any:
        assert self._plan.root is not None
        keyspace = self._cluster.map.keyspace(self._plan.root_keyspace)
        return statement.where(OwnedRow(keyspace, self._narrow[shard], self._plan.root))

    def _check_functions(self) -> None:
        """Refuse aggregates that only the database knows to be such; asked once for each name."""
        known = self._cluster.known.functions
        unknown = [name for name in self._merging.functions if name not in known]
        if unknown:
            found = {row[0] for row in self._ask_first(_AGGREGATES, {"names": unknown})}
            known.update({name: name in found for name in unknown})
        for name in self._merging.functions:
            if known[name]:
                raise refusal(f"{name}() needs the rows of all shards at once")

    def _default_by_code_point(self) -> bool:
        known = self._cluster.known.collation
        if known is None:
            known = self._cluster.known.collation = all(
                bool(connection.exec_driver_sql(_DEFAULT_COLLATION).scalar())
                for connection in self._connections.values()
            )
        return known

    def _ask_first(self, text: Any, params: dict[str, Any]) -> Sequence[Any]:
        connection = next(iter(self._connections.values()))
        return connection.execute(text, params).fetchall()


def _asked(statement: Any, finish: Finish | None, offset: int, limit: int | None) -> Any:
    """What each shard is asked: enough of its rows, or its groups before anything is left out of them."""
    if finish is None:
        return statement if limit is None and not offset else _cut(statement, None if limit is None else offset + limit)
    statement = _cut(statement, None).order_by(None)
    statement._having_criteria = ()
    if statement._group_by_clauses or any(one.kind not in ("group", "any") for one in finish.recipes):
        statement._distinct = False
    return statement


def _cut(statement: Any, limit: int | None) -> Any:
    return statement.limit(limit).offset(None)


def _value(clause: Any, params: Any) -> int | None:
    """The number of a LIMIT or OFFSET."""
    if clause is None:
        return None
    if not isinstance(clause, sa.BindParameter):
        raise refusal("LIMIT or OFFSET is an expression", "give a number")
    value = params[clause.key] if isinstance(params, Mapping) and clause.key in params else clause.effective_value
    return None if value is None else int(value)
