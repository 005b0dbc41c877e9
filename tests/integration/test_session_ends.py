"""How transactions end that have only read: their ROLLBACK is sent, and whoever takes the connection next waits for it."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
import sqlalchemy as sa

from fix_sessions import Shop, User
from shardwright import engines
from shardwright.catalog import models
from shardwright.servers import Server
from shardwright.session import Cluster
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres

TIMES = 40


@pytest.mark.every_driver
@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        (sa.select(sa.func.pg_advisory_xact_lock(7)), "SELECT pg_try_advisory_xact_lock(7)"),
        (sa.select(User).with_for_update(read=True), "SELECT id FROM users FOR UPDATE NOWAIT"),
        (sa.select(User).with_for_update(), "SELECT id FROM users FOR UPDATE NOWAIT"),
    ],
    ids=["advisory", "share", "update"],
)
def test_what_others_may_wait_for_is_free_when_it_has_ended(
    shop: Shop, taken: sa.Select[tuple[int]], wanted: str
) -> None:
    key = shop.key_on("s1")
    shop.shard("s1").execute("INSERT INTO users (id, name, score) VALUES (%s, 'x', 1)", (key,))
    sessions = shop.connect().sessionmaker()
    for _ in range(TIMES):
        with sessions(key=key) as session:
            session.execute(taken if taken.get_final_froms() == [] else taken.where(User.id == key)).all()
        assert shop.ask("s1", wanted)


@pytest.mark.every_driver
def test_the_next_transaction_begins_where_the_last_one_has_ended(shop: Shop) -> None:
    """On one connection: reads, options that are set before BEGIN, writes, Core, prepared statements."""
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0, prepare_threshold=1)
    sessions = cluster.sessionmaker()
    read = sa.select(User.score).where(User.id == key)
    with sessions(key=key) as session:
        session.add(User(id=key, name="x", score=0))
        session.commit()
    for turn in range(5):
        with sessions(key=key) as session:
            assert session.scalar(read) == turn
        for options in (
            {"isolation_level": "SERIALIZABLE"},
            {"read_only": True},
            {"isolation_level": "REPEATABLE READ"},
        ):
            with sessions(key=key, **options) as session:
                assert session.scalar(read) == turn
        with sessions() as session:
            assert session.scalar(sa.select(sa.func.sum(User.score))) == turn
            session.rollback()
            assert session.scalar(read) == turn
        with sessions(key=key) as session:
            session.execute(sa.update(User).where(User.id == key).values(score=User.score + 1))
            session.commit()
            assert session.scalar(read) == turn + 1
            session.commit()
        with cluster.engine("s1").connect() as connection:
            assert connection.scalar(sa.select(User.score)) == turn + 1
            connection.rollback()
            assert connection.scalar(sa.select(User.score)) == turn + 1


@pytest.mark.every_driver
def test_a_connection_that_was_lost_since_is_replaced(shop: Shop) -> None:
    key = shop.key_on("s1")
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    for _ in range(10):
        with sessions(key=key) as session:
            session.execute(sa.select(User).where(User.id == key)).all()
        shop.ask(
            "s1",
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    with sessions(key=key) as session:
        session.add(User(id=key, name="x", score=0))
        session.commit()


@pytest.mark.timeout(60)
def test_a_read_ends_without_the_server(server_factory: Callable[..., Server]) -> None:
    server = server_factory()
    catalog, shard = server.create_database("catalog"), server.create_database("s1")
    make_ready(catalog, {"s1": shard})
    metadata = sa.MetaData()
    User.__table__.to_metadata(metadata)  # type: ignore[attr-defined]
    with engines.connect_catalog(catalog) as connection:
        models.register(connection, metadata)
    with Cluster.connect(catalog, refresh="never", hang_timeout=None) as cluster:
        sessions = cluster.sessionmaker()
        with sessions(key=1) as session:
            assert session.get(User, 1) is None
            server.pause()
        server.resume()
        with psycopg.connect(shard, autocommit=True) as other, sessions(key=1) as session:
            assert session.get(User, 1) is None
            busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shardwright%%' AND state LIKE 'idle in%%'"
            assert other.execute(busy.encode(), ()).fetchone() == (1,)
