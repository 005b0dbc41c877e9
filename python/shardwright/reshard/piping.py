"""One COPY piped into another.

psycopg's Copy objects take one Python step a row; here the rows of libpq's buffers are joined into blocks before they are
sent on, which reaches nearly the rate of two psql processes in a pipe.
"""

from __future__ import annotations

import select

import psycopg
from psycopg import pq

_BLOCK_BYTES = 128 * 1024


def pipe(source: psycopg.Connection, copy_out: str, target: psycopg.Connection, copy_in: str) -> tuple[int, int]:
    """Pipe one COPY TO STDOUT into one COPY FROM STDIN.

    Args:
        source: where `copy_out` runs.
        copy_out: COPY .. TO STDOUT.
        target: where `copy_in` runs, in a transaction of the caller's.
        copy_in: COPY .. FROM STDIN of the same format.

    Returns:
        Rows and bytes that were copied.

    Raises:
        psycopg.Error: what either server said; the source's COPY is drained or its connection closed.
    """
    out, into = source.pgconn, target.pgconn
    was_nonblocking = (out.nonblocking, into.nonblocking)
    out.nonblocking, into.nonblocking = 0, 1
    size = 0
    try:
        _begin_copy(out, copy_out, pq.ExecStatus.COPY_OUT)
        _begin_copy(into, copy_in, pq.ExecStatus.COPY_IN)
        block: list[bytes] = []
        filled = 0
        get = out.get_copy_data
        while True:
            length, data = get(0)
            if length <= 0:
                break
            block.append(bytes(data))
            filled += length
            if filled >= _BLOCK_BYTES:
                _put(into, b"".join(block))
                size += filled
                block.clear()
                filled = 0
        if block:
            _put(into, b"".join(block))
            size += filled
        _end_copy(out)
        into.put_copy_end()
        _flush(into)
        return _end_copy(into), size
    except BaseException:
        # half a COPY cannot be taken up again: end both connections rather than drain them
        source.close()
        target.close()
        raise
    finally:
        if out.status == pq.ConnStatus.OK:
            out.nonblocking = was_nonblocking[0]
        if into.status == pq.ConnStatus.OK:
            into.nonblocking = was_nonblocking[1]


def _begin_copy(connection: pq.abc.PGconn, statement: str, wanted: pq.ExecStatus) -> None:
    result = connection.exec_(statement.encode())
    if result.status != wanted:
        raise psycopg.errors.error_from_result(result)


def _put(connection: pq.abc.PGconn, block: bytes) -> None:
    connection.put_copy_data(block)
    _flush(connection)


def _flush(connection: pq.abc.PGconn) -> None:
    while connection.flush() == 1:
        _wait(connection, select.POLLIN | select.POLLOUT)


def _wait(connection: pq.abc.PGconn, events: int) -> None:
    """Wait for the server without the GIL: libpq's own waiting would hold it, and with it every thread of the process."""
    ready = select.poll()
    ready.register(connection.socket, events)
    if any(event & ~select.POLLOUT for _, event in ready.poll()):
        connection.consume_input()


def _end_copy(connection: pq.abc.PGconn) -> int:
    rows = 0
    while True:
        while connection.is_busy():
            _wait(connection, select.POLLIN)
        result = connection.get_result()
        if result is None:
            return rows
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)
        rows = result.command_tuples or 0
