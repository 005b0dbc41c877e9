"""Operations on a table in windows of time: the same windows on both sides, leaf by leaf, and a fence that needs no leaf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from fix_resharding import ROWS, Small, Writer, add_visits, check_exact
from shardwright import errors
from shardwright.catalog import evidence, maps
from shardwright.partition.tick import tick
from shardwright.reshard import compare, layouts, operate, streams

pytestmark = pytest.mark.newest_postgres


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
    operation = timely.start(add="s3")
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
    operation = small.start(add="s3")
    operate.drive(small.catalog_dsn, operation, "verified")
    assert operate.drive(small.catalog_dsn, operation, "aborted").phase == "aborted"
    assert small.leftovers() == {}
    assert small.rows("visits") == before
    with small.catalog() as catalog, small.shard("s2") as connection:
        connection.execute("ANALYZE")
        planned = operate.plan(catalog, drain="s2")
    wanted = small.ask("s2", "SELECT count(*) FROM visits") + 2 * small.ask("s2", "SELECT count(*) FROM orders")
    assert sum(move.rows for move in planned.moves) == pytest.approx(wanted, rel=0.1)
    drained = small.start(drain="s2")
    assert operate.drive(small.catalog_dsn, drained, "done").phase == "done"
    assert small.rows("visits") == before
    assert small.ask("s2", "SELECT count(*) FROM visits") == 0
    assert small.leftovers() == {}


# ---------------------------------------------------------------- the same windows on both sides


def test_a_window_that_the_target_lacks_is_named_before_anything_is_made(timely: Small) -> None:
    leaf = _leaves(timely, "s1")[next(iter(_leaves(timely, "s1")))]
    with timely.shard("s3") as connection:
        connection.execute(f"ALTER TABLE visits DETACH PARTITION {leaf}".encode())
    with pytest.raises(errors.PreflightFailed) as refused:
        timely.start(add="s3")
    assert refused.value.facts["windows"] == {"public.visits": {leaf: {"s3": "missing"}}}
    [problem] = refused.value.facts["problems"]
    assert leaf in problem["found"]
    assert problem["fix"] == "shardwright partition apply public.visits"
    assert timely.leftovers() == {}


def test_a_window_lost_after_the_start_is_named_too(timely: Small) -> None:
    operation = timely.start(add="s3")
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
    leaf = timely.leaf_of("s1", timely.weeks[0])
    with timely.shard("s1") as connection:
        connection.execute(f"ALTER TABLE {leaf} REPLICA IDENTITY NOTHING".encode())
    with pytest.raises(errors.PreflightFailed) as refused:
        timely.start(add="s3")
    assert [problem["fix"] for problem in refused.value.facts["problems"]] == [
        f"ALTER TABLE public.{leaf} REPLICA IDENTITY DEFAULT"
    ]


def test_windows_that_a_tick_makes_meanwhile(timely: Small) -> None:
    """Made while the changes flow forward, and while they flow back: the target gets them first, and nothing is lost."""
    operation = timely.start(add="s3")
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
        assert timely.leaf_of(shard_map.route("users", 0).shard, at) != "visits_p_after"
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
    operation = timely.start(add="s3")
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
    operation = timely.start(add="s3")
    leaf = timely.leaf_of("s1", timely.weeks[1])
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
    operation = timely.start(add="s3")
    leaf = timely.leaf_of("s1", timely.weeks[1])
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
    operation = timely.start(add="s3")
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
    operation = small.start(add="s3")
    operate.drive(small.catalog_dsn, operation, "switched")
    assert 0 < max(most.values()) <= 5, most
    monkeypatch.undo()
    operate.drive(small.catalog_dsn, operation, "done")
    assert len(small.rows("visits")) == ROWS
