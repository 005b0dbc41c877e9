"""Sessions for tasks: what SQLAlchemy's AsyncSession offers, cancellation, event loops. The rest is in test_session_*."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, relationship, selectinload

from fix_sessions import Order, Shop, User, until
from shardwright import AsyncShardSession, Cluster, errors
from shardwright.session import async_cluster
from shardwright.session.pools import AsyncDriver


class Awaitable(AsyncAttrs, DeclarativeBase):
    pass


class Person(Awaitable):
    __table__ = User.__table__.to_metadata(Awaitable.metadata)
    purchases: Mapped[list[Purchase]] = relationship(
        primaryjoin="Person.id == foreign(Purchase.user_id)", order_by="Purchase.n"
    )


class Purchase(Awaitable):
    __table__ = Order.__table__.to_metadata(Awaitable.metadata)


OURS = "FROM pg_stat_activity WHERE application_name = 'shardwright test' AND datname = current_database()"

pytestmark = pytest.mark.parametrize("spoken", [pytest.param("psycopg", id="async"), "asyncpg"])


async def connect(shop: Shop, **options: Any) -> Cluster:
    return await Cluster.aconnect(shop.dsns.catalog, **{"refresh": "never", "application": "test", **options})


async def soon(condition: Callable[[], Any], what: str) -> None:
    """Wait until something is so, without holding up the event loop."""
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(shop: Shop, spoken: AsyncDriver) -> None:
        asyncio.run(test(shop, spoken))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_loop
async def test_a_pinned_session_writes_and_reads_on_its_shard(shop: Shop, spoken: AsyncDriver) -> None:
    async with await connect(shop) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)
        for shard in ("s1", "s2"):
            key = shop.key_on(shard)
            async with sessions(key=key) as session:
                session.add(User(id=key, name=f"user {key}", orders=[Order(n=1, amount=10), Order(n=2, amount=20)]))
                await session.commit()
            assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == f"user {key}"
            async with sessions(key=key) as session, session.begin():
                user = await session.get_one(User, key)
                assert await session.scalar(sa.select(sa.func.sum(Order.amount)).where(Order.user_id == key)) == 30
                user.name = "changed"
            assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == "changed"
            with pytest.raises(errors.KeyOutsideSession):
                async with sessions(key=key) as session:
                    await session.get(User, shop.key_on("s2" if shard == "s1" else "s1"))


@on_loop
async def test_what_async_sessions_offer(shop: Shop, spoken: AsyncDriver) -> None:
    async with await connect(shop) as cluster:
        keys = [shop.key_on("s1"), shop.key_on("s2")]
        for key in keys:
            await cluster.arun(key, lambda session, key=key: _add(session, key), driver=spoken)
        sessions = cluster.async_sessionmaker(driver=spoken, expire_on_commit=False)
        async with sessions() as session:
            assert isinstance(session, AsyncShardSession)
            # Streams: of one shard by a cursor of the server, of several shards merged.
            pinned = await session.stream(sa.select(Order.n).where(Order.user_id == keys[0]).order_by(Order.n))
            assert [row.n async for row in pinned] == list(range(60))
            found = await session.stream_scalars(sa.select(User).order_by(User.id))
            assert [user.id async for user in found] == sorted(keys)
            partitions = (await session.stream(sa.select(User.id).order_by(User.id))).partitions(1)
            assert [[row.id for row in part] async for part in partitions] == [[key] for key in sorted(keys)]
            # Plain functions, attributes that are awaited, and relationships.
            count = await session.run_sync(lambda plain: plain.query(User).filter_by(id=keys[0]).count())
            assert count == 1
            user = await session.get_one(User, keys[1])
            assert len(await session.run_sync(lambda _, user=user: user.orders)) == 60
            loaded = await session.scalars(sa.select(User).options(selectinload(User.orders)).order_by(User.id))
            assert [len(one.orders) for one in loaded] == [60, 60]
            await session.refresh(user)
            assert (await session.merge(User(id=keys[1], name="merged"))) is user
            async with session.begin_nested():
                await session.flush()
            connection = await session.connection({"key": keys[1]})
            assert await connection.scalar(sa.select(User.name).where(User.id == keys[1])) == "merged"
            await session.rollback()
            assert session.explain_route(sa.select(User).where(User.id == keys[1])).shards[0] == "s2"
        async with sessions(key=keys[0], isolation_level="SERIALIZABLE", read_only=True) as session:
            asked = sa.text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
            assert (await session.execute(asked)).one() == ("serializable", "on")
        async with cluster.async_engine("s1", spoken).connect() as connection:
            assert await connection.scalar(sa.text("SELECT count(*) FROM users")) == 1


async def _add(session: AsyncShardSession, key: int) -> None:
    session.add(User(id=key, name="x", orders=[Order(n=n, amount=n) for n in range(60)]))
    await session.flush()


@on_loop
async def test_attributes_can_be_awaited(shop: Shop, spoken: AsyncDriver) -> None:
    key = shop.key_on("s2")
    async with await connect(shop) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)
        async with sessions.begin() as session:
            session.add(Person(id=key, name="x", purchases=[Purchase(n=1, amount=1)]))
        async with sessions() as session:
            person = await session.get_one(Person, key)
            assert [one.n for one in await person.awaitable_attrs.purchases] == [1]
            await session.commit()
            assert await person.awaitable_attrs.name == "x"


@on_loop
async def test_run_replays_and_what_is_unknown_is_found_out(shop: Shop, spoken: AsyncDriver) -> None:
    key = shop.key_on("s1")
    shop.shard("s1").execute("CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql AS "
                             "$$BEGIN RAISE EXCEPTION 'asked for' USING ERRCODE = state; END$$")  # fmt: skip
    async with await connect(shop) as cluster:
        calls: list[int] = []

        async def work(session: AsyncShardSession) -> str:
            calls.append(1)
            session.add(Order(user_id=key, n=len(calls), amount=1))
            await session.flush()
            if len(calls) < 3:
                await session.execute(sa.text("SELECT fail('40001')"))
            return "done"

        assert await cluster.arun(key, work, driver=spoken) == "done"
        assert len(calls) == 3
        assert shop.ask("s1", "SELECT count(*) FROM orders") == 1
        number = shop.ask("s1", "SELECT pg_current_xact_id()::text::bigint")
        lost = errors.CommitUnknown("x", shard="s1", xid=number, timeline=1)
        assert await cluster.acommit_outcome(lost, driver=spoken) == "committed"
        assert (await cluster.arefresh()).version == cluster.map.version


@on_loop
async def test_tasks_share_small_pools(shop: Shop, spoken: AsyncDriver) -> None:
    """200 tasks on pools of 5: everybody's turn comes, each writes where its key lives, and nothing stays behind."""
    async with await connect(shop, pool_size=5, max_overflow=0) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)
        keys = list(range(1, 201))

        async def work(key: int) -> tuple[int, ...]:
            found = []
            async with sessions(key=key) as session, session.begin():
                session.add(User(id=key, name=f"user {key}"))
            for n in range(2):
                async with sessions(key=key) as session, session.begin():
                    session.add(Order(user_id=key, n=n, amount=n))
                    found += list(await session.scalars(sa.select(User.id).where(User.id == key)))
            async with sessions() as session:
                found += list(await session.scalars(sa.select(User.id).where(User.id.in_([key, 201 - key]))))
            return tuple(found)

        answers = await asyncio.wait_for(asyncio.gather(*map(work, keys)), 120)
        assert all(answer[:2] == (key, key) and key in answer[2:] for key, answer in zip(keys, answers, strict=True))
        for shard in ("s1", "s2"):
            mine = [key for key in keys if cluster.map.route("users", key).shard == shard]
            assert shop.ask(shard, "SELECT array_agg(id ORDER BY id) FROM users") == mine
            assert shop.ask(shard, "SELECT count(*) FROM orders") == 2 * len(mine)
            assert cluster.async_engine(shard, spoken).pool.checkedout() == 0
            assert shop.ask(shard, f"SELECT count(*) {OURS}") <= 5
    for shard in ("s1", "s2"):
        await soon(lambda shard=shard: shop.ask(shard, f"SELECT count(*) {OURS}") == 0, "connections stay open")


@on_loop
async def test_who_waits_for_a_connection_is_served_in_turn(shop: Shop, spoken: AsyncDriver) -> None:
    """A task that takes and gives back without a pause must not starve those who wait."""
    key = shop.key_on("s1")
    async with await connect(shop, pool_size=1, max_overflow=0) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)
        taken: list[str] = []

        async def work(name: str) -> None:
            for _ in range(5):
                async with sessions(key=key) as session:
                    await session.scalar(sa.select(User.id).where(User.id == key))
                    taken.append(name)

        await asyncio.gather(work("a"), work("b"), work("c"))
        assert all(set(taken[at : at + 3]) == {"a", "b", "c"} for at in range(0, 12, 3)), taken


@on_loop
async def test_cancelled_tasks_leave_nothing_half_done(shop: Shop, spoken: AsyncDriver) -> None:
    """Tasks are cancelled at any moment: pools stay whole, and no connection carries on with another's transaction."""
    draw = random.Random(7)
    async with await connect(shop, pool_size=2, max_overflow=0) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)

        async def write(key: int) -> None:
            async with sessions(key=key) as session, session.begin():
                session.add(User(id=key, name="x"))
                await session.flush()
                await session.execute(sa.text("SELECT pg_sleep(0.002)"))

        async def scatter() -> None:
            async with sessions() as session:
                await session.scalar(sa.select(sa.func.count()).select_from(User))

        written: set[int] = set()
        ended = 0
        for turn in range(12):
            keys = list(range(turn * 10 + 1, turn * 10 + 11))
            tasks = {key: asyncio.create_task(write(key) if key % 2 else scatter()) for key in keys}
            for task in tasks.values():
                await asyncio.sleep(draw.random() * 0.008)
                if draw.random() < 0.7:
                    task.cancel()
            for key, answer in zip(keys, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True):
                assert answer is None or isinstance(answer, asyncio.CancelledError), answer
                ended += answer is None
                if answer is None and key % 2:
                    written.add(key)
        assert ended
        stored = {row[0] for shard in ("s1", "s2") for row in shop.shard(shard).execute("SELECT id FROM users")}
        assert written <= stored
        for shard in ("s1", "s2"):
            assert cluster.async_engine(shard, spoken).pool.checkedout() == 0
            until(
                lambda shard=shard: shop.ask(shard, f"SELECT count(*) {OURS} AND state <> 'idle'") == 0,
                "a transaction is open",
            )
        async with sessions() as session:
            assert await session.scalar(sa.select(sa.func.count()).select_from(User)) == len(stored)


@on_loop
async def test_a_commit_that_was_sent_is_not_cancelled(shop: Shop, spoken: AsyncDriver) -> None:
    """A task that is cancelled while COMMIT is under way ends when it has been answered."""
    key = shop.key_on("s1")
    shop.shard("s1").execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END$$"
    )
    shop.shard("s1").execute(
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    async with await connect(shop) as cluster:

        async def work() -> None:
            async with cluster.async_sessionmaker(driver=spoken)(key=key) as session:
                session.add(User(id=key, name="x"))
                await session.commit()

        task = asyncio.create_task(work())
        committing = f"SELECT count(*) {OURS} AND state = 'active' AND query LIKE 'COMMIT%%'"
        await soon(lambda: shop.ask("s1", committing), "no COMMIT")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert shop.ask("s1", "SELECT count(*) FROM users") == 1


@on_loop
async def test_connections_that_nobody_uses_are_closed(shop: Shop, spoken: AsyncDriver) -> None:
    key = shop.key_on("s1")
    async with await connect(shop, pool_idle=0.3) as cluster:
        sessions = cluster.async_sessionmaker(driver=spoken)

        async def work() -> None:
            async with sessions(key=key) as session:
                await session.scalar(sa.text("SELECT pg_sleep(0.05)"))

        await asyncio.gather(*(work() for _ in range(3)))
        assert shop.ask("s1", f"SELECT count(*) {OURS}") == 3
        await soon(lambda: not shop.ask("s1", f"SELECT count(*) {OURS}"), "they stay open")
        await work()


# What asyncio and asyncpg say of connections whose event loop has ended, whenever the garbage collector finds them; nobody can
# close them in its place.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_event_loop_after_the_other(shop: Shop, spoken: AsyncDriver) -> None:
    """As in tests, where each has its own: connections of a loop that has ended are not used again."""
    cluster = Cluster.connect(shop.dsns.catalog, refresh="never", application="test")
    key = shop.key_on("s1")

    async def work() -> int:
        async with cluster.async_sessionmaker(driver=spoken)(key=key) as session:
            found = await session.scalar(sa.text("SELECT pg_backend_pid()"))
            assert isinstance(found, int)
            return found

    assert asyncio.run(work()) != asyncio.run(work())

    async def elsewhere() -> None:
        await work()
        with pytest.raises(errors.BadOption, match="two event loops"):
            await asyncio.to_thread(asyncio.run, work())

    asyncio.run(elsewhere())
    cluster.close()
    until(lambda: shop.ask("s1", f"SELECT count(*) {OURS}") == 0, "connections stay open")
    gc.collect()


def test_bad_arguments_are_refused(shop: Shop, spoken: AsyncDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster.connect(shop.dsns.catalog, refresh="never") as cluster:
        with pytest.raises(errors.BadOption, match="has no meaning"):
            cluster.async_sessionmaker(driver="pg8000")  # type: ignore[arg-type]
        sessions = cluster.async_sessionmaker(driver=spoken)
        for given in ({"twophase": True}, {"bind": object()}, {"binds": {User: object()}}, {"reads": "any"}):
            with pytest.raises(errors.BadOption):
                sessions(**given)
        with pytest.raises(errors.BadKey):
            sessions(key="1")
        missing = "asyncpg" if spoken == "asyncpg" else "greenlet"
        monkeypatch.setattr(async_cluster, "find_spec", lambda name: None if name == missing else object())
        with pytest.raises(errors.MissingExtra, match=missing):
            cluster.async_sessionmaker(driver=spoken)
    with contextlib.suppress(errors.ShardwrightError):
        asyncio.run(cluster.aclose())
