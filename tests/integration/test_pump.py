"""The pipe of a copy: rows pass exactly, and a server that waits stops no other thread of the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from shardwright.reshard.pump import pipe

ROWS = "COPY (SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n) TO STDOUT (FORMAT binary)"


@pytest.fixture
def ends(make_database: Callable[..., str]) -> tuple[str, str]:
    source, target = make_database(), make_database()
    with psycopg.connect(target) as connection:
        connection.execute("CREATE TABLE t (n int, note text)")
    return source, target


def test_rows_and_bytes_are_counted(ends: tuple[str, str]) -> None:
    with psycopg.connect(ends[0]) as source, psycopg.connect(ends[1]) as target:
        rows, size = pipe(source, ROWS, target, "COPY t FROM STDIN (FORMAT binary)")
        assert rows == 20000
        assert size > 20000 * 200
        assert target.execute("SELECT count(*), sum(n) FROM t").fetchone() == (20000, 20000 * 20001 // 2)


# Each row waits, or all of them at their end.
@pytest.mark.parametrize("timing", ["BEFORE", "AFTER"])
def test_other_threads_go_on_while_the_target_waits(ends: tuple[str, str], timing: str) -> None:
    with psycopg.connect(ends[1], autocommit=True) as holder, psycopg.connect(ends[1], autocommit=True) as watcher:
        holder.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$"
        )
        holder.execute(f"CREATE TRIGGER wait {timing} INSERT ON t FOR EACH ROW EXECUTE FUNCTION wait()".encode())
        holder.execute("SELECT pg_advisory_lock(1)")
        done: list[int] = []

        def copy() -> None:
            with psycopg.connect(ends[0]) as source, psycopg.connect(ends[1]) as target:
                done.append(pipe(source, ROWS, target, "COPY t FROM STDIN (FORMAT binary)")[0])

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while watcher.execute(waiting).fetchone() != (1,):
            assert time.monotonic() < deadline, "the copy does not wait"
        # this thread runs, or nobody would let the lock go
        holder.execute("SELECT pg_advisory_unlock(1)")
        thread.join(30)
        assert done == [20000]


def test_what_the_target_refuses_is_raised(ends: tuple[str, str]) -> None:
    with psycopg.connect(ends[0]) as source, psycopg.connect(ends[1]) as target:
        target.execute("ALTER TABLE t ADD CHECK (n < 20000)")
        with pytest.raises(psycopg.errors.CheckViolation):
            pipe(source, ROWS, target, "COPY t FROM STDIN (FORMAT binary)")
        assert source.closed
        assert target.closed
