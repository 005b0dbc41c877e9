"""Transactions that are open on the old shard at the moment of the switch, by plain psycopg clients.

Each is either waited for or gets an error: none is answered COMMIT and is missing afterwards. And on the way back none
of N writes made on the new shard is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_resharding import ROWS, Small
from shardwright import Cluster, errors
from shardwright.catalog import evidence, maps, operations
from shardwright.reshard import operate

pytestmark = pytest.mark.newest_postgres

#: Between its two statements a transaction is idle this long.
IDLE_SECONDS = 1.5


class OpenTransaction(threading.Thread):
    """One transaction with an idle gap between two statements, on one shard."""

    def __init__(self, dsn: str, isolation: psycopg.IsolationLevel, first: str, key: int, n: int) -> None:
        super().__init__(daemon=True)
        self.dsn, self.isolation, self.first, self.key, self.n = dsn, isolation, first, key, n
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.outcome = "nothing"

    def run(self) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.isolation_level = self.isolation
            try:
                if self.first == "write":
                    connection.execute("INSERT INTO orders VALUES (%s, %s, 'first')", (self.key, self.n))
                else:
                    connection.execute("SELECT count(*) FROM orders WHERE user_id = %s", (self.key,))
                self.begun.set()
                self.go_on.wait(IDLE_SECONDS)
                connection.execute("INSERT INTO orders VALUES (%s, %s, 'second')", (self.key, self.n + 1))
                connection.commit()
                self.outcome = "committed"
            except psycopg.DatabaseError as error:
                self.outcome = error.sqlstate or "error"
                connection.rollback()
            finally:
                self.begun.set()


def _rows_of(small: Small, key: int) -> set[int]:
    with small.catalog() as catalog:
        shard = maps.load_map(catalog).route("users", key).shard
    with small.shard(shard) as connection:
        return {row[0] for row in connection.execute("SELECT n FROM orders WHERE user_id = %s", (key,))}


def _moving_keys(small: Small, operation: int, count: int) -> list[tuple[int, str]]:
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
        status = operate.status.of(catalog, operation)
        points = operations.get(catalog, operation).moves
    assert status.moves
    found = []
    for key in range(ROWS):
        route = shard_map.route("users", key)
        if any(route.point in move.points for move in points):
            found.append((key, route.shard))
    return found[:: max(1, len(found) // count)][:count]


@pytest.mark.parametrize("first", ["write", "read"])
@pytest.mark.parametrize(
    "isolation", [psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.REPEATABLE_READ], ids=["rc", "rr"]
)
def test_open_transactions_are_waited_for_or_refused(
    small: Small, isolation: psycopg.IsolationLevel, first: str
) -> None:
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(1.0,)))
    # once there and back: a slot of the second switch would wait for open transactions before any fence did
    for goal in ("switched", "reverted", "verified"):
        operate.drive(small.catalog_dsn, operation, goal)
    before = len(operate.drive(small.catalog_dsn, operation).handovers)
    transactions = [
        OpenTransaction(small.dsns[shard], isolation, first, key, 10**7)
        for key, shard in _moving_keys(small, operation, 8)
    ]
    for transaction in transactions:
        transaction.start()
    for transaction in transactions:
        assert transaction.begun.wait(30)
    switched = operate.drive(small.catalog_dsn, operation, "switched")
    for transaction in transactions:
        transaction.join(30)
    outcomes = {transaction.outcome for transaction in transactions}
    for transaction in transactions:
        written = _rows_of(small, transaction.key) & {10**7, 10**7 + 1}
        promised = {"write": {10**7, 10**7 + 1}, "read": {10**7 + 1}}[first]
        wanted = promised if transaction.outcome == "committed" else set()
        assert written == wanted, f"answered {transaction.outcome}, but the rows are {written}"
    if first == "write":
        assert outcomes == {"committed"}, "who had written was not waited for"
        assert max(h.attempts for h in switched.handovers[before:]) > 1, "no try to fence was cut short"
    assert outcomes <= {"committed", "SH001", "40001"}


def test_a_pinned_session_that_stays_open_is_named(small: Small) -> None:
    """It has read only, and waits for its application: it holds its range all the same."""
    settings = {"fence_attempts": 2, "fence_lock_timeout_ms": 30}
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(1.0,)), settings)
    operate.drive(small.catalog_dsn, operation, "verified")
    key, shard = _moving_keys(small, operation, 1)[0]
    cluster = Cluster.connect(small.catalog_dsn, application="nightly export", refresh="never")
    with cluster, cluster.sessionmaker()(key=key) as session:
        pid = session.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(errors.NotDrained) as raised:
            operate.drive(small.catalog_dsn, operation, "switched")
        assert f"pid {pid} shardwright nightly export open" in raised.value.message
        assert ", idle in transaction for" in raised.value.message
        blocker = next(one for one in raised.value.facts["blockers"] if one["pid"] == pid)
        assert blocker["state"] == "idle in transaction"
        assert 0 <= blocker["state_s"] <= blocker["age_s"]
    assert operate.drive(small.catalog_dsn, operation, "switched").phase == "switched"
    assert shard != "s3"


def _write(small: Small, keys: list[int], n: int) -> set[tuple[int, int]]:
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    for key in keys:
        with psycopg.connect(small.dsns[shard_map.route("users", key).shard], autocommit=True) as connection:
            connection.execute("INSERT INTO orders VALUES (%s, %s, 'written')", (key, n))
            connection.execute("UPDATE items SET body = '{\"n\": 1}' WHERE user_id = %s", (key,))
    return {(key, n) for key in keys}


@pytest.mark.parametrize(
    "request_of",
    [pytest.param(lambda: {"add": "s3"}, marks=pytest.mark.slow), lambda: {"drain": "s2"}],
    ids=["2 to 3", "2 to 1"],
)
def test_rolling_back_loses_no_write(small: Small, request_of: Callable[[], dict[str, str]]) -> None:
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, **request_of()))
    operate.drive(small.catalog_dsn, operation, "switched")
    written = _write(small, [key for key, _ in _moved_keys(small, operation)], 77)
    with small.shard("s3" if "add" in request_of() else "s1") as connection:
        connection.execute("DELETE FROM orders WHERE n = 1 AND user_id % 7 = 0")
    expected = {row[:2] for row in _served(small, operation)}
    assert operate.drive(small.catalog_dsn, operation, "reverted").phase == "reverted"
    back = {row[:2] for row in _served(small, operation)}
    assert written <= back
    assert back == expected
    assert operate.drive(small.catalog_dsn, operation, "aborted").phase == "aborted"
    assert {row[:2] for row in small.rows()} == expected
    assert small.leftovers() == {}


def test_the_way_back_runs_before_the_target_opens(small: Small) -> None:
    """Rows written on the target in the very moment in which it is opened come back with a roll back."""
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    operate.drive(small.catalog_dsn, operation, "verified")
    keys = [key for key, _ in _moved_keys(small, operation)]
    written: set[tuple[int, int]] = set()
    original = evidence.record_handover

    def write_at_once(*args: Any) -> None:
        original(*args)
        with small.catalog() as catalog:
            shard_map = maps.load_map(catalog)
        key = next(k for k in keys if shard_map.route("users", k).shard == "s3")
        row = (key, 500 + len(written))
        with small.shard("s3") as connection:
            connection.execute("INSERT INTO orders VALUES (%s, %s, 'at once')", row)
        written.add(row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "record_handover", write_at_once)
        operate.drive(small.catalog_dsn, operation, "switched")
    assert len(written) >= 4
    operate.drive(small.catalog_dsn, operation, "reverted")
    assert written <= {row[:2] for row in _served(small, operation)}


def _moved_keys(small: Small, operation: int) -> list[tuple[int, str]]:
    with small.catalog() as catalog:
        moves = operations.get(catalog, operation).moves
        shard_map = maps.load_map(catalog)
    routes = [(key, shard_map.route("users", key)) for key in range(ROWS)]
    return [(key, r.shard) for key, r in routes if any(r.point in move.points for move in moves)]


def _served(small: Small, operation: int) -> list[tuple[object, ...]]:
    """Rows by the shard map, while the other side's copies are still there."""
    with small.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    found = []
    for name in small.dsns:
        with small.shard(name) as connection:
            for row in connection.execute("SELECT * FROM orders"):
                if shard_map.route("users", row[0]).shard == name:
                    found.append(row)
    assert len(found) == len({row[:2] for row in found})
    return sorted(found)
