"""Reference tables: written at home, on every other shard soon after, new shards and new tables included."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from shardwright import engines
from shardwright.catalog import adoption, forgetting, keyspaces, migrations, overview, references, roster, shards
from shardwright.catalog.adoption import Wanted
from shardwright.errors import BadDeclaration, ClusterInUse, StreamStalled, UnknownTable
from shardwright.routing.tables import Declaration
from shardwright.servers import Server


def synced(cluster: Found, home: str, *others: str, patience: float = 60) -> None:
    identity = roster.cluster_id(cluster.catalog)
    with engines.connect_shard(shards.get_shard(cluster.catalog, home)) as origin:
        for other in others:
            with engines.connect_shard(shards.get_shard(cluster.catalog, other)) as there:
                references.wait_for_sync(origin, there, identity, other, patience)


def rows(cluster: Found, shard: str, table: str = "r") -> list[tuple[Any, ...]]:
    return cluster.shard(shard).execute(f"SELECT * FROM {table} ORDER BY 1".encode()).fetchall()


def streams(cluster: Found, *names: str) -> dict[str, tuple[int, int, int]]:
    return {
        name: (
            cluster.ask(name, "SELECT count(*) FROM pg_publication"),
            cluster.ask(
                name,
                "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
                "WHERE d.datname = current_database()",
            ),
            cluster.ask(name, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        )
        for name in names
    }


def test_rows_and_every_kind_of_change_arrive(found: Callable[..., Found]) -> None:
    """The shards are databases of one server here."""
    cluster = found(3, joined=2, keyspace=None)
    home = cluster.shard("s1")
    home.execute(
        "CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r SELECT g, 'x' FROM generate_series(1, 1000) g"
    )
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s2")
    assert len(rows(cluster, "s2")) == 1000
    home.execute("DELETE FROM r WHERE id > 3; UPDATE r SET v = 'y' WHERE id = 1; INSERT INTO r VALUES (9, 'new')")
    synced(cluster, "s1", "s2")
    assert rows(cluster, "s2") == rows(cluster, "s1") == [(1, "y"), (2, "x"), (3, "x"), (9, "new")]
    # a shard that joins later, and a table that is registered later
    cluster.add("s3")
    home.execute("CREATE TABLE q (id int PRIMARY KEY REFERENCES r); INSERT INTO q VALUES (9)")
    cluster.adopt("q", kind="reference")
    synced(cluster, "s1", "s2", "s3")
    assert rows(cluster, "s3") == rows(cluster, "s1")
    assert rows(cluster, "s3", "q") == rows(cluster, "s2", "q") == [(9,)]
    home.execute("TRUNCATE r CASCADE")
    synced(cluster, "s1", "s2", "s3")
    assert rows(cluster, "s2") == rows(cluster, "s3") == rows(cluster, "s3", "q") == []
    assert streams(cluster, "s1", "s2", "s3") == {"s1": (1, 0, 2), "s2": (0, 1, 0), "s3": (0, 1, 0)}


def test_writes_away_from_home_are_refused(found: Callable[..., Found]) -> None:
    cluster = found(2, keyspace=None)
    cluster.shard("s2").execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    cluster.adopt("r", kind="reference", home="s2")
    synced(cluster, "s2", "s1")
    for statement in ("INSERT INTO r VALUES (2)", "UPDATE r SET id = 2", "DELETE FROM r", "TRUNCATE r"):
        with pytest.raises(psycopg.DatabaseError) as refused:
            cluster.shard("s1").execute(statement.encode())
        assert refused.value.sqlstate == "SH004"
    cluster.shard("s2").execute("INSERT INTO r VALUES (2)")
    synced(cluster, "s2", "s1")
    assert rows(cluster, "s1") == [(1,), (2,)]


def test_a_home_stays(found: Callable[..., Found]) -> None:
    cluster = found(2, keyspace=None)
    cluster.shard("s2").execute("CREATE TABLE r (id int PRIMARY KEY)")
    cluster.adopt("r", kind="reference", home="s2")
    with pytest.raises(ClusterInUse, match=r"is the home of public\.r"):
        shards.remove_shard(cluster.catalog, "s2")
    # without a wish, a later table gets the home that the others have
    cluster.shard("s1").execute("CREATE TABLE q (id int PRIMARY KEY)")
    [later] = cluster.adopt("q", kind="reference")
    assert later.home_shard == "s2"


def test_one_home_for_all(found: Callable[..., Found]) -> None:
    cluster = found(2, keyspace=None)
    for shard, table in (("s1", "a"), ("s2", "b"), ("s2", "c")):
        cluster.shard(shard).execute(f"CREATE TABLE {table} (id int PRIMARY KEY)".encode())
    both = [Wanted("public", table, Declaration("reference", home=home)) for table, home in (("a", "s1"), ("b", "s2"))]
    with pytest.raises(BadDeclaration, match=r"public\.b asks for home s2"):
        adoption.adopt(cluster.catalog, both)
    # a table that one shard has is written there, unless something else is asked for
    assert [table.home_shard for table in cluster.adopt("c", "a", kind="reference")] == ["s2", "s2"]


def test_a_shard_that_goes_takes_its_stream_along(found: Callable[..., Found]) -> None:
    cluster = found(3, keyspace=None)
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s2", "s3")
    shards.remove_shard(cluster.catalog, "s3")
    assert streams(cluster, "s1", "s2", "s3") == {"s1": (1, 0, 1), "s2": (0, 1, 0), "s3": (0, 0, 0)}
    # the copies are rows that somebody may want: the table stays, as a plain one
    assert rows(cluster, "s3") == [(1,)]
    cluster.shard("s3").execute("INSERT INTO r VALUES (2)")


def test_a_slot_without_its_subscription_is_made_anew(found: Callable[..., Found]) -> None:
    cluster = found(1, joined=1, keyspace=None)
    cluster.dsns.shards["s2"] = cluster.dsns.shards["s1"]
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    cluster.adopt("r", kind="reference")
    name = references.subscription_name(roster.cluster_id(cluster.catalog), "s2")
    cluster.shard("s1").execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    before = cluster.ask("s1", "SELECT restart_lsn::text FROM pg_replication_slots WHERE database = current_database()")
    other = found(1, joined=0, keyspace=None)
    shards.add_shard(cluster.catalog, "s2", other.dsns.shards["s1"])
    cluster.dsns.shards["s2"] = other.dsns.shards["s1"]
    cluster._open.pop("s2", None)
    synced(cluster, "s1", "s2")
    assert rows(cluster, "s2") == [(1,)]
    after = cluster.ask("s1", "SELECT restart_lsn::text FROM pg_replication_slots WHERE database = current_database()")
    assert after != before


def test_names_of_shards_with_dashes_do_not_meet() -> None:
    cluster = "0123abcd-0000-0000-0000-000000000000"
    names = {references.subscription_name(cluster, shard) for shard in ("a-b", "a_b", "a-_b", "a_-b")}
    assert len(names) == 4
    assert references.subscription_name(cluster, "s2") == "sw_0123abcd_ref_s2"
    longest = references.subscription_name(cluster, "a" + "-" * 30)
    assert len(longest) < 63
    assert set(longest) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


def test_servers_of_their_own_and_a_stream_that_stops(
    found: Callable[..., Found], server_factory: Callable[..., Server]
) -> None:
    cluster = found(1, joined=0, keyspace=None)
    home, away = server_factory(), server_factory()
    cluster.dsns.shards.update({"s1": home.dsn(), "s-2": away.dsn()})
    cluster.add("s1")
    cluster.add("s-2")
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r VALUES (1, 'x')")
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s-2")
    assert rows(cluster, "s-2") == [(1, "x")]
    [lag] = overview.look(cluster.catalog).references
    assert (lag.shard, lag.home, lag.state, lag.ready, lag.tables) == ("s-2", "s1", "ok", 1, 1)
    # Somebody drops the column there: the stream ends itself instead of trying for ever, and is shown as stopped.
    cluster.shard("s-2").execute("ALTER TABLE r DROP COLUMN v")
    cluster.shard("s1").execute("INSERT INTO r VALUES (2, 'y')")
    with pytest.raises(StreamStalled, match="disabled by an error"):
        synced(cluster, "s1", "s-2", patience=20)
    assert [one.state for one in overview.look(cluster.catalog).references] == ["stopped"]
    cluster.shard("s-2").execute("ALTER TABLE r ADD COLUMN v text")
    name = references.subscription_name(roster.cluster_id(cluster.catalog), "s-2")
    cluster.shard("s-2").execute(f"ALTER SUBSCRIPTION {name} ENABLE".encode())
    synced(cluster, "s1", "s-2")
    assert [row[0] for row in rows(cluster, "s-2")] == [1, 2]
    # A shard that is down is shown as such, and its copies are there again when it is.
    away.kill()
    seen = overview.look(cluster.catalog)
    assert {shard.name: shard.state for shard in seen.shards} == {"s-2": "unreachable", "s1": "ok"}
    assert [one.state for one in seen.references] == ["unreachable"]
    away.start()
    cluster.shard("s1").execute("INSERT INTO r VALUES (3, 'z')")
    synced(cluster, "s1", "s-2")
    with psycopg.connect(away.dsn()) as connection:
        assert connection.execute("SELECT count(*) FROM r").fetchone() == (3,)


def test_a_locked_server_is_subscribed_to_with_the_password_of_the_environment(
    found: Callable[..., Found], server_factory: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found(1, joined=0, keyspace=None)
    locked = server_factory(password="geheim")
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    monkeypatch.setenv("SHARDWRIGHT_PASSWORD_S2", "geheim")
    cluster.add("s1")
    shards.add_shard(cluster.catalog, "s2", f"host=127.0.0.1 port={locked.port} user=postgres dbname=postgres")
    cluster.dsns.shards["s2"] = f"{locked.dsn()}?password=geheim"
    cluster.shard("s2").execute("CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r VALUES (1)")
    adoption.adopt(cluster.catalog, [Wanted("public", "r", Declaration("reference", home="s2"))])
    synced(cluster, "s2", "s1")
    assert rows(cluster, "s1") == [(1,)]
    assert "geheim" not in repr(overview.look(cluster.catalog))
    shards_json = repr(cluster.catalog.execute("SELECT * FROM shardwright.shards").fetchall())
    assert "geheim" not in shards_json


def test_a_transaction_that_stays_open_is_not_waited_for_for_ever(
    found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a slot waits for every transaction of the server that has written."""
    cluster = found(2, keyspace=None)
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE other (id int)")
    monkeypatch.setattr(references, "SLOT_TIMEOUT_MS", 300)
    with psycopg.connect(cluster.dsns.shards["s1"]) as writer:
        writer.execute("INSERT INTO other VALUES (1)")
        started = time.monotonic()
        with pytest.raises(StreamStalled, match="waits for transactions"):
            cluster.adopt("r", kind="reference")
        assert time.monotonic() - started < 15
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s2")


def test_a_shard_goes_while_a_first_copy_waits(found: Callable[..., Found]) -> None:
    """The copy's slot waits for every transaction of the server; the subscription's drop must not wait for the slot."""
    cluster = found(2, keyspace=None)
    cluster.shard("s1").execute(
        "CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE q (id int PRIMARY KEY); CREATE TABLE other (id int)"
    )
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s2")
    with psycopg.connect(cluster.dsns.shards["s1"]) as writer:
        writer.execute("INSERT INTO other VALUES (1)")
        cluster.adopt("q", kind="reference")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'walsender' "
            "AND wait_event = 'transactionid'"
        )
        deadline = time.monotonic() + 30
        while cluster.ask("s1", waiting) == 0:
            assert time.monotonic() < deadline, "no first copy waits"
        started = time.monotonic()
        shards.remove_shard(cluster.catalog, "s2")
        assert time.monotonic() - started < 30
    assert streams(cluster, "s1", "s2") == {"s1": (1, 0, 0), "s2": (0, 0, 0)}


def test_a_table_is_forgotten_while_its_first_copy_waits(found: Callable[..., Found]) -> None:
    """REFRESH PUBLICATION takes the table away and drops the copy's slot, which waits for every transaction of the server."""
    cluster = found(2, keyspace=None)
    cluster.shard("s1").execute(
        "CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE q (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY); "
        "CREATE TABLE other (id int); INSERT INTO p VALUES (7)"
    )
    cluster.adopt("r", kind="reference")
    synced(cluster, "s1", "s2")
    with psycopg.connect(cluster.dsns.shards["s1"]) as writer:
        writer.execute("INSERT INTO other VALUES (1)")
        cluster.adopt("q", "p", kind="reference")
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'walsender' "
            "AND wait_event = 'transactionid'"
        )
        deadline = time.monotonic() + 30
        while cluster.ask("s1", waiting) < 2:
            assert time.monotonic() < deadline, "no first copies wait"
        started = time.monotonic()
        assert forgetting.forget(cluster.catalog, [("public", "q")]) == {"public.q": "s1"}
        assert time.monotonic() - started < 30
    # The stream goes on, and the other table's first copy begins anew.
    cluster.shard("s1").execute("INSERT INTO r VALUES (1); INSERT INTO p VALUES (8)")
    synced(cluster, "s1", "s2")
    assert rows(cluster, "s2") == [(1,)]
    assert rows(cluster, "s2", "p") == [(7,), (8,)]
    assert cluster.ask("s2", "SELECT to_regclass('q')") is None
    assert streams(cluster, "s1", "s2") == {"s1": (1, 0, 1), "s2": (0, 1, 0)}


def test_shard_migrations_are_checked_by_status(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    cluster.shard("s1").execute("DELETE FROM shardwright.migrations")
    [state] = overview.look(cluster.catalog).shards
    assert state.state == "behind"
    assert overview.look(cluster.catalog).next_steps == ["shardwright init"]
    cluster.shard("s1").execute("DROP SCHEMA shardwright CASCADE")
    with engines.connect_shard(shards.get_shard(cluster.catalog, "s1")) as connection:
        migrations.apply(connection, "shard")
    [state] = overview.look(cluster.catalog).shards
    assert state.state == "ok"


def test_a_table_that_is_forgotten_goes_on_at_home(found: Callable[..., Found]) -> None:
    cluster = found(2, keyspace=None)
    for table in ("a", "b"):
        cluster.shard("s1").execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)".encode()
        )
    cluster.adopt("a", "b", kind="reference")
    synced(cluster, "s1", "s2")
    assert forgetting.forget(cluster.catalog, [("public", "a")]) == {"public.a": "s1"}
    assert cluster.ask("s2", "SELECT to_regclass('a')") is None
    cluster.shard("s1").execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)")
    synced(cluster, "s1", "s2")
    assert rows(cluster, "s2", "b") == [(1,), (2,)]
    forgetting.forget(cluster.catalog, [("public", "b")])
    assert streams(cluster, "s1", "s2") == {"s1": (0, 0, 0), "s2": (0, 0, 0)}
    # now it may have another home
    with pytest.raises(UnknownTable):
        forgetting.forget(cluster.catalog, [("public", "b")])
    cluster.shard("s2").execute("CREATE TABLE b (id int PRIMARY KEY)")
    cluster.shard("s1").execute("TRUNCATE b")
    cluster.adopt("b", kind="reference", home="s2")
    shards.remove_shard(cluster.catalog, "s1")


def test_only_what_one_shard_has_is_forgotten(found: Callable[..., Found]) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE TABLE w (id int PRIMARY KEY)")
    cluster.adopt("t")
    cluster.adopt("w", kind="global", home="s1")
    assert forgetting.forget(cluster.catalog, [("public", "w")]) == {"public.w": "s1"}
    with pytest.raises(ClusterInUse, match=r"public\.t are spread over s1, s2"):
        forgetting.forget(cluster.catalog, [("public", "t")])
    keyspaces.create_keyspace(cluster.catalog, "single", shards=["s2"])
    cluster.shard("s2").execute("CREATE TABLE u (user_id bigint PRIMARY KEY); INSERT INTO u VALUES (1)")
    cluster.adopt("u", kind="sharded", key_column="user_id", keyspace="single")
    assert cluster.ask("s1", "SELECT to_regclass('u')::text") == "u"
    forgetting.forget(cluster.catalog, [("public", "u")])
    assert cluster.ask("s1", "SELECT to_regclass('u')") is None
    cluster.shard("s2").execute("UPDATE u SET user_id = 2")
