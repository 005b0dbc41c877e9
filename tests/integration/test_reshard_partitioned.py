"""Operations on a table in windows of time: the same windows on both sides, leaf by leaf, and a fence that needs no leaf."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from fix_resharding import ROWS, Small, Writer, add_visits, check_exact
from shardwright import errors
from shardwright.catalog import evidence, maps, operations
from shardwright.partition.tick import tick
from shardwright.reshard import compare, layouts, operate, streams

pytestmark = pytest.mark.newest_postgres


def _start(small: Small, **request: Any) -> int:
    with small.catalog() as catalog:
        return operate.start(catalog, operate.plan(catalog, **request))


def _leaves(small: Small, shard: str, table: str = "visits") -> dict[str, str]:
    with small.shard(shard) as connection:
        connection.execute("SET TimeZone = UTC")
        return dict(
            connection.execute(
                "SELECT pg_get_expr(c.relpartbound, 0), c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
                "WHERE i.inhparent = %s::regclass ORDER BY 1",
                (table,),
            ).fetchall()
        )


def test_two_shards_become_three_under_load(timely: Small, writers: list[Writer]) -> None:
    """Late writers into windows that are over included; forward, back, forward again."""
    operation = _start(timely, add="s3")
    verified = operate.drive(timely.catalog_dsn, operation, "verified")
    assert all(certificate.differing == 0 for certificate in verified.certificates)
    assert [move.windows_checked for move in verified.moves] == [5, 5], "four weeks that are over, and the guard before"
    for goal in ("switched", "reverted", "switched", "done"):
        assert operate.drive(timely.catalog_dsn, operation, goal).phase == goal
    check_exact(timely, writers)
    assert all(writer.refused for writer in writers), "the old shards refused nothing"
    assert {visit[1] for visit in writers[0].visits} == set(timely.weeks), "no window was written late"
    with timely.shard("s3") as connection:
        keys = connection.execute(
            "SELECT count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indrelid "
            "WHERE h.inhparent = 'visits'::regclass AND i.indisvalid"
        ).fetchone()
    assert keys == (2 * len(_leaves(timely, "s3")),), "a leaf lacks an index"


def test_drain_and_abort_leave_nothing(small: Small) -> None:
    add_visits(small, weeks=30, ahead=4)
    assert len(_leaves(small, "s1")) == 37
    before = small.rows("visits")
    assert len(before) == ROWS
    operation = _start(small, add="s3")
    operate.drive(small.catalog_dsn, operation, "verified")
    assert operate.drive(small.catalog_dsn, operation, "aborted").phase == "aborted"
    assert small.leftovers() == {}
    assert small.rows("visits") == before
    with small.catalog() as catalog, small.shard("s2") as connection:
        connection.execute("ANALYZE")
        planned = operate.plan(catalog, drain="s2")
    wanted = small.ask("s2", "SELECT count(*) FROM visits") + 2 * small.ask("s2", "SELECT count(*) FROM orders")
    assert sum(move.rows for move in planned.moves) == pytest.approx(wanted, rel=0.1)
    drained = _start(small, drain="s2")
    assert operate.drive(small.catalog_dsn, drained, "done").phase == "done"
    assert small.rows("visits") == before
    assert small.ask("s2", "SELECT count(*) FROM visits") == 0
    assert small.leftovers() == {}


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
        connection.execute(f"INSERT INTO {_leaf_of(timely, shard, row[1])} VALUES (%s, %s, %s)".encode(), row)
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
            _leaf_of(timely, name, timely.weeks[week]),
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


def _leaf_of(small: Small, shard: str, at: datetime) -> str:
    with small.shard(shard) as connection:
        row = connection.execute("SELECT tableoid::regclass::text FROM visits WHERE at = %s LIMIT 1", (at,)).fetchone()
    assert row is not None
    return str(row[0])


def test_guards_of_leaves(timely: Small) -> None:
    """What a shard does not own is refused on a leaf too, and TRUNCATE while rows move; whoever took a trigger off gets it
    back before rows move."""
    with timely.catalog() as catalog:
        shard_map = maps.load_map(catalog)
    foreign = next(key for key in range(ROWS) if shard_map.route("users", key).shard != "s1")
    leaf = _leaf_of(timely, "s1", timely.weeks[0])
    far = datetime(2200, 1, 1, tzinfo=UTC)
    with timely.shard("s1") as connection:
        connection.execute('DROP TRIGGER "~shardwright_leaf" ON visits_p_after')
        connection.execute("TRUNCATE visits_p_after")
    operation = _start(timely, add="s3")
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


# ---------------------------------------------------------------- the same windows on both sides


def test_a_window_that_the_target_lacks_is_named_before_anything_is_made(timely: Small) -> None:
    leaf = _leaves(timely, "s1")[next(iter(_leaves(timely, "s1")))]
    with timely.shard("s3") as connection:
        connection.execute(f"ALTER TABLE visits DETACH PARTITION {leaf}".encode())
    with pytest.raises(errors.PreflightFailed) as refused:
        _start(timely, add="s3")
    assert refused.value.facts["windows"] == {"public.visits": {leaf: {"s3": "missing"}}}
    [problem] = refused.value.facts["problems"]
    assert leaf in problem["found"]
    assert problem["fix"] == "shardwright partition apply public.visits"
    assert timely.leftovers() == {}


def test_a_window_lost_after_the_start_is_named_too(timely: Small) -> None:
    operation = _start(timely, add="s3")
    with timely.shard("s3") as connection:
        connection.execute("ALTER TABLE visits DETACH PARTITION visits_p_before")
    with pytest.raises(errors.PreflightFailed, match="visits_p_before"):
        operate.drive(timely.catalog_dsn, operation, "verified")
    with timely.shard("s3") as connection:
        connection.execute(
            "ALTER TABLE visits ATTACH PARTITION visits_p_before FOR VALUES "
            + next(bounds for bounds, name in _leaves(timely, "s1").items() if name == "visits_p_before").removeprefix(
                "FOR VALUES "
            )
        )
    operate.drive(timely.catalog_dsn, operation, "verified")
    # and on the source, by hand, after the copy
    with timely.shard("s1") as connection:
        connection.execute("ALTER TABLE visits DETACH PARTITION visits_p_before")
    with pytest.raises(errors.VerificationDiffers, match="visits_p_before"):
        operate.verify(timely.catalog_dsn, operation)
    assert operate.drive(timely.catalog_dsn, operation, "aborted").phase == "aborted"
    assert timely.leftovers() == {}


def test_a_replica_identity_that_cannot_do_is_found(timely: Small) -> None:
    leaf = _leaf_of(timely, "s1", timely.weeks[0])
    with timely.shard("s1") as connection:
        connection.execute(f"ALTER TABLE {leaf} REPLICA IDENTITY NOTHING".encode())
    with pytest.raises(errors.PreflightFailed) as refused:
        _start(timely, add="s3")
    assert [problem["fix"] for problem in refused.value.facts["problems"]] == [
        f"ALTER TABLE public.{leaf} REPLICA IDENTITY DEFAULT"
    ]


def test_windows_that_a_tick_makes_meanwhile(timely: Small) -> None:
    """Made while the changes flow forward, and while they flow back: the target gets them first, and nothing is lost."""
    operation = _start(timely, add="s3")
    operate.drive(timely.catalog_dsn, operation, "verified")
    seen: set[tuple[int, datetime]] = set()
    for weeks, goal in ((2, "verified"), (4, "switched")):
        operate.drive(timely.catalog_dsn, operation, goal)
        report = tick(timely.catalog_dsn, now=datetime.now(UTC) + timedelta(weeks=weeks))
        assert report.exit_code == 0, report.to_json()
        at = datetime.now(UTC) + timedelta(weeks=weeks + 3)
        with timely.catalog() as catalog:
            shard_map = maps.load_map(catalog)
        for key in range(300):
            with psycopg.connect(timely.dsns[shard_map.route("users", key).shard], autocommit=True) as connection:
                connection.execute("INSERT INTO visits VALUES (%s, %s, 9)", (key, at))
                seen.add((key, at))
        assert _leaf_of(timely, shard_map.route("users", 0).shard, at) != "visits_p_after"
        operate.verify(timely.catalog_dsn, operation)
    operate.drive(timely.catalog_dsn, operation, "reverted")
    assert _leaves(timely, "s1") == _leaves(timely, "s2") == _leaves(timely, "s3")
    for goal in ("switched", "done"):
        operate.drive(timely.catalog_dsn, operation, goal)
    assert seen <= {row[:2] for row in timely.rows("visits")}
    assert timely.leftovers() == {}


def test_retention_stands_still_while_rows_move(timely: Small) -> None:
    with timely.catalog() as catalog:
        catalog.execute(
            'UPDATE shardwright.tables SET policy = policy || \'{"keep": "1 week"}\' WHERE policy IS NOT NULL'
        )
    operation = _start(timely, add="s3")
    operate.drive(timely.catalog_dsn, operation, "verified")
    before = {name: set(_leaves(timely, name).values()) for name in timely.dsns}
    tick(timely.catalog_dsn)
    for name in timely.dsns:
        assert before[name] <= set(_leaves(timely, name).values()), "a window went while its rows were moving"
    operate.drive(timely.catalog_dsn, operation, "aborted")
    tick(timely.catalog_dsn)
    for name in timely.dsns:
        assert not before[name] <= set(_leaves(timely, name).values())


# ---------------------------------------------------------------- what was copied is what was there


def test_a_window_that_is_over_is_compared_right_after_its_copy(timely: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something changes the copy of a closed window before the changes begin to flow: noticed then and not hours later."""
    operation = _start(timely, add="s3")
    leaf = _leaf_of(timely, "s1", timely.weeks[1])
    original = layouts.is_over
    tampered: list[str] = []

    def tamper(*arguments: Any) -> bool:
        if not tampered:
            tampered.append(leaf)
            with timely.shard("s3") as connection:
                connection.execute(
                    "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN NEW.note := 'spoilt'; RETURN NEW; END $$"
                )
                connection.execute(
                    f"CREATE TRIGGER spoil BEFORE INSERT ON {leaf} FOR EACH ROW EXECUTE FUNCTION spoil()".encode()
                )
                connection.execute(f"ALTER TABLE {leaf} ENABLE ALWAYS TRIGGER spoil".encode())
        return original(*arguments)

    monkeypatch.setattr(layouts, "is_over", tamper)
    with pytest.raises(errors.VerificationDiffers, match=leaf):
        operate.drive(timely.catalog_dsn, operation, "verified")
    monkeypatch.undo()
    with timely.shard("s3") as connection:
        connection.execute(f"DROP TRIGGER spoil ON {leaf}; DROP FUNCTION spoil()".encode())
    assert operate.drive(timely.catalog_dsn, operation, "verified").phase == "verified"
    with timely.catalog() as catalog:
        assert sum(evidence.count_windows(catalog, operation).values()) == 10
    operate.drive(timely.catalog_dsn, operation, "aborted")
    assert timely.leftovers() == {}


def test_a_leaf_that_is_rewritten_under_the_copy_is_copied_again(
    timely: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VACUUM FULL of a leaf after the snapshot: the snapshot would find nothing there."""
    operation = _start(timely, add="s3")
    leaf = _leaf_of(timely, "s1", timely.weeks[1])
    original = layouts.is_over
    rewritten: list[str] = []

    def rewrite(*arguments: Any) -> bool:
        if not rewritten:
            rewritten.append(leaf)
            with timely.shard("s1") as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute(f"VACUUM FULL {leaf}".encode())
        return original(*arguments)

    monkeypatch.setattr(layouts, "is_over", rewrite)
    with pytest.raises(errors.StreamStalled, match=f"{leaf}.*rewritten"):
        operate.drive(timely.catalog_dsn, operation, "verified")
    assert operate.drive(timely.catalog_dsn, operation, "verified").phase == "verified"
    assert all(certificate.differing == 0 for certificate in operate.verify(timely.catalog_dsn, operation).certificates)


def test_a_difference_in_a_leaf_is_found(timely: Small) -> None:
    operation = _start(timely, add="s3")
    operate.drive(timely.catalog_dsn, operation, "verified")
    with timely.shard("s3") as connection:
        connection.execute("SET session_replication_role = replica")
        victim = connection.execute(
            "SELECT user_id, n FROM visits WHERE at = %s LIMIT 1", (timely.weeks[0],)
        ).fetchone()
        connection.execute("UPDATE visits SET note = 'tampered' WHERE user_id = %s", (victim[0],))
    with pytest.raises(errors.VerificationDiffers, match=rf"visits \({victim[0]},"):
        operate.verify(timely.catalog_dsn, operation)


def test_many_leaves_need_few_locks(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction of an operation holds the locks of all leaves while rows are copied, compared or fenced."""
    add_visits(small, weeks=30, ahead=4)
    monkeypatch.setattr("shardwright.reshard.parts.PARTS_AT_ONCE", 5)
    most: dict[str, int] = {}

    def count(*_: Any) -> None:
        for name in ("s1", "s3"):
            held = small.ask(
                name,
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                "JOIN pg_inherits i ON i.inhrelid = l.relation WHERE a.application_name LIKE 'shardwright op%' "
                "AND i.inhparent = 'visits'::regclass AND l.mode <> 'AccessExclusiveLock' GROUP BY l.pid) AS by_pid",
            )
            most[name] = max(most.get(name, 0), held)

    for module, name in ((compare.parts, "check_same"), (streams, "beat")):
        original = getattr(module, name)

        def counted(*arguments: Any, original: Any = original) -> Any:
            done = original(*arguments)
            count()
            return done

        monkeypatch.setattr(module, name, counted)
    operation = _start(small, add="s3")
    operate.drive(small.catalog_dsn, operation, "switched")
    assert 0 < max(most.values()) <= 5, most
    monkeypatch.undo()
    operate.drive(small.catalog_dsn, operation, "done")
    assert len(small.rows("visits")) == ROWS
