"""Rows of several shards as a stream: a cursor on each server, one block of rows ahead, never more than two in memory.

While the caller looks at rows, the next block of each shard is under way. A shard whose block is there is not asked for
another one before that was taken: who reads slowly holds back the shards, and the memory is bounded.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import psycopg
from sqlalchemy.engine import CursorResult
from sqlalchemy.engine.cursor import CursorFetchStrategy

from shardwright.session import opening
from shardwright.session.finishing import ranks
from shardwright.session.merge import Merger
from shardwright.session.results import as_tuples
from shardwright.session.waiting import Pending, Waiting

Row = tuple[Any, ...]


class ShardRows:
    """The rows of one shard, block by block.

    Args:
        waiting: how a block is fetched meanwhile.
        shard: the shard's name.
        result: of a cursor on the server.
        size: rows of a block.
    """

    def __init__(self, waiting: Waiting, shard: str, result: CursorResult[Any], size: int) -> None:
        self.shard = shard
        self.result = result
        self._waiting = waiting
        self._size = size
        self._cursor: Any = result.cursor
        # SQLAlchemy has fetched the first row, to know the columns.
        self._head = list(result.cursor_strategy._rowbuffer)  # type: ignore[attr-defined]
        self._strategy = result.cursor_strategy
        self._pending: Pending[list[Row]] | None = None
        self._ended = False
        #: what was fetched and not given yet
        self.rows: list[Row] = []
        #: the last row that was given
        self.last: list[Row] = []

    def ask(self) -> None:
        """Let the next block be fetched."""
        if self._pending is None and not self._ended:
            self._pending = self._waiting.start(self._fetch)

    def take(self) -> bool:
        """Wait for the next block; returns whether there is one. Raises what the shard raised."""
        self.ask()
        if self._pending is None:
            return False
        pending, self._pending = self._pending, None
        self.rows = pending.result()
        return bool(self.rows)

    def settle(self) -> None:
        """Wait until the connection is free; what is fetched is kept."""
        pending = self._pending
        if pending is not None:
            try:
                pending.result()
            except Exception:  # noqa: BLE001 - whoever takes the block is told
                return

    def close(self) -> bool:
        """End it. A fetch that is under way is cancelled where nothing was written in its transaction.

        Returns:
            Whether that ended the transaction.
        """
        self._ended = True
        pending, self._pending = self._pending, None
        connection = self.result.connection
        if pending is not None:
            driver = None if connection.closed or connection.invalidated else opening.driver_of(connection)
            if driver is not None and not driver.wrote and not driver.takes_snapshot:
                if isinstance(driver, psycopg.Connection):
                    driver.cancel_safe(timeout=10)
                else:
                    pending.cancel()
            try:
                pending.result()
            except Exception:  # noqa: BLE001 - it was cancelled, or failed: nobody wants its rows any more
                self._close_cursor()
                return True
        self._close_cursor()
        return False

    def _close_cursor(self) -> None:
        try:
            self._cursor.close()
        except opening.driver_errors(self.result.connection):
            # The connection is gone, and the cursor with it.
            return

    def _fetch(self) -> list[Row]:
        head, self._head = self._head, []
        try:
            rows = head + (as_tuples(self._cursor.fetchmany(self._size - len(head))) if self._size > len(head) else [])
        except BaseException as error:  # noqa: BLE001 - raised as SQLAlchemy would raise it
            self._strategy.handle_exception(self.result, self._cursor, error)
        self._ended = len(rows) < self._size
        return rows


class Stream(CursorFetchStrategy):
    """What the result of a streamed scatter fetches from.

    Args:
        shards: their rows.
        make_merger: called once for the order of the rows.
        offset: how many rows to leave out.
        limit: how many to give at most.
        forget: called with the name of a shard whose transaction was ended.
    """

    __slots__ = ("__weakref__", "_closed", "_forget", "_merger", "_rows", "_shards")

    def __init__(
        self,
        shards: Sequence[ShardRows],
        make_merger: Callable[[Callable[[Any], list[Any]]], Merger],
        offset: int,
        limit: int | None,
        forget: Callable[[str], None],
    ) -> None:
        self._shards = shards
        self._merger = make_merger(self._ask)
        self._forget = forget
        self._closed = False
        end = None if limit is None else offset + limit
        self._rows = islice(self._in_order(), offset, end)
        for one in shards:
            one.ask()

    def settle(self) -> None:
        """Wait until no fetch is under way: somebody needs the connections."""
        for one in self._shards:
            one.settle()

    def close(self) -> None:
        """End all cursors; what is under way is cancelled."""
        if self._closed:
            return
        self._closed = True
        self._rows = iter(())  # type: ignore[assignment]
        for one in self._shards:
            if one.close():
                self._forget(one.shard)

    # ------------------------------------------------------------------ what SQLAlchemy calls

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        """As `CursorFetchStrategy.soft_close`."""
        self.close()
        super().soft_close(result, dbapi_cursor)

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        """As `CursorFetchStrategy.hard_close`."""
        self.close()
        super().hard_close(result, dbapi_cursor)

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        """As `CursorFetchStrategy.yield_per`; the size of the blocks was chosen when the statement was executed."""

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        """As `CursorFetchStrategy.fetchone`."""
        row = next(self._rows, None)
        if row is None:
            result._soft_close(hard=hard_close)
        return row

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        """As `CursorFetchStrategy.fetchmany`."""
        rows = list(islice(self._rows, size))
        if not rows:
            result._soft_close()
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        """As `CursorFetchStrategy.fetchall`."""
        rows = list(self._rows)
        result._soft_close()
        return rows

    # ------------------------------------------------------------------ merging

    def _in_order(self) -> Iterator[Row]:
        try:
            yield from self._sorted() if self._merger.has_order else self._as_they_come()
        except BaseException:
            # One shard's error ends the others too; and so does a caller that goes away.
            self.close()
            raise

    def _as_they_come(self) -> Iterator[Row]:
        for one in self._shards:
            while one.take():
                one.ask()
                yield from one.rows

    def _sorted(self) -> Iterator[Row]:
        live = [one for one in self._shards if one.take()]
        while live:
            # The last row that was given is compared too: a shard's own order must go on over the border of two blocks.
            keyed = self._merger.keys([one.last + one.rows for one in live])
            for one in live:
                one.ask()
            runs = [
                [(key, at) for key in keys[len(one.last) :]]
                for at, (keys, one) in enumerate(zip(keyed, live, strict=True))
            ]
            given = [0] * len(live)
            for _, at in heapq.merge(*runs, key=lambda pair: pair[0]):
                row = live[at].rows[given[at]]
                given[at] += 1
                yield row
                if given[at] == len(live[at].rows):
                    break  # its next block may begin with what comes next
            for at, one in enumerate(live):
                one.last = one.rows[given[at] - 1 : given[at]] or one.last
                one.rows = one.rows[given[at] :]
            live = [one for one in live if one.rows or one.take()]

    def _ask(self, question: Any) -> list[Any]:
        """Ask a shard that is not fetching; all of them have been waited for where there are blocks to compare."""
        self.settle()
        result = self._shards[0].result.connection.execute(question)
        assert result.cursor is not None
        rows = as_tuples(result.cursor.fetchall())
        result.close()
        return rows


def start_stream(
    waiting: Waiting,
    answers: Sequence[tuple[str, CursorResult[Any]]],
    size: int,
    make_merger: Callable[..., Merger],
    offset: int,
    limit: int | None,
    forget: Callable[[str], None],
) -> tuple[CursorResult[Any], Stream]:
    """Make one result of those of the shards' cursors.

    Args:
        waiting: how blocks are fetched meanwhile.
        answers: name and result of each shard.
        size: rows of a block.
        make_merger: takes the columns' types, and what gives the database's order.
        offset: how many rows to leave out.
        limit: how many to give at most.
        forget: called with the name of a shard whose transaction was ended.
    """
    first = answers[0][1]
    assert first.cursor is not None
    types = [column[1] for column in first.cursor.description]
    shards = [ShardRows(waiting, shard, result, size) for shard, result in answers]
    stream = Stream(shards, lambda ask: make_merger(types, partial(ranks, ask=ask)), offset, limit, forget)
    first.cursor_strategy = stream
    return first, stream
