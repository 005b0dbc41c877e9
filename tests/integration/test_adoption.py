"""Tables come under our care while an application uses them; what is refused leaves everything as it was."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_catalog import BY_USER, Found, refused
from fix_servers import Postgres
from shardwright import engines
from shardwright.catalog import adoption, keyspaces, locking, roster, shards, tables
from shardwright.catalog.adoption import Wanted
from shardwright.errors import (
    BadDeclaration,
    LockTimeout,
    MisplacedRows,
    OperationConflict,
    UnfitServer,
    UnfitTable,
    UnknownKeyspace,
    UnknownShard,
    UnknownTable,
)
from shardwright.routing.tables import Declaration


def ours(cluster: Found, *shards: str) -> list[tuple[Any, ...]]:
    """What of ours is on tables: trigger and functions."""
    return [
        row
        for shard in shards
        for row in cluster.shard(shard)
        .execute(
            "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname LIKE '~%' UNION ALL "
            "SELECT proname, '' FROM pg_proc WHERE proname LIKE 'guard\\_%\\_%' UNION ALL "
            "SELECT table_name, '' FROM shardwright.guards ORDER BY 1, 2"
        )
        .fetchall()
    ]


def test_guards_refuse_what_is_not_owned_here(found: Callable[..., Found]) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY, a int)")
    cluster.adopt("t")
    # points of 1 to 4: 4024 378 1209 ..; s1 has those below 2048
    one, two = cluster.shard("s1"), cluster.shard("s2")
    assert [refused(one, f"INSERT INTO t VALUES ({key})") for key in (1, 2)] == ["SH001", None]
    assert [refused(two, f"INSERT INTO t VALUES ({key})") for key in (1, 2)] == [None, "SH001"]
    one.execute("INSERT INTO t VALUES (2)")
    assert refused(one, "UPDATE t SET user_id = 3") == "SH004"
    assert refused(one, "UPDATE t SET a = 3") is None
    assert refused(one, "DELETE FROM t") is None
    assert refused(one, "TRUNCATE t") is None


def test_again_changes_nothing_and_takes_up_new_columns(found: Callable[..., Found]) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    [first] = cluster.adopt("t")
    before = ours(cluster, "s1", "s2")
    assert cluster.adopt("t") == [first]
    assert ours(cluster, "s1", "s2") == before
    cluster.shard("s1").execute("ALTER TABLE t ADD a int")
    with pytest.raises(UnfitTable, match="column a: integer / absent"):
        cluster.adopt("t")
    cluster.shard("s2").execute("ALTER TABLE t ADD a int")
    [second] = cluster.adopt("t")
    assert second.id == first.id
    assert second.layout.fingerprint != first.layout.fingerprint
    assert tables.list_tables(cluster.catalog) == [second]


def test_a_guard_that_was_dropped_comes_back(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    cluster.adopt("t")
    before = ours(cluster, "s1")
    cluster.shard("s1").execute('DROP TRIGGER "~shardwright_write" ON t')
    cluster.adopt("t")
    assert ours(cluster, "s1") == before


def test_a_run_that_broke_off_before_the_catalog_knew(
    found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE u (user_id bigint PRIMARY KEY)")
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY REFERENCES u)")
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    wanted = [Wanted("public", name, BY_USER) for name in ("u", "t")] + [
        Wanted("public", "r", Declaration("reference"))
    ]
    for place in ("tables.record", "ddl.build_foreign_keys", "connect_references", "put"):
        with monkeypatch.context() as broken:
            calls = iter(range(2))

            def break_off(*_: object, calls: Iterator[int] = calls, place: str = place) -> None:
                if place != "put" or next(calls) == 1:
                    raise KeyboardInterrupt

            broken.setattr(f"shardwright.catalog.adoption.{place}", break_off)
            broken.setattr("shardwright.catalog.adoption._take_back", lambda *_: None)  # as after a kill -9
            with pytest.raises(KeyboardInterrupt):
                adoption.adopt(cluster.catalog, wanted)
        assert tables.list_tables(cluster.catalog) == []
    done = adoption.adopt(cluster.catalog, wanted)
    assert {table.table_name for table in done} == {"u", "t", "r"}
    for shard in ("s1", "s2"):
        assert (
            cluster.ask(shard, "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conname = 't_user_id_fkey'")
            == 1
        )
        assert refused(cluster.shard(shard), "INSERT INTO u VALUES (1), (2)") == "SH001"
        numbers = (
            cluster.shard(shard).execute("SELECT table_id, table_name FROM shardwright.guards ORDER BY 1").fetchall()
        )
        assert numbers == sorted(
            (table.id, table.table_name) for table in done if table.kind == "sharded" or shard != "s1"
        )
        functions = cluster.ask(shard, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'guard\\_%'")
        assert functions == 3 * len(numbers)


def test_rows_that_a_shard_does_not_own(found: Callable[..., Found]) -> None:
    cluster = found(2)
    for shard in ("s1", "s2"):
        cluster.shard(shard).execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    cluster.shard("s1").execute("INSERT INTO t SELECT * FROM generate_series(1, 10)")
    cluster.shard("s1").execute("CREATE TABLE other (user_id bigint PRIMARY KEY)")
    with pytest.raises(
        MisplacedRows, match=r"has \d rows on shard s1 whose points it does not own, such as 1 \(point 4024\)"
    ):
        cluster.adopt("other", "t")
    assert ours(cluster, "s1", "s2") == []
    assert cluster.ask("s2", "SELECT to_regclass('other')") is None
    assert cluster.ask("s2", "SELECT to_regclass('t')::text") == "t"
    assert cluster.ask("s1", "SELECT count(*) FROM t") == 10
    assert tables.list_tables(cluster.catalog) == []
    cluster.shard("s1").execute("DELETE FROM t WHERE user_id <> 2")
    cluster.adopt("other", "t")


def test_a_reference_table_with_rows_away_from_home(found: Callable[..., Found]) -> None:
    cluster = found(2, keyspace=None)
    for shard in ("s1", "s2"):
        cluster.shard(shard).execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    with pytest.raises(MisplacedRows, match="has rows on shard s2, and its home is s1"):
        cluster.adopt("r", kind="reference")
    assert ours(cluster, "s1", "s2") == []
    assert cluster.ask("s1", "SELECT count(*) FROM pg_publication") == 0


def test_what_a_call_may_get_wrong(found: Callable[..., Found]) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY)")
    for error, table, declared in (
        (UnknownTable, "nothing", {}),
        (UnknownTable, "t", {"kind": "global", "home": "s2"}),
        (UnknownKeyspace, "t", {"kind": "sharded", "key_column": "user_id", "keyspace": "nothing"}),
        (UnknownShard, "t", {"kind": "reference", "home": "nobody"}),
        (UnknownShard, "t", {"kind": "global", "home": "nobody"}),
    ):
        with pytest.raises(error):
            cluster.adopt(table, **declared)
    cluster.adopt("t")
    cluster.adopt("r", kind="reference", home="s1")
    for table, declared, said in (
        ("t", {"kind": "reference"}, "registered as sharded by user_id in users and declared as reference on s1"),
        ("r", {"kind": "reference", "home": "s2"}, "asks for home s2"),
        ("r", {"kind": "global", "home": "s1"}, "registered as reference on s1 and declared as global on s1"),
    ):
        with pytest.raises(BadDeclaration, match=said):
            cluster.adopt(table, **declared)


def test_not_while_an_operation_is_live(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    cluster.catalog.execute("INSERT INTO shardwright.operations (request) VALUES ('{}')")
    with pytest.raises(OperationConflict, match="operation 1 is live"):
        cluster.adopt("t")


def test_an_interrupted_run_takes_back_what_it_made(
    found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE TABLE r (id int PRIMARY KEY)")
    cluster.shard("s1").execute("INSERT INTO r VALUES (1)")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    wanted = [Wanted("public", "t", BY_USER), Wanted("public", "r", Declaration("reference"))]
    for place in ("check_rows", "references.subscribe"):
        with monkeypatch.context() as interrupted:
            interrupted.setattr(f"shardwright.catalog.adoption.{place}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                adoption.adopt(cluster.catalog, wanted)
        assert ours(cluster, "s1", "s2") == []
        assert cluster.ask("s2", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        for shard in ("s1", "s2"):
            assert cluster.ask(shard, "SELECT count(*) FROM pg_publication") == 0
    adoption.adopt(cluster.catalog, wanted)


def test_a_role_that_may_not(found: Callable[..., Found]) -> None:
    """A role with REPLICATION that owns database and tables is enough, but for subscriptions; nothing is left of those."""
    cluster = found(2, joined=0, keyspace=None)
    role = f"app_{cluster.catalog.info.backend_pid}"
    admin = {name: cluster.shard(name) for name in ("s1", "s2")}
    admin["s1"].execute(f"CREATE ROLE {role} LOGIN REPLICATION".encode())
    try:
        for name, connection in admin.items():
            dsn = cluster.dsns.shards[name].replace("postgres@", f"{role}@")
            with pytest.raises(UnfitServer, match=f"shard {name}: our role may not"):
                shards.add_shard(cluster.catalog, name, dsn)
            database = connection.info.dbname
            connection.execute(f"ALTER DATABASE {database} OWNER TO {role}".encode())
            shards.add_shard(cluster.catalog, name, dsn)
        keyspaces.create_keyspace(cluster.catalog, "users")
        admin["s1"].execute("CREATE TABLE theirs (user_id bigint PRIMARY KEY)")
        admin["s1"].execute(f"SET ROLE {role}".encode())
        admin["s1"].execute("CREATE TABLE public.t (user_id bigint PRIMARY KEY)")
        admin["s1"].execute("CREATE TABLE public.r (id int PRIMARY KEY)")
        admin["s1"].execute("RESET ROLE")
        cluster.adopt("t")
        with pytest.raises(UnfitServer, match="our role may not do this: permission denied for table theirs"):
            cluster.adopt("theirs")
        with pytest.raises(UnfitServer, match="subscription"):
            cluster.adopt("r", kind="reference")
        slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        assert (cluster.ask("s1", slots), cluster.ask("s1", "SELECT count(*) FROM pg_publication")) == (0, 0)
        assert {row[0] for row in ours(cluster, "s1", "s2") if row[1]} == {"t"}
    finally:
        for name in admin:
            admin[name].execute("RESET ROLE")
            admin[name].execute(f"ALTER DATABASE {admin[name].info.dbname} OWNER TO postgres".encode())
            admin[name].execute(f"DROP OWNED BY {role} CASCADE".encode())
        admin["s1"].execute(f"DROP ROLE {role}".encode())


def test_whoever_holds_the_lock_is_named(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    monkeypatch.setitem(locking.patiently.__kwdefaults__, "patience", 0.5)
    with psycopg.connect(cluster.dsns.shards["s1"], application_name="the shop") as holder:
        holder.execute("INSERT INTO t VALUES (1)")
        pid = holder.info.backend_pid
        with pytest.raises(LockTimeout, match=rf"pid {pid} \(the shop, idle in transaction for"):
            cluster.adopt("t")
        assert ours(cluster, "s1") == []
        # a writer that came meanwhile was held up for one short try at most
        started = time.monotonic()
        cluster.shard("s1").execute("INSERT INTO t VALUES (2)")
        assert time.monotonic() - started < 1
    cluster.adopt("t")


def test_autovacuum_steps_aside(found: Callable[..., Found]) -> None:
    """Its lock conflicts with CREATE TRIGGER's, and it only yields to who waits for deadlock_timeout."""
    cluster = found(1)
    shard = cluster.shard("s1")
    shard.execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    with engines.connect_shard(roster.get_shard(cluster.catalog, "s1")) as connection:

        def work() -> tuple[str, str]:
            row = connection.execute(
                "SELECT current_setting('deadlock_timeout'), current_setting('lock_timeout')"
            ).fetchone()
            assert row is not None
            return row

        assert locking.patiently(connection, [("public", "t")], work) == ("100ms", "200ms")
        assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)


@contextmanager
def pgbench(postgres: Postgres, *words: str) -> Iterator[subprocess.Popen[str]]:
    if postgres.bin_dir is None:
        pytest.skip("needs pgbench")
    command = [str(postgres.bin_dir / "pgbench"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_live_database_is_adopted(found: Callable[..., Found], postgres: Postgres, workdir: Path) -> None:
    """pgbench -N at full speed notices nothing: no failed transaction, no long stall, not a row is copied."""
    cluster = found(1)
    dsn = cluster.dsns.shards["s1"]
    with pgbench(postgres, "-i", "-s", "1", "-q", dsn) as made:
        assert made.wait(60) == 0
    files = cluster.ask("s1", "SELECT pg_relation_filenode('pgbench_accounts')")
    log = f"--log-prefix={workdir}/log"
    with pgbench(postgres, "-N", "-n", "-c", "4", "-T", "4", "-l", log, dsn) as load:
        deadline = time.monotonic() + 10
        while cluster.ask("s1", "SELECT count(*) FROM pgbench_history") < 100:
            assert time.monotonic() < deadline
        beside = Declaration("global", home="s1")
        adoption.adopt(
            cluster.catalog,
            [
                Wanted("public", "pgbench_accounts", Declaration("sharded", "aid", "users")),
                *(Wanted("public", f"pgbench_{name}", beside) for name in ("branches", "tellers", "history")),
            ],
        )
        by_then = cluster.ask("s1", "SELECT count(*) FROM pgbench_history")
        out, err = load.communicate(timeout=60)
        assert load.returncode == 0, err
    assert "number of failed transactions: 0 (0.000%)" in out
    written = cluster.ask("s1", "SELECT count(*) FROM pgbench_history")
    assert written > by_then, "the adoption took longer than the load"
    assert f"number of transactions actually processed: {written}" in out
    times = [int(line.split()[2]) for file in workdir.glob("log*") for line in file.read_text().splitlines()]
    assert len(times) == written
    assert max(times) < 1_000_000, f"a transaction took {max(times)} us"
    assert cluster.ask("s1", "SELECT pg_relation_filenode('pgbench_accounts')") == files
    assert refused(cluster.shard("s1"), "UPDATE pgbench_accounts SET aid = 0 WHERE aid = 1") == "SH004"


def test_rows_cannot_slip_in_between_check_and_guard(found: Callable[..., Found]) -> None:
    """A writer of foreign keys runs all the time: whatever is there in the end was there before the check."""
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    stop, refusals = threading.Event(), []

    def write() -> None:
        with psycopg.connect(cluster.dsns.shards["s1"], autocommit=True) as connection:
            while not stop.is_set():
                try:
                    connection.execute("INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING")
                    connection.execute("DELETE FROM t")
                except psycopg.DatabaseError as error:
                    refusals.append(error.sqlstate)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                cluster.adopt("t")
                break
            except MisplacedRows:
                assert ours(cluster, "s1", "s2") == []
                assert time.monotonic() < deadline
    finally:
        stop.set()
        writer.join()
    assert set(refusals) <= {"SH001"}
    assert cluster.ask("s1", "SELECT count(*) FROM t") == 0


def test_names_with_quotes_are_guarded(found: Callable[..., Found]) -> None:
    cluster = found(2)
    name, key = 'Ünï"cöde.%s{}$1', 'sel"ect%s'
    table = "n" * 63
    with cluster.shard("s1").cursor() as cursor:
        for one in (name, table):
            quoted = one.replace('"', '""')
            cursor.execute(
                f'CREATE TABLE "{quoted}" ("{key.replace(chr(34), chr(34) * 2)}" bigint PRIMARY KEY)'.encode()
            )
    declaration = Declaration("sharded", key, "users")
    adoption.adopt(cluster.catalog, [Wanted("public", one, declaration) for one in (name, table)])
    quoted = name.replace('"', '""')
    assert refused(cluster.shard("s2"), f'INSERT INTO "{quoted}" VALUES (2)') == "SH001"
    assert refused(cluster.shard("s1"), f'INSERT INTO "{table}" VALUES (2)') is None
