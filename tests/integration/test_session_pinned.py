"""Sessions that are pinned to one key."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError

from fix_sessions import Country, Order, Setting, Shop, User, in_thread, until
from shardwright import ShardSession, errors

pytestmark = [pytest.mark.every_driver, pytest.mark.newest_postgres]

LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1397249860 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
)
HELD, WAITING = LOCKS + "AND granted AND objid = %s", LOCKS + "AND NOT granted"


def test_a_pinned_session_writes_and_reads_on_its_shard(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    for shard in ("s1", "s2"):
        key = shop.key_on(shard)
        with sessions(key=key) as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=1, amount=10), Order(n=2, amount=20)]))
            session.commit()
        assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == f"user {key}"
        with sessions(key=key) as session:
            user = session.get_one(User, key)
            assert [order.amount for order in user.orders] == [10, 20]
            assert session.scalar(sa.select(sa.func.sum(Order.amount)).where(Order.user_id == key)) == 30
            user.name = "changed"
            session.commit()
            assert user.name == "changed"
            session.delete(user.orders[0])
            session.commit()
        assert shop.ask(shard, "SELECT count(*) FROM orders") == 1


FIRST: dict[str, Callable[[ShardSession, int], Any]] = {
    "select": lambda session, key: session.scalar(sa.select(User.name).where(User.id == key)),
    "text": lambda session, key: session.scalar(sa.text("SELECT name FROM users WHERE id = :key"), {"key": key}),
    "get": lambda session, key: session.get_one(User, key).name,
    "query": lambda session, key: session.query(User).filter_by(id=key).one().name,
    "connection": lambda session, key: session.connection().scalar(sa.select(User.name).where(User.id == key)),
    "update": lambda session, key: session.scalar(
        sa.update(User).where(User.id == key).values(score=1).returning(User.name)
    ),
    "flush": lambda session, key: (session.add(Order(user_id=key, n=1, amount=1)), session.flush(), "name")[-1],
    "savepoint": lambda session, key: _in_savepoint(session, key),
    "streamed": lambda session, key: next(
        iter(session.scalars(sa.select(User.name).where(User.id == key).execution_options(yield_per=10)))
    ),
    "many": lambda session, key: (
        session.execute(sa.insert(Order), [{"user_id": key, "n": n, "amount": n} for n in range(3)]),
        "name",
    )[-1],
}


def _in_savepoint(session: ShardSession, key: int) -> str:
    with session.begin_nested():
        return session.scalar(sa.select(User.name).where(User.id == key)) or ""


def test_a_stale_router_is_refused_and_begins_again_on_the_right_shard(shop: Shop) -> None:
    shop.split(32)
    for at, (first, work) in enumerate(FIRST.items()):
        cluster = shop.connect()
        key = next(k for k in range(1, 10_000) if shop.map.route("users", k).point // 128 == at)
        assert cluster.map.route("users", key).shard == "s1"
        sessions = cluster.sessionmaker()
        with sessions.begin() as session:
            session.add(User(id=key, name="name"))
        number = shop.hand_over(key, "s2")
        shop.shard("s2").execute("UPDATE users SET name = 'new name' WHERE id = %s", (key,))
        before = cluster.map.version
        with sessions(key=key) as session:
            assert work(session, key) == ("name" if first in ("flush", "many") else "new name"), first
            assert shop.ask("s2", HELD, number) == 1, first
            assert shop.ask("s1", HELD, number) == 0, first
            session.commit()
        assert cluster.map.version == before + 1
        with sessions(key=key) as session:
            assert FIRST["get"](session, key) == "new name"


def test_every_isolation_level_is_checked(shop: Shop) -> None:
    key = shop.key_on("s1")
    stale = shop.connect()
    with stale.sessionmaker().begin() as session:
        session.add(User(id=key, name="name"))
    number = shop.hand_over(key, "s2")
    asked = sa.text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    for isolation in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        for read_only in (False, True):
            with stale.sessionmaker()(key=key, isolation_level=isolation, read_only=read_only) as session:
                assert session.execute(asked).one() == (isolation.lower(), "on" if read_only else "off")
                assert shop.ask("s2", HELD, number) == 1
                if read_only:
                    with pytest.raises(DBAPIError, match="read-only"):
                        session.execute(sa.text("DELETE FROM users"))
            stale = shop.connect()


def test_options_of_a_connection_are_honoured(shop: Shop) -> None:
    key = shop.key_on("s1")
    asked = sa.text("SELECT current_setting('transaction_isolation')")
    with shop.connect().sessionmaker()(key=key) as session:
        connection = session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        assert connection.scalar(asked) == "serializable"
        session.commit()
        assert session.scalar(asked) == "read committed"
        session.rollback()
        with pytest.raises(errors.BadOption, match="AUTOCOMMIT"):
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})


def test_a_fenced_range_is_waited_for(shop: Shop) -> None:
    cluster = shop.connect(map_wait=20)
    key = shop.key_on("s1")
    with cluster.sessionmaker().begin() as session:
        session.add(User(id=key, name="name"))
    shop.fence(key)

    def work() -> str:
        with cluster.sessionmaker()(key=key) as session:
            return session.get_one(User, key).name

    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardwright router test' AND query_start > %s"
    )
    start = shop.catalog.execute("SELECT clock_timestamp()").fetchone()
    assert start is not None
    with in_thread(work) as found:
        # It has looked for a newer map, and found none.
        until(lambda: (shop.catalog.execute(asked, start).fetchone() or (0,))[0], "nobody looked for a newer map")
        assert found["thread"].is_alive()
        shop.unfence(key)
    assert found["result"] == "name"


def test_a_handover_under_way_is_waited_for(shop: Shop) -> None:
    cluster = shop.connect(map_wait=20)
    key = shop.key_on("s1")
    with cluster.sessionmaker().begin() as session:
        session.add(User(id=key, name="name"))
    shop.importing(key, "s2")
    number = shop.fence(key)
    shop.commit_map(key, "s2")

    def work() -> str:
        with cluster.sessionmaker()(key=key) as session:
            user = session.get_one(User, key)
            user.score = 7
            session.commit()
            return user.name

    with in_thread(work) as found:
        # The new owner is known, and has not opened yet.
        until(lambda: cluster.map.route("users", key).shard == "s2", "the map was not refreshed")
        assert found["thread"].is_alive()
        shop.open(number, "s2")
    assert found.get("result") == "name", found
    assert shop.ask("s2", "SELECT score FROM users WHERE id = %s", key) == 7


def test_waiting_for_a_range_is_bounded(shop: Shop) -> None:
    key = shop.key_on("s1")
    shop.fence(key)
    for first in ("select", "flush"):
        with shop.connect(map_wait=0.2).sessionmaker()(key=key) as session, pytest.raises(errors.MapTimeout) as caught:
            FIRST[first](session, key)
        assert caught.value.retriable
        assert caught.value.facts["shard"] == "s1"


def test_a_lock_that_is_waited_for_is_seen_under_a_snapshot(shop: Shop) -> None:
    """The range moves while the check waits for its lock: REPEATABLE READ would have to lie, so it begins again."""
    cluster = shop.connect()
    key = shop.key_on("s1")
    with cluster.sessionmaker().begin() as session:
        session.add(User(id=key, name="name"))
    number = cluster.map.route("users", key).range_id
    shop.importing(key, "s2")

    def work() -> str:
        with cluster.sessionmaker()(key=key, isolation_level="REPEATABLE READ") as session:
            return session.get_one(User, key).name

    with psycopg.connect(shop.dsns.shards["s1"]) as switch:
        switch.execute("SELECT pg_advisory_xact_lock(1397249860, %s)", (number,))
        with in_thread(work) as found:
            until(lambda: shop.ask("s1", WAITING), "the session does not wait for the switch")
            switch.execute("UPDATE shardwright.ranges SET state = 'moved' WHERE id = %s", (number,))
            shop.commit_map(key, "s2")
            shop.open(number, "s2")
            switch.commit()
    assert found.get("result") == "name", found


def test_keys_of_other_ranges_are_refused(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    own = cluster.map.route("users", key).range_id
    others = [other for other in range(1, 200) if cluster.map.route("users", other).range_id != own]
    beside = next(o for o in range(key + 1, 10_000) if cluster.map.route("users", o).range_id == own)
    same_shard = next(other for other in others if cluster.map.route("users", other).shard == "s1")
    for other in (same_shard, shop.key_on("s2")):
        refused: list[Callable[[ShardSession], Any]] = [
            lambda s, o=other: s.scalars(sa.select(User).where(User.id == o)),
            lambda s, o=other: s.get(User, o),
            lambda s, o=other: s.execute(sa.select(User).where(User.id.in_([key, o]))),
            lambda s, o=other: s.execute(sa.update(User).where(User.id == o).values(name="x")),
            lambda s, o=other: s.execute(sa.insert(User), [{"id": key, "name": "x"}, {"id": o, "name": "x"}]),
            lambda s, o=other: s.execute(sa.insert(User).values(id=o, name="x")),
            lambda s, o=other: (s.add(User(id=o, name="x")), s.flush()),
            lambda s, o=other: s.merge(User(id=o, name="x")),
            lambda s, o=other: s.bulk_insert_mappings(User, [{"id": o, "name": "x"}]),
            lambda s, o=other: s.bulk_save_objects([User(id=o, name="x")]),
        ]
        for number, work in enumerate(refused):
            with cluster.sessionmaker()(key=key) as session, pytest.raises(errors.KeyOutsideSession) as caught:
                work(session)
                pytest.fail(f"case {number}")
            assert str(other) in caught.value.message
            assert str(key) in caught.value.message
    # Another key of the same range is as good as the session's own.
    with cluster.sessionmaker()(key=key) as session:
        session.add_all([User(id=key, name="a"), User(id=beside, name="b")])
        session.commit()
        assert session.scalar(sa.select(sa.func.count()).where(User.id.in_([key, beside]))) == 2


def test_the_guard_is_the_last_to_refuse(shop: Shop) -> None:
    """text() is not looked through; the shard is not fooled."""
    cluster = shop.connect()
    key, other = shop.key_on("s1"), shop.key_on("s2")
    with cluster.sessionmaker()(key=key) as session, pytest.raises(errors.KeyOutsideSession, match="does not serve"):
        session.execute(sa.text("INSERT INTO users (id, name) VALUES (:id, 'x')"), {"id": other})
    with cluster.sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        session.commit()
        with pytest.raises(errors.WriteRefused, match="shard key"):
            session.execute(sa.text("UPDATE users SET id = id + 1"))
        session.rollback()
        user = session.get_one(User, key)
        user.id = key + 1
        with pytest.raises(errors.WriteRefused, match="shard key"):
            session.flush()


def test_statements_without_the_key_are_refused(shop: Shop) -> None:
    with shop.connect().sessionmaker()(key=shop.key_on("s1")) as session:
        for statement in (
            sa.select(User),
            sa.update(User).values(name="x"),
            sa.select(User, Order).where(User.id == 1),
        ):
            with pytest.raises((errors.NoShardKey, errors.KeyOutsideSession)):
                session.execute(statement)
        session.add(User(name="x"))
        with pytest.raises(errors.NoShardKey, match="is not set"):
            session.flush()


def test_other_kinds_of_tables(shop: Shop) -> None:
    cluster = shop.connect()
    with cluster.sessionmaker().begin() as session:
        session.add(Country(code="de", name="Germany"))
    with cluster.sessionmaker().begin() as session:
        session.add(Setting(name="a", value="b"))
    shop.wait_for_references()
    for shard, may_write, sees_settings in (("s1", True, False), ("s2", False, True)):
        key = shop.key_on(shard)
        with cluster.sessionmaker()(key=key) as session:
            session.add(User(id=key, name="x", country="de"))
            session.flush()
            joined = sa.select(Country.name).join(User, User.country == Country.code).where(User.id == key)
            assert session.scalar(joined) == "Germany"
            session.add(Country(code=f"c{key}", name="x"))
            with (
                contextlib.nullcontext()
                if may_write
                else pytest.raises(errors.WriteRefused, match="written on shard s1")
            ):
                session.flush()
            session.rollback()
            with (
                contextlib.nullcontext() if sees_settings else pytest.raises(errors.KeyOutsideSession, match="lives on")
            ):
                assert session.scalar(sa.select(Setting.value)) == "b"


def test_a_session_goes_on_after_an_error(shop: Shop) -> None:
    key = shop.key_on("s1")
    number = shop.map.route("users", key).range_id
    with shop.connect().sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        session.commit()
        session.execute(sa.select(User).where(User.id == key))
        session.expunge_all()
        session.add(User(id=key, name="again"))
        with pytest.raises(IntegrityError):
            session.commit()
        with pytest.raises(PendingRollbackError):
            session.get(User, key)
        session.rollback()
        assert session.get_one(User, key).name == "x"
        assert shop.ask("s1", HELD, number) == 1
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(sa.insert(User).values(id=key, name="again"))
        assert session.get_one(User, key).name == "x"
        session.commit()


def test_a_failed_transaction_cannot_be_committed(shop: Shop) -> None:
    """The server answers COMMIT of a failed transaction with ROLLBACK, and SQLAlchemy would say nothing."""
    key = shop.key_on("s1")
    with shop.connect().sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        session.flush()
        with pytest.raises(DBAPIError):
            session.execute(sa.text("SELECT 1 / 0"))
        with pytest.raises(DBAPIError, match="cannot be committed"):
            session.commit()
        session.rollback()
    assert shop.ask("s1", "SELECT count(*) FROM users") == 0


def test_relaxed_sessions_ask_nobody(shop: Shop) -> None:
    cluster = shop.connect(reads="relaxed")
    key = shop.key_on("s1")
    number = cluster.map.route("users", key).range_id
    with cluster.sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        session.commit()
        assert session.get_one(User, key).name == "x"
        assert shop.ask("s1", HELD, number) == 0
    shop.hand_over(key, "s2")
    with cluster.sessionmaker()(key=key) as session:
        # As old as this router's map; a write is refused nevertheless.
        assert session.get_one(User, key).name == "x"
        session.get_one(User, key).name = "y"
        with pytest.raises(errors.ShardMoved) as caught:
            session.commit()
        assert caught.value.retriable
    # The refusal has brought the map up to date.
    with cluster.sessionmaker()(key=key) as session:
        session.get_one(User, key).name = "y"
        session.commit()
    assert shop.ask("s2", "SELECT name FROM users WHERE id = %s", key) == "y"


def test_bad_keys_are_refused(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    for key in (None, "1", True, 1.0, 2**63, Decimal(1)):
        with pytest.raises(errors.BadKey):
            sessions(key=key)
        with sessions(key=1) as session, pytest.raises(errors.BadKey):
            session.execute(sa.select(User).where(User.id == sa.bindparam("k")), {"k": key})


@pytest.mark.every_driver(tasks="slow")
def test_many_threads_share_small_pools(shop: Shop) -> None:
    cluster = shop.connect(pool_size=5, max_overflow=0)
    sessions = cluster.sessionmaker()
    keys = list(range(1, 51))

    def work(key: int) -> list[int]:
        with sessions(key=key) as session:
            session.add(User(id=key, name=f"user {key}"))
            session.commit()
        found = []
        for n in range(20):
            with sessions(key=key) as session, session.begin():
                session.add(Order(user_id=key, n=n, amount=n))
                found.append(session.scalars(sa.select(User.id).where(User.id == key)).one())
        return found

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(in_thread(lambda key=key: work(key))) for key in keys]
    for key, found in zip(keys, running, strict=True):
        assert found.get("result") == [key] * 20, found
    for shard in ("s1", "s2"):
        mine = [key for key in keys if cluster.map.route("users", key).shard == shard]
        assert shop.ask(shard, "SELECT count(*) FROM orders") == 20 * len(mine)
        assert shop.ask(shard, "SELECT array_agg(id ORDER BY id) FROM users") == mine
        assert cluster.engine(shard).pool.checkedout() == 0  # type: ignore[attr-defined]
