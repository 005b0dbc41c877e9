"""An operation from plan to finish on real servers, forward and back, while clients without the library write."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

import shardwright
from fix_resharding import ROWS, Small, Writer, check_exact
from shardwright import errors
from shardwright.catalog import adoption, keyspaces, maps
from shardwright.catalog.adoption import Wanted
from shardwright.reshard import operate, streams
from shardwright.routing.tables import Declaration


def test_two_shards_become_three_under_load(small: Small, writers: list[Writer]) -> None:
    operation = small.start(add="s3")
    verified = operate.drive(small.catalog_dsn, operation, "verified")
    assert verified.phase == "verified"
    assert all(certificate.differing == 0 for certificate in verified.certificates)
    switched = operate.drive(small.catalog_dsn, operation, "switched")
    assert {h.direction for h in switched.handovers} == {"forward"}
    for goal in ("reverted", "switched", "done"):
        assert operate.drive(small.catalog_dsn, operation, goal).phase == goal
    check_exact(small, writers)
    assert all(writer.refused for writer in writers), "the old shards refused nothing"
    with small.catalog() as catalog:
        now = maps.load_map(catalog)
    assert now.owned("users", "s3").count() == pytest.approx(4096 / 3, abs=1)


@pytest.mark.newest_postgres
def test_drain_and_abort_leave_nothing(small: Small) -> None:
    before = small.rows()
    operation = small.start(add="s3")
    operate.drive(small.catalog_dsn, operation, "verified")
    assert operate.drive(small.catalog_dsn, operation, "aborted").phase == "aborted"
    assert small.leftovers() == {}
    assert small.rows() == before
    drained = small.start(drain="s2")
    assert operate.drive(small.catalog_dsn, drained, "done").phase == "done"
    assert small.rows() == before
    assert small.ask("s2", "SELECT count(*) FROM orders") == 0
    assert small.leftovers() == {}


def test_a_second_operation_on_the_same_range_is_refused(small: Small) -> None:
    small.start(add="s3")
    with pytest.raises(errors.OperationConflict) as refused:
        small.start(drain="s1")
    assert refused.value.exit_code == 4


def test_a_difference_stops_the_switch(small: Small) -> None:
    operation = small.start(add="s3")
    operate.drive(small.catalog_dsn, operation, "verified")
    with small.shard("s3") as connection:
        connection.execute("SET session_replication_role = replica")
        victim = connection.execute("SELECT user_id, n FROM orders LIMIT 1").fetchone()
        # the number of rows stays the same: a comparison of counts would not see it
        connection.execute("UPDATE orders SET note = 'tampered' WHERE (user_id, n) = (%s, %s)", victim)
    with pytest.raises(errors.VerificationDiffers) as found:
        operate.verify(small.catalog_dsn, operation)
    assert f"({victim[0]},{victim[1]})" in str(found.value)
    with pytest.raises(errors.NotVerified):
        operate.drive(small.catalog_dsn, operation, "switched")
    assert operate.drive(small.catalog_dsn, operation, "aborted").phase == "aborted"
    assert small.leftovers() == {}


def test_last_changes_arrive_before_the_target_opens(small: Small) -> None:
    """The target's apply worker is held up while a batch is fenced: the target must not be opened meanwhile."""
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, move="users:[0,64)", to="s3", batch_shares=(1.0,)))
    operate.drive(small.catalog_dsn, operation, "verified")
    key = next(k for k in range(ROWS) if shardwright.point(k) < 64)
    opened = threading.Event()

    def hold_up() -> None:
        # the apply worker waits for this row's lock; nothing else does
        with psycopg.connect(small.dsns["s3"]) as holder, small.shard("s1") as source:
            holder.execute("SELECT FROM orders WHERE user_id = %s FOR UPDATE", (key,))
            source.execute("UPDATE orders SET note = 'the last word' WHERE user_id = %s", (key,))
            opened.set()
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                waits = source.execute("SELECT count(*) FROM shardwright.ranges WHERE state <> 'open'").fetchone()
                if waits[0]:
                    break
            time_over = time.monotonic() + 0.3
            while time.monotonic() < time_over:
                served = holder.execute(
                    "SELECT count(*) FROM shardwright.ranges WHERE keyspace = 'users' AND state = 'open'"
                ).fetchone()
                seen.append(served[0])

    seen: list[int] = []
    thread = threading.Thread(target=hold_up, daemon=True)
    original = streams.round_trip

    def round_trip_then_hold(*args: object, **options: object) -> float:
        passed = original(*args, **options)
        # the one that precedes the fence: by then the way back is there
        there = small.ask("s3", "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
        if args[3].endswith("_f") and there and not opened.is_set():
            thread.start()
            assert opened.wait(30)
        return passed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "round_trip", round_trip_then_hold)
        operate.drive(small.catalog_dsn, operation, "switched")
    thread.join(60)
    assert seen, "the batch was never fenced"
    assert set(seen) == {0}, "the target was open while it missed the last change"
    assert small.ask("s3", f"SELECT note FROM orders WHERE user_id = {key}") == "the last word"


@pytest.mark.newest_postgres
@pytest.mark.parametrize("piece", ["[1000,)", "[,0)", "[250,750)"])
def test_ranges_of_keys_move(small: Small, piece: str) -> None:
    """A range keyspace: open ends, the middle of a range, and writes on both sides of the borders while it moves."""
    with small.catalog() as catalog:
        keyspaces.create_keyspace(catalog, "days", strategy="range", key_type="int8", shards=["s1", "s2"], splits=[500])
        for name in ("s1", "s2"):
            with small.shard(name) as connection:
                connection.execute("CREATE TABLE seen (day bigint, n int, PRIMARY KEY (day, n))")
        with small.shard("s3") as connection:
            connection.execute("CREATE TABLE seen (day bigint, n int, PRIMARY KEY (day, n))")
        adoption.adopt(catalog, [Wanted("public", "seen", Declaration("sharded", "day", "days"))])
        shard_map = maps.load_map(catalog)
        days = range(-1500, 1501, 250)
        for day in days:
            with small.shard(shard_map.route("days", day).shard) as connection:
                connection.execute("INSERT INTO seen SELECT %s, generate_series(1, 10)", (day,))
        operation = operate.start(catalog, operate.plan(catalog, move=f"days:{piece}", to="s3"))
        operate.drive(small.catalog_dsn, operation, "switched")
        switched = maps.load_map(catalog)
        lo, hi = (int(end) if end else None for end in piece.strip("[)").split(","))
        for day in days:
            inside = (lo is None or day >= lo) and (hi is None or day < hi)
            shard = switched.route("days", day).shard
            assert (shard == "s3") == inside
            with small.shard(shard) as connection:
                connection.execute("INSERT INTO seen VALUES (%s, 11)", (day,))
        operate.drive(small.catalog_dsn, operation, "done")
        for name in small.dsns:
            with small.shard(name) as connection:
                rows = connection.execute("SELECT day, count(*) FROM seen GROUP BY day ORDER BY day").fetchall()
            assert rows == [(day, 11) for day in days if switched.route("days", day).shard == name]
    assert small.leftovers() == {}


def _lose_slot(small: Small, shard: str, ending: str) -> None:
    """A human drops a replication slot."""
    with small.shard(shard) as connection:
        names = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE %s"
        for (name,) in connection.execute(names, (f"%{ending}",)).fetchall():
            streams.drop_slot(connection, name)


@pytest.mark.newest_postgres
def test_a_way_back_that_was_lost(small: Small) -> None:
    """Rolling back is refused before it begins, also half-way through a switch; going forward is the way out."""
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    operate.drive(small.catalog_dsn, operation, "verified")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDWRIGHT_FAILPOINT", "hand_over.opened:error")
        with pytest.raises(errors.FailpointReached):
            operate.drive(small.catalog_dsn, operation, "switched")
    _lose_slot(small, "s3", "_r")
    with pytest.raises(errors.WrongPhase, match="way back"):
        operate.drive(small.catalog_dsn, operation, "reverted")
    with pytest.raises(errors.StreamStalled, match="way back"):
        operate.drive(small.catalog_dsn, operation, "switched")
    assert operate.drive(small.catalog_dsn, operation, "done").phase == "done"
    assert len(small.rows()) == ROWS
    assert small.leftovers() == {}


@pytest.mark.newest_postgres
def test_a_roll_back_that_cannot_go_on_is_turned_round(small: Small) -> None:
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    operate.drive(small.catalog_dsn, operation, "switched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDWRIGHT_FAILPOINT", "hand_over.opened:error")
        with pytest.raises(errors.FailpointReached):
            operate.drive(small.catalog_dsn, operation, "reverted")
    _lose_slot(small, "s3", "_r")
    assert operate.drive(small.catalog_dsn, operation, "done").phase == "done"
    assert len(small.rows()) == ROWS
    assert small.leftovers() == {}


@pytest.mark.newest_postgres
@pytest.mark.parametrize("resting", ["verified", "reverted"])
def test_a_forward_slot_that_was_lost_means_copying_again(small: Small, resting: str) -> None:
    with small.catalog() as catalog:
        operation = operate.start(catalog, operate.plan(catalog, add="s3"))
    operate.drive(small.catalog_dsn, operation, "verified")
    if resting == "reverted":
        operate.drive(small.catalog_dsn, operation, "switched")
        operate.drive(small.catalog_dsn, operation, "reverted")
    _lose_slot(small, "s1", "_f")
    with small.shard("s1") as connection:
        connection.execute("UPDATE orders SET note = 'while the slot was gone'")
    done = operate.drive(small.catalog_dsn, operation, "done")
    assert [phase for phase, _ in done.history].count("copying") == 2
    assert len(small.rows()) == ROWS
    assert small.leftovers() == {}
