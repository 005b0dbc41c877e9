"""100,000 rows inserted over four shards against one plain Session, and a loader against single gets.

The shards are databases of one local server with a few hundred MB of buffers and fsync off, so what is measured is the
client and the server's CPU, on as many cores as the machine has. Works take turns; printed are the medians of what a turn
took, and their ratio to the plain one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from shardwright import Cluster, engines, sharded_by
from shardwright.catalog import models
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready

ROWS, TURNS, GETS = 100_000, 5, 400
SHARDS = ("s1", "s2", "s3", "s4")


class Base(DeclarativeBase):
    """Of the benchmark's models."""


class Item(Base):
    """One row a key."""

    __tablename__ = "items"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    score: Mapped[int]


@contextmanager
def cluster_of_four() -> Iterator[tuple[Cluster, sa.Engine, dict[str, str]]]:
    """Four shards and a plain database on one server."""
    with TemporaryDirectory(prefix="sw-") as scratch, ExitStack() as stack:
        directory = Path(scratch)
        directory.chmod(0o755)
        settings = {"max_prepared_transactions": "20", "shared_buffers": "256MB"}
        server = Server(directory / "server", fsync=False, settings=settings, remove_with_owner=directory)
        server.start()
        stack.callback(server.stop, "immediate")
        for name in ("catalog", "plain", *SHARDS):
            server.create_database(name)
        dsns = {name: server.socket_dsn(name) or server.dsn(name) for name in ("plain", *SHARDS)}
        make_ready(server.dsn("catalog"), {name: dsns[name] for name in SHARDS})
        with engines.connect_catalog(server.dsn("catalog")) as connection:
            models.register(connection, Base.metadata)
        plain = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsns["plain"]))
        # As the engines of shards have it, so that only what shards add is compared.
        plain.dialect.use_insertmanyvalues_wo_returning = True
        stack.callback(plain.dispose)
        Base.metadata.create_all(plain)
        yield stack.enter_context(Cluster.connect(server.dsn("catalog"))), plain, dsns


def in_turns(title: str, works: dict[str, Callable[[], Any]], between: Callable[[], None] = lambda: None) -> None:
    """Time works in turns; the first turn finds everything cold and does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            between()
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(next(iter(times.values())))
    for name, found in times.items():
        median = statistics.median(found)
        print(f"  {title:20} {name:42} {median * 1e3:8.1f} ms  {median / base:5.2f}", flush=True)


def bulk(cluster: Cluster, plain: sa.Engine, dsns: dict[str, str]) -> None:
    """Insert the rows."""
    rows = [{"id": n, "name": f"item {n}", "score": n % 7} for n in range(ROWS)]
    several = cluster.sessionmaker(cross_shard="two_phase")

    def empty() -> None:
        for dsn in dsns.values():
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute("DELETE FROM items")
                connection.execute("VACUUM items")

    def on_plain(statement: Any) -> None:
        with Session(plain) as session, session.begin():
            session.execute(statement, rows)

    def on_four(statement: Any) -> None:
        with several() as session, session.begin():
            session.execute(statement, rows)

    core, orm = sa.insert(Item.__table__), sa.insert(Item)
    for name, statement in (("insert(Table)", core), ("insert(Model)", orm)):
        works = {
            f"plain Session, {name}": lambda s=statement: on_plain(s),
            f"over 4 shards, {name}": lambda s=statement: on_four(s),
        }
        in_turns("100,000 rows", works, empty)


def gets(cluster: Cluster) -> None:
    """Get the same rows one by one, and together."""
    keys = list(range(0, ROWS, ROWS // GETS))[:GETS]
    new_session, loader = cluster.sessionmaker(), cluster.loader(Item)

    def one_by_one() -> None:
        with new_session() as session:
            assert all(session.get(Item, key) is not None for key in keys)

    def at_once() -> None:
        with new_session() as session:
            assert None not in session.get_many(Item, keys)

    works = {
        "session.get, one after the other": one_by_one,
        "session.get_many": at_once,
        "loader.get_many": lambda: loader.get_many(keys),
    }
    in_turns(f"{GETS} rows", works)


if __name__ == "__main__":
    with cluster_of_four() as (the_cluster, the_plain, the_dsns):
        bulk(the_cluster, the_plain, the_dsns)
        gets(the_cluster)
