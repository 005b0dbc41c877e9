"""Many objects by primary key, with one statement a shard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from fix_sessions import Country, Order, Shop, User
from shardwright import errors
from shardwright.session import Cluster

pytestmark = pytest.mark.newest_postgres


def fill(shop: Shop, count: int) -> list[int]:
    sessions = shop.connect().sessionmaker()
    given = [shop.key_on(name, nth) for nth in range(count) for name in ("s2", "s1")]
    for key in given:
        with sessions(key=key) as session, session.begin():
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=n, amount=n) for n in (1, 2)]))
    return given


@contextmanager
def statements(cluster: Cluster) -> Iterator[list[str]]:
    """The SELECTs that are sent to any shard meanwhile."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.lstrip().startswith("SELECT") and "shardwright" not in statement:
            sent.append(statement)

    engines = [cluster.engine(name) for name in ("s1", "s2")]
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", note)


def test_a_session_gets_many(shop: Shop) -> None:
    cluster = shop.connect()
    given = fill(shop, 3)
    # Who listens before a connection is made is told of what goes over it.
    with statements(cluster) as sent, cluster.sessionmaker()() as session:
        known = session.get_one(User, given[0])
        sent.clear()
        asked = [given[3], 99_999, *given, given[0]]
        found = session.get_many(User, asked)
        assert [one and one.id for one in found] == [given[3], None, *given, given[0]]
        assert found[2] is known
        assert len(sent) == 2
        with statements(cluster) as sent:
            pairs = session.get_many(Order, [(key, n) for key in given for n in (2, 1, 3)])
            assert [one and (one.user_id, one.n) for one in pairs] == [
                (key, n) if n < 3 else None for key in given for n in (2, 1, 3)
            ]
            assert len(sent) == 2
            assert session.get_many(Order, [(given[0], 1)])[0] is pairs[1]
            assert len(sent) == 2
        session.expire(known)
        assert session.get_many(User, [given[0]]) == [known]
        for bad in [None, (1, 2), (None,), ()]:
            with pytest.raises(errors.BadKey):
                session.get_many(User, [bad])
        with pytest.raises(errors.BadKey):
            session.get_many(User, ["1"])
    with cluster.sessionmaker()(key=given[0]) as session:
        assert [one and one.name for one in session.get_many(User, [given[0]])] == [f"user {given[0]}"]
        with pytest.raises(errors.KeyOutsideSession):
            session.get_many(User, given)


def test_more_keys_than_a_statement_names(shop: Shop) -> None:
    cluster = shop.connect()
    with cluster.sessionmaker().begin() as session:
        session.add_all([Country(code=f"{n:03}", name="x") for n in range(250)])
    with cluster.sessionmaker()() as session:
        codes = [f"{n:03}" for n in range(250)]
        with statements(cluster) as sent:
            # On the shard where they were written.
            session.connection(bind_arguments={"shard": "s1"})
            found = session.get_many(Country, codes)
        assert [one and one.code for one in found] == codes
        assert len(sent) == 3


def test_a_loader_fetches_what_was_asked_for_together(shop: Shop) -> None:
    cluster = shop.connect()
    given = fill(shop, 3)
    loader = cluster.loader(User)
    with statements(cluster) as sent:
        asked = [loader.load(key) for key in [*given, 99_999, given[0]]]
        assert sent == []
        found = [one.result() for one in asked]
        assert [one and one.id for one in found] == [*given, None, given[0]]
        assert len(sent) == 2
        assert loader.get_many(given[:2])[0] is not found[0]
        assert len(sent) == 4
    assert all(sa.inspect(one).detached for one in found if one is not None)
    with pytest.raises(errors.BadOption):
        cluster.loader(User, window=1)
    with pytest.raises(errors.BadKey):
        loader.load((1, 2))


def test_a_get_sees_what_was_committed_before_it(shop: Shop) -> None:
    cluster = shop.connect()
    given = fill(shop, 1)
    loader = cluster.loader(User)
    early = loader.load(given[0])
    for name in ("new", "newer"):
        shop.shard(shop.map.route("users", given[0]).shard).execute("UPDATE users SET name = %s", (name,))
        found = loader.get(given[0])
        assert found is not None
        assert found.name == name
    first = early.result()
    assert first is not None
    assert first.name == "new"


def test_threads_share_statements(shop: Shop) -> None:
    cluster = shop.connect()
    given = fill(shop, 10)
    loader = cluster.loader(User, window=0.01)
    ready = threading.Barrier(len(given))
    found: dict[int, User | None] = {}

    def ask(key: int) -> None:
        ready.wait(20)
        found[key] = loader.get(key)

    with statements(cluster) as sent:
        threads = [threading.Thread(target=ask, args=(key,)) for key in given]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert {key: one and one.id for key, one in found.items()} == {key: key for key in given}
        assert len(sent) < len(given)


def test_one_shard_that_fails_does_not_spoil_the_others_keys(shop: Shop) -> None:
    cluster = shop.connect()
    one, two = shop.key_on("s1"), shop.key_on("s2")
    fill(shop, 1)
    shop.shard("s1").execute("ALTER TABLE users RENAME TO hidden")
    loader = cluster.loader(User)
    asked = [loader.load(one), loader.load(two)]
    there = asked[1].result()
    assert there is not None
    assert there.id == two
    with pytest.raises(sa.exc.ProgrammingError):
        asked[0].result()


def test_a_loader_follows_its_keys(shop: Shop) -> None:
    cluster = shop.connect()
    given = fill(shop, 4)
    loader = cluster.loader(User)
    moving = shop.key_on("s1")
    shop.hand_over(moving, "s2")
    assert [one and one.id for one in loader.get_many(given)] == given


@pytest.mark.parametrize("how", ["psycopg"])
def test_tasks_share_statements(shop: Shop, how: Any) -> None:
    given = fill(shop, 3)

    async def ask() -> None:
        async with shop.connect() as cluster:
            loader = cluster.async_loader(User, driver=how)
            sent: list[str] = []
            for name in ("s1", "s2"):
                engine = cluster.async_engine(name, how).sync_engine
                sa.event.listen(engine, "before_cursor_execute", lambda c, u, statement, *_: sent.append(statement))
            cancelled = asyncio.create_task(loader.get(given[0]))
            asked = [asyncio.create_task(loader.get(key)) for key in [*given, 99_999]]
            await asyncio.sleep(0)
            cancelled.cancel()
            found = await asyncio.gather(*asked)
            assert [one and one.id for one in found] == [*given, None]
            assert len([one for one in sent if "users" in one]) == 2
            assert [one and one.id for one in await loader.get_many(reversed(given))] == given[::-1]
            with pytest.raises(errors.BadKey):
                await loader.get("1")
            async with cluster.async_sessionmaker(driver=how)() as session:
                assert [one and one.id for one in await session.get_many(User, given)] == given

    asyncio.run(ask())


def test_one_shard_that_fails_does_not_spoil_the_keys_of_other_tasks(shop: Shop) -> None:
    one, two = fill(shop, 1)
    shop.shard(shop.map.route("users", one).shard).execute("ALTER TABLE users RENAME TO hidden")

    async def ask() -> None:
        async with shop.connect() as cluster:
            loader = cluster.async_loader(User)
            failed, found = await asyncio.gather(loader.get(one), loader.get(two), return_exceptions=True)
            assert isinstance(failed, sa.exc.ProgrammingError)
            assert isinstance(found, User)

    asyncio.run(ask())
