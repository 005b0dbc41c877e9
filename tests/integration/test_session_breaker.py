"""A shard that is down, hangs or is full: who wants it is told so at once, and the others notice nothing."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from fix_servers import Dsns, Postgres
from fix_sessions import Order, Shop, User, in_thread, until
from shardwright import Cluster, engines, errors
from shardwright.catalog import models
from shardwright.servers import Server
from shardwright.session import events
from shardwright.session.breaker import BreakerOptions
from shardwright.session.pools import AsyncDriver
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres


@dataclass
class Failing:
    """A shop whose shard s1 has a server of its own, to be stopped."""

    shop: Shop
    server: Server
    #: how often a connection to s1 was tried
    dials: list[str]

    def connect(self, threshold: int = 3, cool_down: float = 600.0, **options: Any) -> Cluster:
        options = {"hang_timeout": 0.3, "connect_timeout": 2, "pool_size": 4, "max_overflow": 2} | options
        return self.shop.connect(breaker=BreakerOptions(threshold, cool_down, max(cool_down, 1.0)), **options)


@pytest.fixture(scope="module")
def own_server(postgres: Postgres) -> Iterator[Server]:
    """A server that these tests stop and start, one after the other."""
    if postgres.bin_dir is None:
        pytest.skip("a container cannot be paused and started again by its processes")
    directory = Path(tempfile.mkdtemp(prefix="sw-"))
    directory.chmod(0o755)
    server = Server(directory / "server", bin_dir=postgres.bin_dir, fsync=False, remove_with_owner=directory)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(directory)


@pytest.fixture
def failing(
    own_server: Server, cluster_dsns: Callable[..., Dsns], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Failing]:
    shared = cluster_dsns(2)
    name = str(psycopg.conninfo.conninfo_to_dict(shared.shards["s1"])["dbname"])
    dsns = Dsns(shared.catalog, {"s1": own_server.create_database(name), "s2": shared.shards["s2"]})
    make_ready(dsns.catalog, dsns.shards)
    with ExitStack() as stack:
        shop = Shop(dsns, stack)
        tables = sa.MetaData()
        for model in (User, Order):
            model.__table__.to_metadata(tables)
        models.register(shop.catalog, tables)
        dials: list[str] = []
        places = engines.ShardDialer.places

        def counted(dialer: engines.ShardDialer) -> list[str]:
            if dialer._shard == "s1":
                dials.append(dialer._shard)
            return places(dialer)

        monkeypatch.setattr(engines.ShardDialer, "places", counted)
        try:
            yield Failing(shop, own_server, dials)
        finally:
            own_server.resume()
            if not own_server.is_running:
                own_server.start()


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """States of breakers, as they were told."""
    found: list[str] = []
    monkeypatch.setattr(
        events, "hook", lambda event: found.append(event.state) if isinstance(event, events.BreakerChanged) else None
    )
    return found


def ask(cluster: Cluster, key: int) -> Any:
    with cluster.sessionmaker()(key=key) as session:
        return session.scalar(sa.select(sa.func.count()).select_from(User).where(User.id == key))


def refused(cluster: Cluster, key: int) -> errors.ShardUnavailable:
    with pytest.raises(errors.ShardUnavailable) as caught:
        ask(cluster, key)
    return caught.value


def warm(cluster: Cluster, key: int, connections: int = 4) -> None:
    """Have connections in the pool."""
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(cluster.sessionmaker()(key=key)).scalar(sa.text("SELECT 1"))


def test_requests_for_others_do_not_wait_for_a_shard_that_hangs(failing: Failing) -> None:
    cluster = failing.connect(hang_timeout=None)
    here, there = failing.shop.key_on("s1"), failing.shop.key_on("s2")
    warm(cluster, here)
    warm(cluster, there)
    failing.server.pause()
    with ExitStack() as hung:
        # More than its pool holds: some wait for an answer, some to be let in, some for a place in the pool.
        waiting = [hung.enter_context(in_thread(lambda: ask(cluster, here))) for _ in range(8)]
        until(lambda: cluster.engine("s1").pool.checkedout() >= 4, "nobody hangs")  # type: ignore[attr-defined]
        assert [ask(cluster, there) for _ in range(50)] == [0] * 50
        assert sum(one["thread"].is_alive() for one in waiting) >= 4
        failing.server.resume()
    assert sum(one.get("result") == 0 for one in waiting) >= 4


def test_a_shard_that_hangs_is_found_out_and_not_called_any_more(failing: Failing, changes: list[str]) -> None:
    cluster = failing.connect()
    here, there = failing.shop.key_on("s1"), failing.shop.key_on("s2")
    warm(cluster, here)
    failing.server.pause()
    with ExitStack() as hung:
        # On connections from the pool: nothing but the silence tells.
        waiting = [hung.enter_context(in_thread(lambda: ask(cluster, here))) for _ in range(8)]
    assert all(isinstance(one["error"], errors.ShardUnavailable) for one in waiting), waiting
    assert changes == ["open"]
    dialled = len(failing.dials)
    with ExitStack() as together:
        more = [together.enter_context(in_thread(lambda: ask(cluster, here))) for _ in range(20)]
    assert all(0 < one["error"].facts["retry_after"] <= 600 for one in more), more
    # Every way to the shard meets it.
    refused(cluster, here)
    with cluster.sessionmaker()() as session:
        for statement in (sa.select(User).where(User.id == here), sa.select(User)):
            with pytest.raises(errors.ShardUnavailable) as caught:
                session.execute(statement)
            assert caught.value.facts["retry_after"] > 0
            session.rollback()
    with pytest.raises(errors.ShardUnavailable), cluster.engine("s1").connect():
        pass
    assert len(failing.dials) == dialled, "the network was touched"
    assert ask(cluster, there) == 0
    assert cluster.engine("s1").pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", [pytest.param("psycopg", id="async"), "asyncpg"])
def test_tasks_meet_the_same_breaker(failing: Failing, changes: list[str], way: AsyncDriver) -> None:
    here, there = failing.shop.key_on("s1"), failing.shop.key_on("s2")

    async def try_it(cluster: Cluster) -> None:
        sessions = cluster.async_sessionmaker(driver=way)

        async def count(key: int) -> Any:
            async with sessions(key=key) as session:
                return await session.scalar(sa.select(sa.func.count()).select_from(User).where(User.id == key))

        assert await asyncio.gather(*(count(key) for key in (here, here, there))) == [0, 0, 0]
        failing.server.pause()
        hung = [asyncio.create_task(count(here)) for _ in range(6)]
        # The loop is not held up.
        assert await count(there) == 0
        assert not any(task.done() for task in hung)
        found = await asyncio.gather(*hung, return_exceptions=True)
        assert all(isinstance(one, errors.ShardUnavailable) for one in found), found
        assert changes == ["open"]
        dialled = len(failing.dials)
        with pytest.raises(errors.ShardUnavailable) as caught:
            await count(here)
        assert caught.value.facts["retry_after"] > 0
        assert await count(there) == 0
        # Threads of the same process know it as well.
        assert refused(cluster, here).facts["retry_after"] > 0
        assert len(failing.dials) == dialled
        failing.server.resume()

    async def run() -> None:
        with failing.connect() as cluster:
            await try_it(cluster)
            await cluster.aclose()

    asyncio.run(run())


def test_it_is_called_again_when_it_goes_on(failing: Failing, changes: list[str]) -> None:
    cluster = failing.connect(cool_down=0.05)
    here = failing.shop.key_on("s1")
    warm(cluster, here)
    failing.server.pause()
    refused(cluster, here)
    assert changes[0] == "open"
    tried: list[errors.ShardUnavailable] = []
    until(lambda: tried.append(refused(cluster, here)) or "retry_after" not in tried[-1].facts, "nobody tries")
    # By a connection of its own, and not by one that was in the pool before: those say nothing, for long.
    assert "cannot connect" in tried[-1].message
    failing.server.resume()

    def served() -> bool:
        try:
            return ask(cluster, here) == 0
        except errors.ShardUnavailable:
            return False

    until(served, "it is not called again")
    assert changes[-2:] == ["half_open", "closed"]
    assert set(changes[:-1:2]) == {"open"}
    warm(cluster, here)


def test_a_slow_statement_is_no_hanging_shard(failing: Failing, changes: list[str]) -> None:
    """It is silent for longer than `hang_timeout`; asked, the server lives."""
    cluster = failing.connect()
    with cluster.sessionmaker()(key=failing.shop.key_on("s1")) as session:
        assert session.scalar(sa.text("SELECT count(pg_sleep(1.5))")) == 1
    assert len(failing.dials) > 1, "it was not asked"
    assert changes == []


def test_a_shard_that_is_down_is_called_no_more_than_the_threshold_says(failing: Failing, changes: list[str]) -> None:
    cluster = failing.connect(threshold=3)
    here, there = failing.shop.key_on("s1"), failing.shop.key_on("s2")
    failing.server.stop("immediate")
    failing.dials.clear()
    for _ in range(3):
        assert "retry_after" not in refused(cluster, here).facts
    for _ in range(20):
        assert refused(cluster, here).facts["retry_after"] > 0
    assert len(failing.dials) == 3
    assert changes == ["open"]
    assert ask(cluster, there) == 0


def test_a_server_that_ends_our_backend_counts(failing: Failing, changes: list[str]) -> None:
    """57P01: shut down, or an administrator."""
    cluster = failing.connect(threshold=1)
    here = failing.shop.key_on("s1")
    with cluster.sessionmaker()(key=here) as session:
        session.add(User(id=here, name="x"))
        session.flush()
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        failing.shop.ask("s1", "SELECT pg_terminate_backend(%s, 5000)", pid)
        with pytest.raises(errors.ShardUnavailable):
            session.execute(sa.text("SELECT 1"))
    assert changes == ["open"]
    assert refused(cluster, here).facts["retry_after"] > 0


def test_a_full_server_counts(failing: Failing, changes: list[str]) -> None:
    """53300."""
    shard = failing.shop.shard("s1")
    shard.execute("CREATE ROLE few LOGIN CONNECTION LIMIT 1")
    try:
        shard.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO few")
        here = failing.shop.key_on("s1")
        with failing.connect(threshold=1, connect_args={"user": "few"}) as cluster:
            with cluster.sessionmaker()(key=here) as session:
                session.connection()
                assert "too many connections" in str(refused(cluster, here))
                assert changes == ["open"]
                # Who is inside is served, and that closes it.
                assert session.scalar(sa.text("SELECT 1")) == 1
            assert changes == ["open", "closed"]
    finally:
        shard.execute("DROP OWNED BY few")
        shard.execute("DROP ROLE few")


def test_what_is_not_the_servers_fault_does_not_count(failing: Failing, changes: list[str]) -> None:
    cluster = failing.connect(threshold=1, pool_size=1, max_overflow=0, pool_timeout=0.05, map_wait=0.05)
    here, there = failing.shop.key_on("s1"), failing.shop.key_on("s2")
    sessions = cluster.sessionmaker()
    with sessions(key=here) as session:
        session.connection()
        with pytest.raises(sa.exc.TimeoutError):
            ask(cluster, here)
    for text in (
        "SELECT 1/0",
        "SELECT nothing",
        f"INSERT INTO users (id) VALUES ({here})",
        "SET statement_timeout = 1",
    ):
        with sessions(key=here) as session:
            if text.startswith("SET"):
                session.execute(sa.text(text))
                text = "SELECT pg_sleep(5)"
            with pytest.raises(DBAPIError):
                session.execute(sa.text(text))
    # SH001 from a guard, and from the check.
    with sessions(key=here) as session, pytest.raises(errors.KeyOutsideSession):
        session.execute(sa.text(f"INSERT INTO users (id, name) VALUES ({there}, 'x')"))
    failing.shop.fence(here)
    with pytest.raises(errors.MapTimeout):
        ask(cluster, here)
    failing.shop.unfence(here)
    assert ask(cluster, here) == 0
    assert changes == []


def test_idle_connections_are_closed(failing: Failing) -> None:
    cluster = failing.connect(pool_idle=0.2)
    here = failing.shop.key_on("s1")
    mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardwright test'"
    with cluster.sessionmaker()(key=here) as session:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        warm(cluster, here, 3)
        until(lambda: failing.shop.ask("s1", mine) == 1, "they stay")
        # The one in use is left alone.
        assert session.scalar(sa.text("SELECT pg_backend_pid()")) == pid
    until(lambda: failing.shop.ask("s1", mine) == 0, "it stays")
    warm(cluster, here, 6)
    assert cluster.engine("s1").pool.checkedout() == 0  # type: ignore[attr-defined]
    cluster.close()
    until(lambda: "shardwright-pools" not in {one.name for one in threading.enumerate()}, "its thread stays")


@pytest.mark.parametrize(
    "options", [{"pool_idle": 0}, {"connect_timeout": -1}, {"hang_timeout": 0}, {"poolclass": sa.NullPool}]
)
def test_bad_options_are_refused(options: Any) -> None:
    with pytest.raises(errors.BadOption):
        Cluster.connect("host=nowhere.invalid", **options)
