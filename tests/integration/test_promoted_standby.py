"""A shard with a real standby: it is promoted, the old primary comes back, and nothing is written to that one any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_servers import POSTGRESES, Postgres
from fix_sessions import User, until
from shardwright import Cluster, engines, errors
from shardwright.catalog import models, roster, shards
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(one, id=one.name, marks=() if one is POSTGRESES[0] else pytest.mark.slow) for one in POSTGRESES
    ],
)
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """Two servers a test: the older PostgreSQLs are for `make test-all`."""
    found: Postgres = request.param
    return found


@dataclass
class Pair:
    """A shard of two servers."""

    catalog: str
    primary: Server
    standby: Server
    stack: ExitStack

    def connect(self, **options: Any) -> Cluster:
        options = {"refresh": "listen", "poll_seconds": 0.2, "application": "test"} | options
        return self.stack.enter_context(Cluster.connect(self.catalog, **options))

    def wait_for_standby(self) -> None:
        """Until it has all that the primary has."""
        count = "SELECT count(*) FROM users"
        until(lambda: self.on(self.standby, count) == self.on(self.primary, count), "it is not replicated")

    def fail_over(self) -> None:
        """The primary loses its power, the standby is promoted."""
        self.primary.stop("immediate")
        self.standby.promote()

    def on(self, server: Server, statement: str) -> Any:
        return server.execute(statement, "shard")[0][0]

    def known_timeline(self) -> int | None:
        with engines.connect_catalog(self.catalog) as catalog:
            row = catalog.execute("SELECT timeline FROM shardwright.timelines WHERE shard = 's1'").fetchone()
        return row[0] if row is not None else None


@pytest.fixture
def pair(server_factory: Callable[..., Server], make_database: Callable[..., str], workdir: Path) -> Iterator[Pair]:
    primary = server_factory()
    dsn, catalog = primary.create_database("shard"), make_database("catalog")
    make_ready(catalog, {"s1": dsn})
    tables = sa.MetaData()
    User.__table__.to_metadata(tables)
    with ExitStack() as stack:
        connection = stack.enter_context(engines.connect_catalog(catalog))
        models.register(connection, tables)
        standby = primary.standby(workdir / "standby")
        stack.callback(standby.stop, "immediate")
        both = {"host": "127.0.0.1,127.0.0.1", "port": f"{primary.port},{standby.port}"}
        through = psycopg.conninfo.make_conninfo(dsn, **both)
        connection.execute("UPDATE shardwright.shards SET conninfo = %s", (through,))
        yield Pair(catalog, primary, standby, stack)


def put(cluster: Cluster, key: int) -> None:
    cluster.run(key, lambda session: session.add(User(id=key, name="x")))


def port(cluster: Cluster) -> Any:
    with cluster.sessionmaker()(key=1) as session:
        return session.scalar(sa.text("SELECT inet_server_port()"))


def test_it_is_found_and_the_old_primary_is_left_for_good(pair: Pair) -> None:
    cluster = pair.connect()
    put(cluster, 1)
    assert port(cluster) == pair.primary.port
    until(lambda: pair.known_timeline() == 1, "the timeline is not remembered")
    pair.wait_for_standby()
    pair.fail_over()
    # The pool's connection is dead, and the new primary is found.
    put(cluster, 2)
    assert port(cluster) == pair.standby.port
    until(lambda: pair.known_timeline() == 2, "the new timeline is not remembered")
    # The old one comes back, and still calls itself the primary. It is the first that the address names.
    pair.primary.start()
    for key in range(3, 8):
        cluster.engine("s1").dispose()
        put(cluster, key)
    with pair.connect(refresh="never") as another:
        # It has seen nothing itself: the catalog has told it.
        put(another, 8)
        assert port(another) == pair.standby.port
    assert pair.on(pair.primary, "SELECT count(*) FROM users") == 1
    assert pair.on(pair.standby, "SELECT count(*) FROM users") == 8
    # Where only the old one is left, nobody is served.
    pair.standby.stop("immediate")
    with pytest.raises(errors.ShardUnavailable, match="timeline 1, and 2 was seen"):
        put(pair.connect(refresh="never"), 9)
    # Nor do operators work on it.
    with engines.connect_catalog(pair.catalog) as catalog, pytest.raises(errors.NotPrimary, match="timeline 1"):
        engines.connect_shard(roster.get_shard(catalog, "s1"))
    assert pair.on(pair.primary, "SELECT count(*) FROM users") == 1
    # Unless somebody says that this is what is left.
    with engines.connect_catalog(pair.catalog) as catalog:
        with pytest.raises(errors.NotPrimary, match="former primary"):
            shards.add_shard(catalog, "s1", pair.primary.dsn("shard"))
        shards.add_shard(catalog, "s1", pair.primary.dsn("shard"), accept_timeline=True)
    put(pair.connect(refresh="never"), 9)
    assert pair.on(pair.primary, "SELECT count(*) FROM users") == 2


def test_connections_that_lead_to_the_old_primary_are_given_up(pair: Pair) -> None:
    """Nobody stopped it: both call themselves the primary, and this process still has connections to the old one."""
    cluster = pair.connect(pool_size=4)
    put(cluster, 1)
    pair.wait_for_standby()
    pair.standby.promote()
    with cluster.sessionmaker()(key=1) as session:
        assert session.scalar(sa.text("SELECT inet_server_port()")) == pair.primary.port
        # Another process has met the new primary.
        with engines.connect_catalog(pair.catalog) as catalog:
            roster.note_timeline(catalog, "s1", 2)
        until(lambda: cluster.directory.shard("s1").timeline == 2, "the new timeline was not heard of")
    # The connection is back in the pool, and as alive as ever.
    assert port(cluster) == pair.standby.port
    put(cluster, 2)
    with cluster.engine("s1").connect() as connection:
        assert connection.scalar(sa.text("SELECT inet_server_port()")) == pair.standby.port
    assert pair.on(pair.primary, "SELECT count(*) FROM users") == 1
    assert pair.on(pair.standby, "SELECT count(*) FROM users") == 2


def test_a_demoted_primary_is_not_written_to(pair: Pair) -> None:
    """As HA managers do it: the old primary is restarted as a standby of the new one."""
    cluster = pair.connect(pool_size=4)
    put(cluster, 1)
    pair.wait_for_standby()
    stop, wrote, refused = threading.Event(), [1], []

    def write() -> None:
        key = 1
        while not stop.is_set():
            key += 1
            try:
                put(cluster, key)
                wrote.append(key)
            except (errors.SessionError, sa.exc.DBAPIError) as error:
                refused.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(wrote) > 20, "nothing is written")
        # In an orderly way, so that nothing is lost: it stops, and the standby has all of it.
        pair.primary.stop("fast")
        pair.standby.promote()
        (pair.primary.data / "standby.signal").touch()
        with (pair.primary.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{pair.standby.dsn()}'\n")
        pair.primary.start()
        before = len(wrote)
        until(lambda: len(wrote) > before + 20, "nothing is written any more")
    finally:
        stop.set()
        writer.join(30)
    assert port(cluster) == pair.standby.port
    found = pair.standby.execute("SELECT id FROM users ORDER BY id", "shard")
    lost = set(wrote) - {row[0] for row in found}
    assert not lost
    assert all(isinstance(error, errors.SessionError) for error in refused), refused
    until(lambda: pair.on(pair.primary, "SELECT pg_is_in_recovery()"), "the old primary is no standby")
