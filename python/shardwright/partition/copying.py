"""COPY as blocks of bytes: out of a query in blocks of whole rows, and into a table."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import psycopg
from psycopg import pq

_PUT_BYTES = 256 * 1024


def blocks_out(connection: psycopg.Connection, statement: bytes, size: int) -> Generator[bytes, None, None]:
    """Run COPY .. TO STDOUT and give its rows in blocks.

    A generator that is not run to its end leaves the connection closed: half a COPY cannot be taken up again.

    Args:
        connection: where it runs.
        statement: the COPY, of a text format.
        size: bytes after which a block ends, at the next row's end.
    """
    pgconn = connection.pgconn
    pgconn.nonblocking = 0
    done = False
    try:
        _begin(pgconn, statement, pq.ExecStatus.COPY_OUT)
        rows: list[bytes] = []
        filled = 0
        get = pgconn.get_copy_data
        # The server sends a row a message.
        while True:
            length, data = get(0)
            if length <= 0:
                break
            rows.append(bytes(data))
            filled += length
            if filled >= size:
                yield b"".join(rows)
                rows.clear()
                filled = 0
        _end(pgconn)
        done = True
        if rows:
            yield b"".join(rows)
    finally:
        if not done:
            connection.close()


def copy_in(connection: psycopg.Connection, statement: bytes, blocks: Iterable[bytes | memoryview]) -> int:
    """Run COPY .. FROM STDIN with what blocks hold.

    Args:
        connection: where it runs, in a transaction of the caller's or not. It is closed after a failure of `blocks`.
        statement: the COPY.
        blocks: bytes; where they are cut does not matter.

    Returns:
        How many rows arrived.
    """
    pgconn = connection.pgconn
    pgconn.nonblocking = 0
    _begin(pgconn, statement, pq.ExecStatus.COPY_IN)
    try:
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), _PUT_BYTES):
                pgconn.put_copy_data(bytes(view[start : start + _PUT_BYTES]))
        pgconn.put_copy_end()
    except BaseException:
        connection.close()
        raise
    return _end(pgconn)


def _begin(pgconn: pq.abc.PGconn, statement: bytes, wanted: pq.ExecStatus) -> None:
    result = pgconn.exec_(statement)
    if result.status != wanted:
        raise psycopg.errors.error_from_result(result)


def _end(pgconn: pq.abc.PGconn) -> int:
    rows = 0
    failed: psycopg.Error | None = None
    while (result := pgconn.get_result()) is not None:
        if result.status != pq.ExecStatus.COMMAND_OK:
            failed = failed or psycopg.errors.error_from_result(result)
        rows = result.command_tuples or 0
    if failed is not None:
        raise failed
    return rows
