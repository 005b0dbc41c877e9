"""Reads of several shards while one is down or hangs: an error by default, a part of the answer where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

import fix_drivers
from fix_servers import Dsns
from fix_sessions import Order, User
from shardwright import engines, errors
from shardwright.catalog import models
from shardwright.routing.shard_map import ShardMap
from shardwright.servers import Server
from shardwright.session import Cluster
from shardwright.session.pools import Driver
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres

KEYS = range(1, 41)


@contextmanager
def _away(server: Server, how: str) -> Iterator[None]:
    if how == "down":
        server.stop("fast")  # at once it would lose what it has not written: the tests' servers commit asynchronously
    else:
        server.pause()
    try:
        yield
    finally:
        if how == "down":
            server.start()
        else:
            server.resume()


@dataclass
class Torn:
    """Three shards, of which s2 has a server of its own."""

    dsns: Dsns
    server: Server
    driver: Driver
    clusters: list[Cluster] = field(default_factory=list)

    def connect(self) -> Cluster:
        """A cluster for the driver's sessions."""
        options: dict[str, Any] = {"hang_timeout": 0.5, "connect_timeout": 2.0, "refresh": "never", "map_wait": 0.5}
        self.clusters.append(fix_drivers.connect(self.driver, self.dsns.catalog, **options))
        return self.clusters[-1]


@pytest.fixture
def torn(make_database: Callable[..., str], server_factory: Callable[..., Server], driver: Driver) -> Iterator[Torn]:
    server = server_factory()
    dsns = Dsns(
        make_database("catalog"),
        {"s1": make_database("s1"), "s2": server.create_database("s2"), "s3": make_database("s3")},
    )
    _fill(dsns)
    made = Torn(dsns, server, driver)
    yield made
    for cluster in made.clusters:
        cluster.close()


def _fill(dsns: Dsns) -> None:
    make_ready(dsns.catalog, dsns.shards)
    metadata = sa.MetaData()
    for model in (User, Order):
        model.__table__.to_metadata(metadata)  # type: ignore[attr-defined]
    with engines.connect_catalog(dsns.catalog) as connection:
        models.register(connection, metadata)


def _on(shard_map: ShardMap, *shards: str) -> list[int]:
    return [key for key in KEYS if shard_map.route("users", key).shard in shards]


@pytest.mark.every_driver(tasks="slow")
@pytest.mark.timeout(240)
def test_a_part_is_an_answer_only_where_that_is_allowed(torn: Torn) -> None:
    everybody = sa.select(User.id).order_by(User.id)
    counted = sa.select(sa.func.count()).select_from(User)
    cluster = torn.connect()
    for key in KEYS:
        cluster.run(key, lambda session, key=key: session.add(User(id=key, name="x", score=key)))  # type: ignore[misc]
    there = _on(cluster.map, "s1", "s3")
    sessions = cluster.sessionmaker()
    partly = cluster.sessionmaker(partial="allow")
    with partly() as session:
        result = session.execute(everybody)
        assert (result.scalars().all(), result.missing_shards) == (list(KEYS), ())  # type: ignore[attr-defined]
        assert session.missing_shards == set()
    for how in ("down", "hanging"):
        with _away(torn.server, how):
            with sessions() as session, pytest.raises(errors.ShardUnavailable):
                session.execute(everybody).all()
            with sessions() as session:
                result = session.execute(everybody, execution_options={"partial": "allow"})
                assert result.missing_shards == ("s2",), how  # type: ignore[attr-defined]
                assert result.scalars().all() == there
                objects = session.scalars(sa.select(User).order_by(User.id).execution_options(partial="allow"))
                assert objects.missing_shards == ("s2",)  # type: ignore[attr-defined]
                assert [user.id for user in objects] == there
                session.commit()
            with partly() as session:
                assert session.scalar(counted) == len(there)
                assert session.missing_shards == {"s2"}
                streamed = session.execute(everybody, execution_options={"yield_per": 5})
                assert streamed.scalars().all() == there
                some = session.execute(everybody.where(User.id.in_(KEYS)))
                assert (some.scalars().all(), some.missing_shards) == (there, ("s2",))  # type: ignore[attr-defined]
                # Other shards' transactions are as good as ever.
                session.add(Order(user_id=there[0], n=99, amount=1))
                session.flush()
                session.rollback()
                # One shard alone is no part of an answer.
                with pytest.raises(errors.ShardUnavailable):
                    session.execute(sa.select(User.id).where(User.id == _on(cluster.map, "s2")[0])).all()
        with torn.connect().sessionmaker()() as session:
            assert session.scalars(everybody).all() == list(KEYS)


def test_partial_has_one_value(shop: Any) -> None:
    with shop.connect().sessionmaker(partial="some")() as session, pytest.raises(errors.BadOption, match="partial"):
        session.execute(sa.select(User))
