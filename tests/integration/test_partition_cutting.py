"""Cutting a fat partition when things go otherwise than planned: rewrites, deletes of what is referred to, odd tables."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from shardwright import engines, errors
from shardwright.catalog import maps, windows
from shardwright.catalog.roster import get_shard
from shardwright.partition import convert, shells, split, splitting, touched
from shardwright.partition.fleet import Fleet
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

ROWS = 3000
KEYED = "PRIMARY KEY (user_id, id, at)"


def _prepare(
    found: Callable[..., Found], *, key: str = KEYED, kind: str = "local", shards: int = 1, policy: Policy | None = None
) -> Found:
    cluster = found(shards)
    for name in cluster.dsns.shards:
        cluster.shard(name).execute(
            f"CREATE TABLE events (user_id int NOT NULL, id bigint NOT NULL, at timestamptz NOT NULL, note json, {key})".encode()
        )
    declaration = Declaration(kind) if kind == "local" else Declaration("sharded", "user_id", "users")
    cluster.adopt("events", **vars(declaration))
    shard_map = maps.load_map(cluster.catalog)
    for name in cluster.dsns.shards:
        users = [n for n in range(100) if kind == "local" or shard_map.route("users", n).shard == name][:10]
        cluster.shard(name).execute(
            "INSERT INTO events SELECT u, g, now() - g * interval '100 days' / %s, '{\"a\": 1}' "
            "FROM unnest(%s::int[]) u, generate_series(1, %s) g",
            (ROWS // 10, users, ROWS // 10),
        )
    wanted = policy or Policy("at", "1 month", grace=None)
    convert.convert(cluster.dsns.catalog, "public", "events", Declaration("local", policy=wanted))
    assert tick(cluster.dsns.catalog).exit_code == 0
    return cluster


def _leaves(cluster: Found, name: str = "s1") -> set[str]:
    rows = cluster.shard(name).execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass"
    )
    return {row[0] for row in rows.fetchall()}


def test_a_mirror_would_bring_rows_back_and_the_log_does_not(found: Callable[..., Found]) -> None:
    """The negative control: why keys are logged, and changes are not written to the pieces by the trigger itself."""
    cluster = _prepare(found)
    made = split.plan(cluster.dsns.catalog, "public", "events")
    with Fleet(cluster.dsns.catalog, [("public", "events")]) as fleet:
        (table,) = fleet.tables
        site = fleet.site(table.id, table.key, "s1")
        work = splitting.cutting(site, made.fat, made.pieces)
        shells.make(site, work)
        touched.open_log(site.connection, work)
        number = next(index for index, piece in enumerate(made.pieces) if piece.role == "window")
        piece, columns = work.piece(number), work.list_sql(work.columns)
        for text in (
            f"CREATE TABLE mirrored (LIKE {piece})",
            "CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN DELETE FROM public.mirrored m "
            "WHERE (m.user_id, m.id, m.at) = (OLD.user_id, OLD.id, OLD.at); RETURN OLD; END $$",
            "CREATE TRIGGER mirror AFTER DELETE ON events FOR EACH ROW EXECUTE FUNCTION mirror()",
        ):
            cluster.shard("s1").execute(text.encode())
        bounds = work.number_sql('"at"')
        with psycopg.connect(cluster.dsns.shards["s1"]) as writer:
            writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            writer.execute("SELECT 1 FROM pg_class")
            # The copy comes after the writer's snapshot.
            for name in (piece, "public.mirrored"):
                site.connection.execute(
                    f"INSERT INTO {name} ({columns}) SELECT {columns} FROM ONLY {work.source} WHERE {bounds} = {number}".encode()
                )
            writer.execute("DELETE FROM events WHERE user_id = 0")
            writer.commit()
        touched.ready(site.connection, work)
        with site.connection.transaction():
            assert touched.replay(site.connection, work) > 0
        assert cluster.ask("s1", "SELECT count(*) FROM mirrored WHERE user_id = 0") > 0, "the control shows nothing"
        assert cluster.ask("s1", f"SELECT count(*) FROM {piece} WHERE user_id = 0") == 0
        splitting.give_up(site, work)


@pytest.mark.parametrize("how", ["VACUUM FULL events_p_whole", "TRUNCATE events"])
def test_a_rewrite_meanwhile_is_copied_anew(found: Callable[..., Found], how: str) -> None:
    cluster = _prepare(found)
    done = threading.Event()

    def watch(shard: str, step: str, progress: Any) -> None:
        if progress is not None and not done.is_set():
            done.set()
            cluster.shard("s1").execute(how.encode())
            cluster.shard("s1").execute("INSERT INTO events VALUES (1, 0, now() - interval '3 days')")

    report = split.split(cluster.dsns.catalog, "public", "events", watch=watch, settings=splitting.Settings(workers=1))
    assert report.shards[0].restarts == 1
    assert cluster.ask("s1", "SELECT count(*) FROM events") == (1 if "TRUNCATE" in how else ROWS + 1)
    assert tick(cluster.dsns.catalog).exit_code == 0


def test_a_sharded_table_keeps_its_guards(found: Callable[..., Found]) -> None:
    cluster = _prepare(found, kind="sharded", shards=2)
    report = split.split(cluster.dsns.catalog, "public", "events", drop_now=True)
    assert report.dropped
    shard_map = maps.load_map(cluster.catalog)
    for name in ("s1", "s2"):
        assert cluster.ask(name, "SELECT count(*) FROM events") == ROWS
        stranger = next(n for n in range(100) if shard_map.route("users", n).shard != name)
        for leaf in ("events", next(one for one in _leaves(cluster, name) if one.startswith("events_p2"))):
            with pytest.raises(psycopg.errors.Error) as refused:
                at = cluster.ask(name, f"SELECT max(at) FROM {leaf}")
                cluster.shard(name).execute(f"INSERT INTO {leaf} VALUES (%s, 1, %s)".encode(), (stranger, at))
            assert refused.value.sqlstate == "SH001"
        assert cluster.ask(name, "SELECT to_regclass('events_p_whole')") is None
    assert _leaves(cluster, "s1") == _leaves(cluster, "s2")
    assert tick(cluster.dsns.catalog).exit_code == 0


def test_the_old_partition_goes_by_a_tick_without_an_archive(found: Callable[..., Found], tmp_path: Any) -> None:
    pytest.importorskip("pyarrow")
    cluster = _prepare(found, policy=Policy("at", "1 month", grace=None, archive=str(tmp_path)))
    split.split(cluster.dsns.catalog, "public", "events")
    assert cluster.ask("s1", "SELECT count(*) FROM events_p_whole") == ROWS
    assert tick(cluster.dsns.catalog).exit_code == 0
    assert cluster.ask("s1", "SELECT to_regclass('events_p_whole')") is None
    assert list(tmp_path.iterdir()) == []
    assert tick(cluster.dsns.catalog).exit_code == 0
    assert "events_p_whole" not in {one.name for one in windows.list_windows(cluster.catalog)}


def test_what_is_referred_to_may_be_deleted_meanwhile(found: Callable[..., Found]) -> None:
    """Child, then what it refers to: the copies that are behind must not refuse it."""
    cluster = found(1)
    for text in (
        "CREATE TABLE users (id int PRIMARY KEY)",
        "INSERT INTO users SELECT generate_series(1, 20000)",
        "CREATE TABLE events (id int, at timestamptz, PRIMARY KEY (id, at), FOREIGN KEY (id) REFERENCES users)",
        "INSERT INTO events SELECT g, now() - g * interval '6 min' FROM generate_series(1, 20000) g",
    ):
        cluster.shard("s1").execute(text.encode())
    cluster.adopt("users", "events", kind="local")
    policy = Policy("at", "1 month")
    convert.convert(cluster.dsns.catalog, "public", "events", Declaration("local", policy=policy))
    tick(cluster.dsns.catalog)
    stop, problems, gone = threading.Event(), list[str](), 0

    def work() -> None:
        nonlocal gone
        try:
            with psycopg.connect(cluster.dsns.shards["s1"], autocommit=True) as connection:
                while not stop.is_set() and gone < 20000:
                    gone += 1
                    connection.execute("DELETE FROM events WHERE id = %s", (gone,))
                    connection.execute("DELETE FROM users WHERE id = %s", (gone,))
        except psycopg.Error as error:
            problems.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    split.split(cluster.dsns.catalog, "public", "events")
    stop.set()
    thread.join(30)
    assert problems == []
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 20000 - gone
    assert cluster.ask("s1", "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'D'") == 0
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        cluster.shard("s1").execute("DELETE FROM users WHERE id = 20000")


def test_a_foreign_key_to_a_partitioned_table_is_one_key(found: Callable[..., Found]) -> None:
    """PostgreSQL keeps one more for each partition that is referred to; those are not carried over by themselves."""
    cluster = found(1)
    for text in (
        "CREATE TABLE seen (id int, at timestamptz, PRIMARY KEY (id, at))",
        "INSERT INTO seen SELECT g, now() - g * interval '1 hour' FROM generate_series(1, 2400) g",
        "CREATE TABLE events (id int, at timestamptz, PRIMARY KEY (id, at), "
        "CONSTRAINT of_seen FOREIGN KEY (id, at) REFERENCES seen)",
        "INSERT INTO events SELECT id, at FROM seen",
    ):
        cluster.shard("s1").execute(text.encode())
    dsn, wanted = cluster.dsns.catalog, Declaration("local", policy=Policy("at", "1 month", grace=None))
    keys = (
        "SELECT c.conrelid::regclass::text || ' ' || c.conname FROM pg_constraint c WHERE c.contype = 'f' "
        "AND c.conrelid = 'events'::regclass AND c.conparentid = 0 ORDER BY 1"
    )
    for table in ("seen", "events"):
        convert.convert(dsn, "public", table, wanted)
        assert cluster.shard("s1").execute(keys.encode()).fetchall() == [("events of_seen",)]
    assert tick(dsn).exit_code == 0
    report = split.split(dsn, "public", "events", drop_now=True)
    assert report.dropped
    assert cluster.shard("s1").execute(keys.encode()).fetchall() == [("events of_seen",)]
    assert cluster.ask("s1", "SELECT count(*) FROM events") == 2400
    # A row of a window that did not exist when the key was made.
    cluster.shard("s1").execute("INSERT INTO seen VALUES (9999, now() + interval '40 days')")
    cluster.shard("s1").execute("INSERT INTO events SELECT * FROM seen WHERE id = 9999")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        cluster.shard("s1").execute("INSERT INTO events VALUES (10000, now())")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        cluster.shard("s1").execute("DELETE FROM seen WHERE id IN (1, 9999)")
    assert tick(dsn).exit_code == 0


def test_refused_with_every_reason(found: Callable[..., Found]) -> None:
    cluster = _prepare(found, key="UNIQUE (user_id, id, at)", shards=1)
    # A unique key of columns that are NOT NULL tells rows apart.
    assert len(split.plan(cluster.dsns.catalog, "public", "events").pieces) > 3
    cluster.shard("s1").execute("ALTER TABLE events DROP CONSTRAINT events_user_id_id_at_key")
    with pytest.raises(errors.UnfitTable, match="no primary key"):
        split.plan(cluster.dsns.catalog, "public", "events")
    with pytest.raises(errors.BadOption, match="has no partition nowhere"):
        split.plan(cluster.dsns.catalog, "public", "events", "nowhere")
    with pytest.raises(errors.WrongPhase):
        split.abort(cluster.dsns.catalog, "public", "events")


def test_two_at_a_time_are_refused(found: Callable[..., Found]) -> None:
    cluster = _prepare(found)
    (table,) = {one.table_id for one in windows.list_windows(cluster.catalog)}
    with split.alone(cluster.catalog, table), pytest.raises(errors.OperationConflict):
        split.split(cluster.dsns.catalog, "public", "events")


def test_old_snapshots_are_waited_for_and_named(found: Callable[..., Found]) -> None:
    cluster = _prepare(found)
    with psycopg.connect(cluster.dsns.shards["s1"], application_name="old reader") as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM pg_class")
        with pytest.raises(errors.NotDrained, match="old reader"):
            split.split(cluster.dsns.catalog, "public", "events", settings=splitting.Settings(wait_for_snapshots=0.2))
        assert _leaves(cluster) >= {"events_p_whole"}
    split.split(cluster.dsns.catalog, "public", "events", settings=splitting.Settings(wait_for_snapshots=5))
    assert "events_p_whole" not in _leaves(cluster)


def test_a_difference_stops_it(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _prepare(found)
    monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "partition.split_indexed:error")
    with pytest.raises(errors.FailpointReached):
        split.split(cluster.dsns.catalog, "public", "events")
    monkeypatch.delenv("SHARDWRIGHT_FAILPOINT")
    piece = cluster.ask(
        "s1",
        "SELECT relname FROM pg_class WHERE relname LIKE 'events_p2%' AND NOT relispartition AND relkind = 'r' "
        "ORDER BY 1 LIMIT 1",
    )
    connection = engines.connect_shard(get_shard(cluster.catalog, "s1"))
    with connection:
        connection.execute(
            f"UPDATE public.{piece} SET note = '{{}}' WHERE id = (SELECT min(id) FROM public.{piece})".encode()
        )
    with pytest.raises(errors.VerificationDiffers, match=piece):
        split.split(cluster.dsns.catalog, "public", "events")
    split.abort(cluster.dsns.catalog, "public", "events")
    assert _leaves(cluster) >= {"events_p_whole"}
