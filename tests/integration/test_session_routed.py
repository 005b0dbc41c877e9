"""Sessions without a key: each statement and each object finds its shard."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import joinedload, selectinload

from fix_sessions import Country, Order, Setting, Shop, User, in_thread, until
from shardwright import ShardSession, errors

pytestmark = [pytest.mark.every_driver(tasks="slow"), pytest.mark.newest_postgres]

LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1397249860 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND objid = %s"
)


def fill(shop: Shop, keys: list[int]) -> None:
    sessions = shop.connect().sessionmaker()
    for key in keys:
        with sessions.begin() as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=n, amount=n) for n in range(3)]))


def test_objects_and_statements_find_their_shards(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    keys = [shop.key_on("s1"), shop.key_on("s2")]
    fill(shop, keys)
    assert [shop.ask(name, "SELECT id FROM users") for name in ("s1", "s2")] == keys
    with sessions() as session:
        assert [session.get_one(User, key).name for key in keys] == [f"user {key}" for key in keys]
        assert [len(session.get_one(User, key).orders) for key in keys] == [3, 3]
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 2
        found = session.scalars(sa.select(User).order_by(User.id.desc())).all()
        assert [user.id for user in found] == sorted(keys, reverse=True)
        assert session.scalar(sa.select(sa.func.sum(Order.amount))) == 6
        for options in (joinedload(User.orders), selectinload(User.orders)):
            session.expire_all()
            loaded = session.scalars(sa.select(User).options(options).order_by(User.id)).unique().all()
            assert [len(user.orders) for user in loaded] == [3, 3]
        assert len(session.query(User).order_by(sa.func.lower(User.name).collate("C")).all()) == 2
        assert {user.id for user in session.scalars(sa.select(User).where(User.id.in_(keys)))} == set(keys)


def test_objects_keep_their_shard(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    keys = [shop.key_on("s1"), shop.key_on("s2")]
    fill(shop, keys)
    with sessions() as session:
        users = session.scalars(sa.select(User).order_by(User.id)).all()
        session.commit()
        # Expired: each is loaded again from its own shard.
        assert [user.name for user in users] == [f"user {user.id}" for user in users]
        session.refresh(users[1])
        users[0].name = "one"
        session.commit()
        session.delete(users[1].orders[0])
        session.commit()
        kept = pickle.dumps(users[0])
        session.expunge_all()
    with sessions.begin() as session:
        merged = session.merge(pickle.loads(kept))
        merged.score = 5
        where = shop.map.route("users", merged.id).shard
    assert shop.ask(where, "SELECT score FROM users WHERE name = 'one'") == 5
    assert sum(shop.ask(name, "SELECT count(*) FROM orders") for name in ("s1", "s2")) == 5


def test_core_and_bulk_statements_go_where_their_keys_are(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    for shard in ("s1", "s2"):
        key, beside = shop.key_on(shard), shop.key_on(shard, 1)
        writes: list[Callable[[ShardSession], Any]] = [
            lambda s, k=key: s.execute(sa.insert(User).values(id=k, name="a")),
            lambda s, k=key, b=beside: s.execute(sa.insert(User), [{"id": k, "name": "a"}, {"id": b, "name": "b"}]),
            lambda s, k=key, b=beside: s.execute(
                sa.insert(User.__table__), [{"id": k, "name": "a"}, {"id": b, "name": "b"}]
            ),
            lambda s, k=key: s.scalars(sa.insert(User).returning(User), [{"id": k, "name": "a"}]).one(),
            lambda s, k=key: s.bulk_insert_mappings(User, [{"id": k, "name": "a"}]),
            lambda s, k=key: s.bulk_save_objects([User(id=k, name="a")]),
            lambda s, k=key: s.add(User(id=k, name="a")),
            lambda s, k=key: s.merge(User(id=k, name="a")),
        ]
        for write in writes:
            with sessions.begin() as session:
                write(session)
            assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == "a"
            with sessions.begin() as session:
                assert session.execute(sa.update(User).where(User.id == key).values(score=1)).rowcount == 1
                session.execute(sa.update(User), [{"id": key, "score": 2}])
                session.query(User).filter(User.id == key).update({"score": User.score + 1})
            assert shop.ask(shard, "SELECT score FROM users WHERE id = %s", key) == 3
            with sessions.begin() as session:
                session.execute(sa.delete(User).where(User.id.in_([key, beside])))
            assert shop.ask(shard, "SELECT count(*) FROM users") == 0


def test_a_transaction_writes_on_one_shard(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    one, other = shop.key_on("s1"), shop.key_on("s2")
    writes: list[Callable[[ShardSession, int], Any]] = [
        lambda session, key: (session.add(User(id=key, name="x")), session.flush()),
        lambda session, key: session.execute(sa.insert(User).values(id=key, name="x")),
        lambda session, key: session.execute(sa.update(User).where(User.id == key).values(name="x")),
        lambda session, key: session.bulk_insert_mappings(User, [{"id": key, "name": "x"}]),
        lambda session, key: session.execute(
            sa.text("INSERT INTO users (id, name) VALUES (:id, 'x')"), {"id": key}, bind_arguments={"key": key}
        ),
    ]
    for first in writes:
        for second in writes:
            with sessions() as session:
                first(session, one)
                session.execute(sa.select(sa.func.count()).select_from(User))
                with pytest.raises(errors.CrossShardTransaction):
                    second(session, other)
    with sessions() as session:
        session.add_all([User(id=one, name="x"), User(id=other, name="x")])
        with pytest.raises(errors.CrossShardTransaction):
            session.commit()
    with sessions() as session, pytest.raises(errors.CrossShardTransaction):
        session.execute(sa.insert(User), [{"id": one, "name": "x"}, {"id": other, "name": "x"}])
    with sessions() as session:
        session.add(User(id=one, name="x"))
        # What is pending is flushed first, to another shard.
        with pytest.raises(errors.CrossShardTransaction):
            session.execute(sa.update(User).where(User.id == other).values(name="y"))
    with sessions() as session:
        session.execute(sa.text("SELECT set_config('a.b', '1', true)"), bind_arguments={"shard": "s1"})
        session.execute(sa.select(sa.func.pg_current_xact_id()), bind_arguments={"shard": "s1"})
        session.execute(sa.select(sa.func.pg_current_xact_id()), bind_arguments={"shard": "s2"})
        # Written behind SQLAlchemy's back: noticed at COMMIT at the latest.
        with pytest.raises(errors.CrossShardTransaction):
            session.commit()
    assert [shop.ask(name, "SELECT count(*) FROM users") for name in ("s1", "s2")] == [0, 0]


def test_what_names_no_key_is_refused(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    refused: list[tuple[Callable[[ShardSession], Any], str]] = [
        (lambda s: s.execute(sa.update(User).values(name="x")), "changes or locks rows"),
        (lambda s: s.execute(sa.delete(User).where(User.name == "x")), "changes or locks rows"),
        (lambda s: s.execute(sa.select(User).with_for_update()), "changes or locks rows"),
        (lambda s: s.execute(sa.insert(User), [{"name": "x"}]), "give no id"),
        (lambda s: s.execute(sa.text("SELECT 1")), "is text"),
        (lambda s: (s.add(User(name="x")), s.flush()), "is not set"),
        (lambda s: s.connection(), "no single shard"),
        (lambda s: s.bulk_insert_mappings(User, [{"name": "x"}]), "gives no id"),
    ]
    for work, why in refused:
        with sessions() as session, pytest.raises(errors.NoShardKey, match=why):
            work(session)


def test_the_caller_may_name_key_or_shard(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    key = shop.key_on("s2")
    name = psycopg.conninfo.conninfo_to_dict(shop.dsns.shards["s2"])["dbname"]
    asked = sa.text("SELECT current_database()")
    for given in ({"key": key}, {"shard": "s2"}, {"key": key, "keyspace": "users"}):
        with sessions() as session:
            assert session.scalar(asked, bind_arguments=given) == name
            assert session.connection(bind_arguments=given).scalar(asked) == name
        with sessions() as session:
            assert session.connection(bind_arguments=given).scalar(asked) == name
    with sessions() as session, pytest.raises(errors.UnknownShard):
        session.execute(asked, bind_arguments={"shard": "s9"})
    with sessions() as session, pytest.raises(errors.BadKey):
        session.execute(asked, bind_arguments={"key": "1"})


def test_other_kinds_of_tables(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker()
    with sessions.begin() as session:
        session.add(Country(code="de", name="Germany"))
        session.execute(sa.insert(Country).values(code="fr", name="France"))
    with sessions.begin() as session:
        session.add(Setting(name="a", value="b"))
    assert shop.ask("s1", "SELECT count(*) FROM countries") == 2
    assert shop.ask("s2", "SELECT count(*) FROM settings") == 1
    shop.wait_for_references()
    key = shop.key_on("s2")
    with sessions.begin() as session:
        session.add(User(id=key, name="x", country="fr"))
        assert session.scalar(sa.select(sa.func.count()).select_from(Country)) == 2
        assert session.scalar(sa.select(Setting.value)) == "b"
        both = sa.select(User.name, Setting.value).join(Setting, sa.true()).where(User.id == key)
        assert session.execute(both).one() == ("x", "b")
        session.add(Country(code="it", name="Italy"))
        with pytest.raises(errors.CrossShardTransaction):
            session.flush()
        session.rollback()
    with sessions() as session, pytest.raises(errors.NotMergeable, match="shard s2"):
        session.execute(sa.select(User.name, Setting.value).where(User.id == shop.key_on("s1")))
    with sessions() as session, pytest.raises(errors.NotMergeable, match="shard s2"):
        session.execute(sa.select(User.name, Setting.value))


WORK: dict[str, Callable[[ShardSession, int], Any]] = {
    "select": lambda session, key: session.scalar(sa.select(User.name).where(User.id == key)),
    "get": lambda session, key: session.get_one(User, key).name,
    "some": lambda session, key: session.scalars(sa.select(User).where(User.id.in_([key, 1, 2, 3, 4, 5]))).first(),
    "all": lambda session, key: session.scalar(sa.select(sa.func.count()).select_from(User)),
    "update": lambda session, key: session.execute(sa.update(User).where(User.id == key).values(score=1)).rowcount,
    "flush": lambda session, key: (session.add(Order(user_id=key, n=9, amount=1)), session.flush()),
    "many": lambda session, key: session.execute(
        sa.insert(Order), [{"user_id": key, "n": n, "amount": 1} for n in (10, 11)]
    ),
    "connection": lambda session, key: session.connection(bind_arguments={"key": key}).scalar(sa.text("SELECT 1")),
}


def test_a_stale_router_is_refused_and_goes_to_the_right_shard(shop: Shop) -> None:
    shop.split(32)
    for at, (name, work) in enumerate(WORK.items()):
        key = next(k for k in range(10, 10_000) if shop.map.route("users", k).point // 128 == at)
        fill(shop, [key])
        cluster = shop.connect()
        number = shop.hand_over(key, "s2")
        with cluster.sessionmaker()() as session:
            found = work(session, key)
            assert found not in (0, None) or name in ("flush", "many")
            if name not in ("some", "all"):
                assert shop.ask("s2", LOCKS, number) == 1, name
                assert shop.ask("s1", LOCKS, number) == 0, name
            session.commit()


def test_a_stale_router_learns_from_a_scatter(shop: Shop) -> None:
    """What was entered as a whole serves other ranges than the map says: the same transaction goes on by a newer one."""
    key = shop.key_on("s1")
    fill(shop, [key])
    cluster = shop.connect()
    shop.hand_over(key, "s2")
    with cluster.sessionmaker()() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
        assert session.get_one(User, key).id == key
        assert session.scalars(sa.select(User).where(User.id.in_([key, shop.key_on("s2", 5)]))).one().id == key


def test_a_range_that_moves_on_the_way_is_told(shop: Shop) -> None:
    """The first key's range is held; the second one's moved before it was entered, and the transaction has had effects."""
    cluster = shop.connect()
    first = shop.key_on("s1")
    own = shop.map.route("users", first).range_id
    second = next(k for k in range(1, 9999) if (r := shop.map.route("users", k)).shard == "s1" and r.range_id != own)
    fill(shop, [first, second])
    sessions = cluster.sessionmaker()
    for work in (WORK["get"], WORK["flush"], WORK["update"]):
        with sessions() as session:
            session.get_one(User, first).score = 1
            session.flush()
            if cluster.map.route("users", second).shard == "s1":
                shop.hand_over(second, "s2")
                with pytest.raises(errors.ShardMoved) as caught:
                    work(session, second)
                assert caught.value.retriable
                session.rollback()
        with sessions() as session:
            session.get_one(User, second)
            session.commit()
        shop.hand_over(second, "s1")
        cluster.refresh()


def test_a_savepoint_that_is_undone_gives_its_ranges_back(shop: Shop) -> None:
    cluster = shop.connect()
    first = shop.key_on("s1")
    own = shop.map.route("users", first).range_id
    second = next(k for k in range(1, 9999) if (r := shop.map.route("users", k)).shard == "s1" and r.range_id != own)
    other = shop.map.route("users", second).range_id
    with cluster.sessionmaker()() as session:
        session.execute(sa.select(User).where(User.id == first))
        savepoint = session.begin_nested()
        session.execute(sa.select(User).where(User.id == first))
        session.execute(sa.select(User).where(User.id == second))
        assert shop.ask("s1", LOCKS, other) == 1
        savepoint.rollback()
        assert shop.ask("s1", LOCKS, other) == 0
        assert shop.ask("s1", LOCKS, own) == 1
        session.execute(sa.select(User).where(User.id == second))
        assert shop.ask("s1", LOCKS, other) == 1


def test_a_scatter_waits_until_every_point_is_served(shop: Shop) -> None:
    cluster = shop.connect(map_wait=20)
    key = shop.key_on("s1")
    fill(shop, [key, shop.key_on("s2")])
    shop.importing(key, "s2")
    number = shop.fence(key)
    counted = sa.select(sa.func.count()).select_from(User)

    def work() -> int:
        with cluster.sessionmaker()() as session:
            return session.scalar(counted) or 0

    with shop.connect(map_wait=0.2).sessionmaker()() as session, pytest.raises(errors.MapTimeout):
        session.execute(counted)
    with in_thread(work) as found:
        shop.commit_map(key, "s2")
        until(lambda: cluster.map.route("users", key).shard == "s2", "the map was not refreshed")
        assert found["thread"].is_alive()
        shop.open(number, "s2")
        shop.shard("s1").execute("UPDATE shardwright.ranges SET state = 'moved' WHERE id = %s", (number,))
    assert found.get("result") == 2, found


def test_no_switch_runs_between_the_answers(shop: Shop) -> None:
    with shop.connect().sessionmaker()() as session:
        session.execute(sa.select(User).order_by(User.id))
        for name in ("s1", "s2"):
            assert shop.ask(name, "SELECT pg_try_advisory_xact_lock(1397249860, 0)") is False
        session.commit()
        for name in ("s1", "s2"):
            assert shop.ask(name, "SELECT pg_try_advisory_xact_lock(1397249860, 0)") is True


def test_every_isolation_level_scatters(shop: Shop) -> None:
    keys = [shop.key_on("s1"), shop.key_on("s2")]
    fill(shop, keys)
    sessions = shop.connect().sessionmaker()
    for isolation in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        for read_only in (False, True):
            with sessions(isolation_level=isolation, read_only=read_only) as session:
                assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 2
                assert len(session.scalars(sa.select(User).where(User.id.in_(keys))).all()) == 2
            with sessions(isolation_level=isolation, read_only=read_only) as session:
                assert session.get_one(User, keys[0])
                narrow = read_only and isolation != "READ COMMITTED"
                other = shop.key_on("s1", 3)
                moved = shop.map.route("users", other).range_id != shop.map.route("users", keys[0]).range_id
                with pytest.raises(errors.BadOption) if narrow and moved else contextlib.nullcontext():
                    session.get(User, other)


def test_many_threads_share_small_pools(shop: Shop) -> None:
    cluster = shop.connect(pool_size=3, max_overflow=0)
    sessions = cluster.sessionmaker()
    keys = list(range(1, 21))
    fill(shop, keys)

    def work(key: int) -> set[int]:
        counts = set()
        for _ in range(10):
            with sessions() as session:
                counts.add(session.scalar(sa.select(sa.func.count()).select_from(User)) or 0)
                assert [user.id for user in session.scalars(sa.select(User).order_by(User.id))] == keys
            with sessions.begin() as session:
                session.get_one(User, key).score = key
        return counts

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(in_thread(lambda key=key: work(key))) for key in keys]
    for found in running:
        assert found.get("result") == {20}, found
    for shard in ("s1", "s2"):
        assert cluster.engine(shard).pool.checkedout() == 0  # type: ignore[attr-defined]
