"""`Cluster`: following the map, replaying transactions, pools, and servers that are not what they should be."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from fix_sessions import Order, Shop, User, until
from shardwright import Cluster, ShardSession, errors
from shardwright.catalog import keyspaces

pytestmark = pytest.mark.newest_postgres


def routers(shop: Shop) -> list[tuple[str, int]]:
    return shop.catalog.execute("SELECT application, map_version FROM shardwright.routers ORDER BY 1").fetchall()


@pytest.mark.parametrize("mode", ["listen", "poll"])
def test_the_map_is_followed_and_the_router_reported(shop: Shop, mode: Any) -> None:
    poll = 60.0 if mode == "listen" else 0.05
    with shop.connect(refresh=mode, poll_seconds=poll, application="follower") as cluster:
        version = cluster.map.version
        until(lambda: routers(shop) == [("follower", version)], "the router is not listed")
        shop.hand_over(shop.key_on("s1"), "s2")
        until(lambda: cluster.map.version == version + 1, "the map was not followed")
        until(lambda: routers(shop) == [("follower", version + 1)], "the new version was not reported")
    assert routers(shop) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "shardwright-map"]


def test_the_map_does_not_go_back(shop: Shop) -> None:
    """A catalog that came back from a backup, or a standby of it, may be behind what this router has seen."""
    shop.hand_over(shop.key_on("s1"), "s2")
    with shop.connect(refresh="poll", poll_seconds=0.02) as cluster:
        version = cluster.map.version
        shop.catalog.execute("DELETE FROM shardwright.map_versions WHERE version = %s", (version,))
        assert cluster.refresh().version == version
        seen = shop.catalog.execute("SELECT seen_at FROM shardwright.routers").fetchone()
        asked = "SELECT FROM shardwright.routers WHERE seen_at > %s"
        until(lambda: shop.catalog.execute(asked, seen).fetchone() is not None, "the router is silent")
        assert cluster.map.version == version


def test_a_router_that_is_never_refreshed_is_not_listed(shop: Shop) -> None:
    with shop.connect(refresh="never"):
        assert routers(shop) == []


def test_an_outage_of_the_catalog_is_survived(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    key = shop.key_on("s1")
    with shop.connect(refresh="listen", poll_seconds=0.05, application="survivor") as cluster:
        version = cluster.map.version
        name = psycopg.conninfo.conninfo_to_dict(shop.dsns.catalog)["dbname"]
        shop.shard("s1").execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        shop.shard("s1").execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE %s",
            (name, "shardwright router%"),
        )
        until(lambda: "the catalog does not answer" in caplog.text, "nothing was logged")
        with cluster.sessionmaker().begin() as session:
            session.add(User(id=key, name="x"))
        assert cluster.refresh().version == version
        shop.shard("s1").execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        shop.hand_over(key, "s2")
        until(lambda: cluster.map.version == version + 1, "the map was not followed")
        assert "password" not in caplog.text


@pytest.mark.every_driver(tasks="slow")
def test_run_replays_what_the_database_asks_for(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    shop.shard("s1").execute("CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql AS "
                             "$$BEGIN RAISE EXCEPTION 'asked for' USING ERRCODE = state; END$$")  # fmt: skip
    for state in ("40001", "40P01", "SH001", "SH002", "SH003"):
        calls: list[int] = []

        def work(session: ShardSession, state: str = state, calls: list[int] = calls) -> str:
            calls.append(1)
            session.add(Order(user_id=key, n=int(time.monotonic_ns() % 2**31), amount=1))
            session.flush()
            if len(calls) < 3:
                session.execute(sa.text("SELECT fail(:state)"), {"state": state})
            return "done"

        expected = 1 if state.startswith("SH") else 3
        if state.startswith("SH"):
            # In a transaction that holds its range, a guard's refusal is about another row: nothing is replayed.
            with pytest.raises(errors.KeyOutsideSession):
                cluster.run(key, work)
        else:
            assert cluster.run(key, work) == "done"
        assert len(calls) == expected, state
    assert shop.ask("s1", "SELECT count(*) FROM orders") == 2


@pytest.mark.every_driver(tasks="slow")
def test_run_across_begins_again_where_a_range_is_being_handed_over(shop: Shop) -> None:
    """What the transaction has read on the shard cannot be kept when it goes on to a range that is fenced there."""
    cluster = shop.connect()
    first = shop.key_on("s1")
    second = next(
        key for nth in range(1, 100)
        if shop.map.route("users", key := shop.key_on("s1", nth)).range_id != shop.map.route("users", first).range_id
    )  # fmt: skip
    elsewhere = shop.key_on("s2")
    shop.fence(second)
    calls: list[int] = []

    def work(session: ShardSession) -> str:
        calls.append(1)
        if len(calls) == 2:
            shop.unfence(second)
        session.get(User, first)
        session.add(User(id=elsewhere, name="there"))
        session.get(User, second)
        session.add(User(id=second, name="here"))
        return "done"

    assert cluster.run_across(work) == "done"
    assert len(calls) == 2
    assert [shop.ask(name, "SELECT string_agg(name, ',') FROM users") for name in ("s1", "s2")] == ["here", "there"]


@pytest.mark.every_driver(tasks="slow")
def test_run_gives_up_where_a_replay_cannot_help(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    calls: list[int] = []

    def twice(session: ShardSession) -> None:
        calls.append(1)
        session.add_all([User(id=key, name="a")])
        session.flush()
        session.execute(sa.insert(User).values(id=key, name="b"))

    with pytest.raises(IntegrityError):
        cluster.run(key, twice)
    assert len(calls) == 1

    def always(session: ShardSession) -> None:
        calls.append(1)
        session.execute(sa.text("DO $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END$$"))

    calls.clear()
    with pytest.raises(DBAPIError):
        cluster.run(key, always, attempts=4)
    assert len(calls) == 4
    calls.clear()
    with pytest.raises(DBAPIError):
        cluster.run(key, always, deadline=0.5)
    assert len(calls) > 1


@pytest.mark.every_driver(tasks="slow")
def test_run_returns_objects_that_can_be_read(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s2")

    def work(session: ShardSession) -> User:
        user = User(id=key, name="x")
        session.add(user)
        return user

    assert cluster.run(key, work).name == "x"
    assert cluster.run(key, lambda session: session.get_one(User, key), isolation_level="SERIALIZABLE").name == "x"


@pytest.mark.every_driver(tasks="slow")
def test_dead_connections_in_the_pool_are_replaced(shop: Shop) -> None:
    cluster = shop.connect(pool_size=3)
    key = shop.key_on("s1")
    sessions = cluster.sessionmaker()
    kill = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE application_name = 'shardwright test' AND datname = current_database()"
    )
    works: list[Callable[[ShardSession], Any]] = [
        lambda session: session.scalar(sa.select(sa.func.count()).where(User.id == key)),
        lambda session: (session.add(Order(user_id=key, n=1, amount=1)), session.flush()),
        lambda session: session.connection(),
    ]
    for work in works:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(sessions(key=key)).connection()
        assert shop.ask("s1", kill) == 3
        with sessions(key=key) as session:
            work(session)
            session.rollback()


@pytest.mark.every_driver(tasks="slow")
def test_a_connection_that_is_lost_on_the_way_is_told(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    with cluster.sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        session.flush()
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        shop.ask("s1", "SELECT pg_terminate_backend(%s, 5000)", pid)
        with pytest.raises(errors.ShardUnavailable) as caught:
            session.execute(sa.select(User).where(User.id == key))
        assert caught.value.retriable
        assert not caught.value.durable_change
        session.rollback()
        assert session.get(User, key) is None


@pytest.mark.every_driver(tasks="slow")
def test_another_database_at_the_shards_address_is_refused(shop: Shop) -> None:
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = 's1'", (shop.dsns.shards["s2"],))
    with shop.connect().sessionmaker()(key=shop.key_on("s1")) as session:
        with pytest.raises(errors.ShardUnavailable, match="is another database") as caught:
            session.execute(sa.text("SELECT 1"))
        assert caught.value.facts["shard"] == "s1"


@pytest.mark.every_driver(tasks="slow")
def test_a_shard_that_is_down_is_unavailable_and_the_others_are_not(shop: Shop) -> None:
    nowhere = "host=127.0.0.1 port=1 dbname=x user=x"
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = 's1'", (nowhere,))
    sessions = shop.connect().sessionmaker()
    with sessions(key=shop.key_on("s1")) as session, pytest.raises(errors.ShardUnavailable):
        session.execute(sa.text("SELECT 1"))
    with sessions(key=shop.key_on("s2")) as session:
        assert session.scalar(sa.text("SELECT 1")) == 1


@pytest.mark.every_driver(tasks="slow")
def test_a_new_address_is_followed(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    engine = cluster.engine("s1")
    assert cluster.engine("s1") is engine
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = conninfo || ' connect_timeout=7' WHERE name = 's1'")
    cluster.refresh()
    assert cluster.engine("s1") is not engine
    with cluster.sessionmaker()(key=key) as session:
        assert session.scalar(sa.text("SELECT 1")) == 1


@pytest.mark.every_driver(tasks="slow")
def test_a_server_that_has_become_read_only_is_left(shop: Shop) -> None:
    """25006: what a demoted primary answers. Its connections must not go back into the pool."""
    cluster = shop.connect()
    key = shop.key_on("s1")
    name = psycopg.conninfo.conninfo_to_dict(shop.dsns.shards["s1"])["dbname"]
    shop.shard("s1").execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    with cluster.sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        with pytest.raises(errors.ShardUnavailable, match="standby"):
            session.commit()
        session.rollback()
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
    shop.shard("s2").execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    with cluster.sessionmaker()(key=key) as session:
        session.execute(sa.select(User).where(User.id == key))
        with contextlib.suppress(errors.ShardUnavailable):
            session.add(User(id=key, name="x"))
            session.commit()
    with cluster.sessionmaker()(key=key) as session:
        session.merge(User(id=key, name="x"))
        session.commit()
        assert session.scalar(sa.text("SELECT pg_backend_pid()")) != pid


def test_several_keyspaces(shop: Shop) -> None:
    keyspaces.create_keyspace(shop.catalog, "devices", strategy="hash", key_type="text", buckets=16, shards=["s2"])
    sessions = shop.connect().sessionmaker()
    with pytest.raises(errors.BadOption, match="several keyspaces: users, devices"):
        sessions(key=1)
    with sessions(key="d1", keyspace="devices") as session:
        assert session.scalar(sa.text("SELECT current_database()")) == psycopg.conninfo.conninfo_to_dict(
            shop.dsns.shards["s2"]
        ).get("dbname")
        with pytest.raises(errors.KeyOutsideSession):
            session.get(User, 1)
    with sessions(key=1, model=User) as session:
        assert session.get(User, 1) is None
    with pytest.raises(errors.UnknownKeyspace):
        sessions(key=1, keyspace="nope")


def test_bad_arguments_are_refused(shop: Shop) -> None:
    for options in ({"refresh": "sometimes"}, {"reads": "any"}, {"poll_seconds": 0}):
        with pytest.raises(errors.BadOption):
            Cluster.connect(shop.dsns.catalog, **options)
    sessions = shop.connect().sessionmaker()
    for given in ({"twophase": True}, {"bind": sa.create_engine("sqlite://")}, {"reads": "any"}, {"keyspace": "users"}):
        with pytest.raises(errors.BadOption):
            sessions(**given)
    with pytest.raises(errors.CannotConnect):
        Cluster.connect("host=127.0.0.1 port=1 dbname=x user=x")
    with pytest.raises(errors.UnknownShard):
        shop.connect().engine("s9")


def test_nothing_secret_is_shown(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "shardwright")
    secret = "hunter2secret"
    with pytest.raises(errors.CannotConnect) as caught:
        Cluster.connect(f"host=127.0.0.1 port=1 dbname=x user=x password={secret}")
    assert secret not in f"{caught.value!r}{caught.value.as_json()}{caplog.text}"
    cluster = shop.connect()
    assert secret not in repr(cluster)


def test_a_role_with_few_rights_is_enough(shop: Shop) -> None:
    """An application's role: its tables, and nothing of shardwright's but what everybody may use."""
    role = f"app_{shop.dsns.shards['s1'].rsplit('_', 1)[-1]}"
    shop.catalog.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        shop.catalog.execute(f"GRANT USAGE ON SCHEMA shardwright TO {role}".encode())
        shop.catalog.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA shardwright TO {role}".encode())
        for name, dsn in shop.dsns.shards.items():
            shop.shard(name).execute(f"GRANT ALL ON users, orders TO {role}".encode())
            as_role = psycopg.conninfo.make_conninfo(dsn, user=role)
            shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = %s", (as_role, name))
        catalog = psycopg.conninfo.make_conninfo(shop.dsns.catalog, user=role)
        with Cluster.connect(catalog, refresh="poll", poll_seconds=0.05, application="humble") as cluster:
            key = shop.key_on("s1")
            cluster.run(key, lambda session: session.add(User(id=key, name="x")))
            with cluster.sessionmaker()(isolation_level="REPEATABLE READ") as session:
                assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
                assert session.scalar(sa.text("SELECT current_user"), bind_arguments={"shard": "s1"}) == role
            version = cluster.map.version
            shop.hand_over(key, "s2")
            until(lambda: cluster.map.version == version + 1, "the map was not followed")
        assert routers(shop) == []
    finally:
        for connection in (shop.catalog, shop.shard("s1"), shop.shard("s2")):
            connection.execute(f"DROP OWNED BY {role}".encode())
        shop.catalog.execute(f"DROP ROLE {role}".encode())
