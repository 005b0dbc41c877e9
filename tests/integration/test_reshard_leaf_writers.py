"""Operations on a partitioned table while somebody writes to its leaves by their own names."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from fix_resharding import ROWS, Small
from shardwright.catalog import maps, operations
from shardwright.reshard import operate

# ---------------------------------------------------------------- who writes to a leaf itself


class LeafWriter(threading.Thread):
    """Writes to one leaf by its name, in transactions that stay open for a moment, at one isolation level."""

    def __init__(self, dsn: str, leaf: str, at: datetime, keys: list[int], first: int, isolation: Any) -> None:
        super().__init__(daemon=True)
        self.dsn, self.leaf, self.at, self.keys, self.next, self.isolation = dsn, leaf, at, keys, first, isolation
        self.acknowledged: set[tuple[int, datetime, int]] = set()
        self.refused = 0
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.isolation_level = self.isolation
            while not self.stop.is_set():
                row = (self.keys[self.next % len(self.keys)], self.at, self.next)
                self.next += 1
                try:
                    connection.execute(f"INSERT INTO {self.leaf} VALUES (%s, %s, %s, 'by name')".encode(), row)
                    self.stop.wait(0.002)
                    connection.commit()
                    self.acknowledged.add(row)
                except psycopg.DatabaseError as error:
                    connection.rollback()
                    if error.sqlstate not in ("SH001", "40001", "40P01"):
                        raise
                    self.refused += 1


_ISOLATIONS = pytest.mark.parametrize(
    "isolation",
    [
        psycopg.IsolationLevel.READ_COMMITTED,
        pytest.param(psycopg.IsolationLevel.REPEATABLE_READ, marks=pytest.mark.slow),
    ],
    ids=["rc", "rr"],
)


@_ISOLATIONS
def test_who_has_written_to_a_leaf_itself_is_waited_for(timely: Small, isolation: Any) -> None:
    """The fence locks the partitioned table alone; the leaf's own trigger makes its writers lock that table too."""
    with timely.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3", batch_shares=(1.0,)))
    # once there and back: a slot of the second switch would wait for open transactions before any fence did
    for goal in ("switched", "reverted", "verified"):
        operate.drive(timely.catalog_dsn, operation, goal)
    before = len(operate.drive(timely.catalog_dsn, operation).handovers)
    with timely.catalog() as catalog:
        shard_map, moves = maps.load_map(catalog), operations.get(catalog, operation).moves
    routes = {key: shard_map.route("users", key) for key in range(ROWS)}
    moving = [key for key, route in routes.items() if any(route.point in move.points for move in moves)][::50]
    opened: list[tuple[psycopg.Connection, tuple[int, datetime, int]]] = []
    for key in moving:
        shard, row = routes[key].shard, (key, timely.weeks[key % 5], 10**7)
        connection = psycopg.connect(timely.dsns[shard])
        connection.isolation_level = isolation
        connection.execute(f"INSERT INTO {timely.leaf_of(shard, row[1])} VALUES (%s, %s, %s)".encode(), row)
        opened.append((connection, row))

    def commit_all() -> None:
        for connection, _ in opened:
            connection.commit()
            connection.close()

    committing = threading.Timer(1.0, commit_all)
    committing.start()
    try:
        status = operate.drive(timely.catalog_dsn, operation, "switched")
    finally:
        committing.join()
    operate.drive(timely.catalog_dsn, operation, "done")
    assert {row for _, row in opened} <= {row[:3] for row in timely.rows("visits")}, "acknowledged rows are lost"
    assert max(handover.attempts for handover in status.handovers[before:]) > 1, "no try to fence was cut short"


@pytest.mark.slow
@_ISOLATIONS
def test_nothing_that_was_written_to_a_leaf_itself_is_lost(timely: Small, isolation: Any) -> None:
    """Four clients that write to leaves by name all the time, and twenty hand-overs."""
    with timely.catalog() as catalog:
        shard_map = maps.load_map(catalog)
        operation = operate.start(
            catalog, operate.plan(catalog, add="s3", batch_shares=tuple(part / 20 for part in range(1, 21)))
        )
    operate.drive(timely.catalog_dsn, operation, "verified")
    writers = [
        LeafWriter(
            timely.dsns[name],
            timely.leaf_of(name, timely.weeks[week]),
            timely.weeks[week],
            [key for key in range(ROWS) if shard_map.route("users", key).shard == name],
            10**6 * (number + 1),
            isolation,
        )
        for number, (name, week) in enumerate([("s1", 0), ("s1", 4), ("s2", 0), ("s2", 4)])
    ]
    for writer in writers:
        writer.start()
    operate.drive(timely.catalog_dsn, operation, "switched")
    for writer in writers:
        writer.stop.set()
        writer.join()
    operate.drive(timely.catalog_dsn, operation, "done")
    written = set().union(*(writer.acknowledged for writer in writers))
    assert len(written) > 100
    assert written - {row[:3] for row in timely.rows("visits")} == set(), "acknowledged rows are lost"
    assert all(writer.refused for writer in writers)
    assert timely.leftovers() == {}


def test_guards_of_leaves(timely: Small) -> None:
    """What a shard does not own is refused on a leaf too, and TRUNCATE while rows move; whoever took a trigger off gets it
    back before rows move."""
    with timely.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    foreign = next(key for key in range(ROWS) if shard_map.route("users", key).shard != "s1")
    leaf = timely.leaf_of("s1", timely.weeks[0])
    far = datetime(2200, 1, 1, tzinfo=UTC)
    with timely.shard("s1") as connection:
        connection.execute('DROP TRIGGER "~shardwright_leaf" ON visits_p_after')
        connection.execute("TRUNCATE visits_p_after")
    operation = timely.start(add="s3")
    operate.drive(timely.catalog_dsn, operation, "verified")
    with timely.shard("s1") as connection:
        for name, at in ((leaf, timely.weeks[0]), ("visits_p_after", far)):
            with pytest.raises(psycopg.DatabaseError) as refused:
                connection.execute(f"INSERT INTO {name} VALUES (%s, %s, 1)".encode(), (foreign, at))
            assert refused.value.sqlstate == "SH001"
            with pytest.raises(psycopg.DatabaseError) as refused:
                connection.execute(f"TRUNCATE {name}".encode())
            assert refused.value.sqlstate == "SH004"
    operate.drive(timely.catalog_dsn, operation, "aborted")
    with timely.shard("s1") as connection:
        connection.execute(f"TRUNCATE {leaf}".encode())
