"""Plan, apply and tick on real shards: the same windows everywhere, whatever happens to one of them."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from fix_locks import LockLog
from fix_partitions import NOW, Timed, by_month, pending_detach
from shardwright.partition.site import LOCK_CLASS
from shardwright.partition.status import status
from shardwright.routing.tables import time_partitioned

DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)


def test_every_shard_gets_the_same_windows(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    report = cluster.tick()
    assert report.exit_code == 0, report.to_json()
    assert cluster.windows("s1") == {
        "events_p2026_11": "('2026-11-01 00:00:00+00') TO ('2026-12-01 00:00:00+00')",
        "events_p2026_12": "('2026-12-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')",
        "events_p2027_01": "('2027-01-01 00:00:00+00') TO ('2027-02-01 00:00:00+00')",
        "events_p_after": "('2027-02-01 00:00:00+00') TO (MAXVALUE)",
        "events_p_before": "(MINVALUE) TO ('2026-11-01 00:00:00+00')",
    }
    assert cluster.windows("s2") == cluster.windows("s1")
    assert cluster.plan().is_empty
    runs = cluster.catalog.execute("SELECT shard, outcome, plan FROM shardwright.partition_runs ORDER BY 1").fetchall()
    assert runs == [("s1", "done", report.plan.fingerprint), ("s2", "done", report.plan.fingerprint)]


def test_a_leaf_is_like_its_parent_in_what_partitions_do_not_inherit(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    shard = cluster.shard("s1")
    shard.execute("CREATE ROLE keeper" if not cluster.ask("s1", "SELECT to_regrole('keeper')") else "SELECT 1")
    shard.execute("CREATE INDEX ON events (note)")
    shard.execute("ALTER TABLE events REPLICA IDENTITY USING INDEX events_pkey")
    shard.execute("GRANT CREATE ON SCHEMA public TO keeper")
    shard.execute("ALTER TABLE events OWNER TO keeper")
    assert cluster.tick().exit_code == 0
    row = shard.execute(
        "SELECT pg_get_userbyid(relowner), relreplident, (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid), "
        "(SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'c'), "
        "(SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attidentity <> '' "
        "   AND current_setting('server_version_num')::int < 170000) "
        "FROM pg_class c WHERE relname = 'events_p2026_12'"
    ).fetchone()
    assert row == ("keeper", "i", 2, 0, 0)
    shard.execute("INSERT INTO events (at) VALUES ('2026-11-30'), ('2026-12-01'), ('2026-12-31 23:59:59.999999')")
    counts = shard.execute("SELECT tableoid::regclass::text, count(DISTINCT id) FROM events GROUP BY 1 ORDER BY 1")
    assert counts.fetchall() == [("events_p2026_11", 1), ("events_p2026_12", 2)]
    shard.execute("DROP OWNED BY keeper CASCADE")
    shard.execute("DROP ROLE keeper")


# ---------------------------------------------------------------- rows in guards


def test_rows_in_the_guard_move_into_their_window_and_no_trigger_sees_it(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    cluster.tick()
    shard = cluster.shard("s1")
    shard.execute("CREATE TABLE seen (what text)")
    shard.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.seen VALUES (TG_OP); RETURN NULL; END $$"
    )
    shard.execute("CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION see()")
    rows = [
        "2027-02-01",
        "2027-02-28 23:59:59.999999",
        "2027-03-01",
        "2999-01-01",
        "infinity",
        "-infinity",
        "1999-01-01",
    ]
    for at in rows:
        shard.execute("INSERT INTO events (at, note) VALUES (%s, 'early')", (at,))
    assert cluster.ask("s1", "SELECT count(*) FROM seen") == len(rows)
    report = cluster.tick(DECEMBER)
    assert report.exit_code == 3
    assert [(one.outcome, one.done) for one in report.outcomes] == [("done", 2)]
    said = {finding.facts["leaf"]: finding for finding in report.plan.findings}
    assert set(said) == {"events_p_before", "events_p_after"}
    assert "infinity" in said["events_p_after"].message
    placed = shard.execute("SELECT tableoid::regclass::text, count(*) FROM events GROUP BY 1 ORDER BY 1").fetchall()
    assert placed == [("events_p2027_02", 2), ("events_p_after", 3), ("events_p_before", 2)]
    assert cluster.ask("s1", "SELECT count(*) FROM seen") == len(rows)
    assert cluster.windows("s1")["events_p_after"] == "('2027-03-01 00:00:00+00') TO (MAXVALUE)"
    # the row of March follows when its window comes
    cluster.tick(datetime(2027, 1, 1, tzinfo=UTC))
    assert cluster.ask("s1", "SELECT count(*) FROM events_p2027_03") == 1
    assert cluster.ask("s1", "SELECT count(*) FROM events") == len(rows)


def test_rows_before_the_first_window_get_theirs(timed: Callable[..., Timed]) -> None:
    cluster = timed(2, by_month(keep="6 months"))
    cluster.tick()
    cluster.shard("s2").execute("INSERT INTO events (at) VALUES ('2026-08-08'), ('2026-10-10')")
    report = cluster.tick()
    assert report.exit_code == 0, report.to_json()
    assert cluster.ask("s2", "SELECT count(*) FROM events_p2026_08") == 1
    assert set(cluster.windows("s1")) == {f"events_p2026_{month:02d}" for month in range(8, 13)} | {
        "events_p2027_01",
        "events_p_before",
        "events_p_after",
    }


def test_a_uuid_of_another_version_is_refused_by_windows_and_guards(timed: Callable[..., Timed]) -> None:
    def letters(metadata: sa.MetaData) -> sa.Table:
        return sa.Table(
            "letters",
            metadata,
            sa.Column("id", sa.Uuid, primary_key=True),
            info=time_partitioned("id", every="1 month", ahead=1),
        )

    cluster = timed(1, letters)
    assert cluster.tick().exit_code == 0
    shard = cluster.shard("s1")
    milliseconds = int(NOW.timestamp() * 1000)
    good = uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | 42)
    shard.execute("INSERT INTO letters VALUES (%s)", (good,))
    assert cluster.ask("s1", "SELECT tableoid::regclass::text FROM letters") == "letters_p2026_11"
    for _ in range(20):
        with pytest.raises(psycopg.errors.CheckViolation):
            shard.execute("INSERT INTO letters VALUES (%s)", (uuid.uuid4(),))
    assert cluster.tick(DECEMBER).exit_code == 0
    assert len(cluster.windows("s1", "letters")) == 5


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("table", "column"),
    [('Ev."ents" of üñï%s', 'The "at"'), ("e" * 63, "at"), ("ü" * 31, "select"), ("%", "%s")],
)
def test_names_that_need_quotes_and_names_of_63_bytes(timed: Callable[..., Timed], table: str, column: str) -> None:
    cluster = timed(1, by_month(table, column, keep="1 month", grace=None))
    assert cluster.tick().exit_code == 0
    found = cluster.windows("s1", table)
    assert len(found) == 5
    assert all(len(name.encode()) <= 63 for name in found)
    name = sql.Identifier(table)
    cluster.shard("s1").execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ('2027-02-03')").format(name, sql.Identifier(column))
    )
    for day in range(4):
        report = cluster.tick(datetime(2027, 1, 2, tzinfo=UTC) + timedelta(days=day))
        assert report.exit_code == 0, report.to_json()
    assert len(cluster.windows("s1", table)) == 6
    assert cluster.plan(datetime(2027, 1, 9, tzinfo=UTC)).is_empty


# ---------------------------------------------------------------- one shard in trouble


def test_a_shard_that_is_down_does_not_stop_the_others_and_is_taken_up_later(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    with cluster.unreachable("s1"):
        report = cluster.tick()
        assert {one.shard: one.outcome for one in report.outcomes} == {"s2": "done", "s1": "deferred"}
        assert report.exit_code == 4
        found = status(cluster.dsns.catalog, now=NOW)
        assert found.exit_code == 4
        assert found.shards["s1"]
        assert {window.shards["s1"] for window in found.tables[0].windows} == {"unknown"}
    said = cluster.catalog.execute(
        "SELECT outcome, detail FROM shardwright.partition_runs WHERE shard = 's1'"
    ).fetchone()
    assert said is not None
    assert said[0] == "deferred"
    assert "cannot connect" in said[1]["message"]
    assert cluster.windows("s1") == {}
    assert cluster.tick().exit_code == 0
    assert cluster.windows("s1") == cluster.windows("s2")


def test_who_is_in_the_way_is_named_and_the_others_go_on(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    cluster.tick()
    with psycopg.connect(cluster.dsns.shards["s1"], application_name="report") as reader:
        reader.execute("SELECT count(*) FROM events WHERE note = 'secret'")
        report = cluster.tick(DECEMBER, patience=0.5)
        outcomes = {one.shard: one for one in report.outcomes}
        assert (outcomes["s1"].outcome, outcomes["s2"].outcome) == ("deferred", "done")
        [blocker] = outcomes["s1"].reason["blockers"]
        assert f"pid {reader.info.backend_pid} (report, idle in transaction" in blocker
        assert blocker.endswith("SELECT count(*) FROM events WHERE note = ?")
        assert report.exit_code == 4
    assert cluster.tick(DECEMBER).exit_code == 0
    assert cluster.windows("s1") == cluster.windows("s2")


def test_the_canary_must_succeed_before_the_others_start(timed: Callable[..., Timed]) -> None:
    cluster = timed(3)
    shard = cluster.shard("s1")
    shard.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$"
    )
    shard.execute(
        "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION refuse()"
    )
    report = cluster.tick()
    assert [(one.shard, one.outcome) for one in report.outcomes] == [
        ("s1", "failed"),
        ("s2", "deferred"),
        ("s3", "deferred"),
    ]
    assert "not here" in report.outcomes[0].reason["message"]
    assert report.outcomes[0].reason["step"] == "create events_p2026_11"
    assert report.exit_code == 3
    assert cluster.windows("s2") == {}
    shard.execute("DROP EVENT TRIGGER refuse")
    assert cluster.tick().exit_code == 0


def test_one_table_that_fails_does_not_stop_the_others(timed: Callable[..., Timed]) -> None:
    cluster = timed(1, by_month("events"), by_month("visits"))
    cluster.shard("s1").execute("DROP TABLE events")
    cluster.shard("s1").execute("CREATE TABLE events (id bigint, at timestamptz)")
    report = cluster.tick()
    assert [finding.kind for finding in report.plan.findings] == ["not-partitioned"]
    assert report.plan.findings[0].fix == "shardwright partition convert public.events"
    assert report.exit_code == 3
    assert len(cluster.windows("s1", "visits")) == 5


def test_two_workers_at_once(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    number = cluster.catalog.execute("SELECT id FROM shardwright.tables").fetchone()
    assert number is not None
    with psycopg.connect(cluster.dsns.shards["s1"], autocommit=True, application_name="another") as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", (LOCK_CLASS, number[0]))
        report = cluster.tick()
        assert [one.outcome for one in report.outcomes] == ["deferred"]
        assert f"pid {other.info.backend_pid} (another)" in report.outcomes[0].reason["message"]
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(cluster.tick())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.outcome for report in reports for one in report.outcomes} <= {"done", "deferred"}
    assert cluster.tick().exit_code == 0
    assert len(cluster.windows("s1")) == 5


# ---------------------------------------------------------------- locks


def test_steps_take_the_locks_that_the_page_says(
    timed: Callable[..., Timed], lock_log: Callable[[str], LockLog]
) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/partition-apply.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([A-Z ]+?) \|$", page, re.MULTILINE))
    cluster = timed(1)
    log = lock_log(cluster.dsns.shards["s1"])
    cluster.tick()
    found = {}
    for transaction in log.transactions():
        kind = "attach" if any("ALTER TABLE" in tag for tag in transaction.tags) else "other"
        kind = "create" if "CREATE TABLE" in transaction.tags else kind
        found[kind] = transaction.locks["events"]
    log.clear()
    cluster.tick(DECEMBER)
    [guard] = [one for one in log.transactions() if "events_p_after" in one.locks and "CREATE TABLE" not in one.tags]
    found["guard"] = guard.locks["events"]
    # nobody else's table, and no other leaf
    assert set(guard.locks) <= {"events", "events_p_after", "events_p2027_02"}
    pending_detach(cluster.dsns.shards["s1"], "events_p2026_12")
    log.clear()
    cluster.tick(DECEMBER)
    [finalize] = [one for one in log.transactions() if one.locks.get("events_p2026_12") == "ACCESS EXCLUSIVE"][:1]
    found["finalize"] = finalize.locks["events"]
    cluster.shard("s1").execute("INSERT INTO events (at) VALUES ('2027-03-05')")
    log.clear()
    cluster.tick(datetime(2027, 1, 20, tzinfo=UTC))
    [lift] = [one for one in log.transactions() if one.tags == ("DROP TRIGGER",)]
    found["lift"] = lift.locks["events"]
    assert found == said


# ---------------------------------------------------------------- status


def test_status_is_a_matrix_with_the_days_that_are_left(timed: Callable[..., Timed]) -> None:
    cluster = timed(2)
    assert status(cluster.dsns.catalog, now=NOW).exit_code == 3  # nothing is there yet
    cluster.tick()
    found = status(cluster.dsns.catalog, now=NOW)
    assert found.exit_code == 0
    [table] = found.tables
    assert table.runway_days == {"s1": 67.5, "s2": 67.5}
    assert [window.name for window in table.windows][1:-1] == ["events_p2026_11", "events_p2026_12", "events_p2027_01"]
    assert table.windows[1].lower == "2026-11-01T00:00:00Z"
    shard = cluster.shard("s2")
    shard.execute("ALTER TABLE events DETACH PARTITION events_p2026_12")
    shard.execute("DROP TABLE events_p2026_12")
    shard.execute("INSERT INTO events (at) VALUES ('2030-01-01')")
    found = status(cluster.dsns.catalog, now=NOW)
    [table] = found.tables
    cells = {window.name: window.shards for window in table.windows}
    assert cells["events_p2026_12"] == {"s1": "present", "s2": "missing"}
    assert table.runway_days == {"s1": 67.5, "s2": 5.5}
    assert table.short == ("s2",)
    assert table.guard_rows == {"s1": 0, "s2": 1}
    assert found.exit_code == 3


def test_looking_waits_for_nobody_who_works_on_a_leaf(timed: Callable[..., Timed]) -> None:
    cluster = timed(1)
    cluster.tick()
    with psycopg.connect(cluster.dsns.shards["s1"]) as other:
        other.execute("LOCK TABLE ONLY events_p2026_11, events_p2026_12 IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        assert cluster.plan().is_empty
        assert time.monotonic() - started < 2
