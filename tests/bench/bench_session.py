"""A pinned session's point select and insert, against a plain SQLAlchemy Session and SQLAlchemy's ShardedSession.

All on one local server over its socket, each with connections of its own. They take turns of a few calls, so that what
else the machine does hits all of them; printed are medians and the ratios of medians, and of the limits of the fastest
quarter. The server does not wait for its disk, which leaves our own cost the largest part; the inserts are measured a
second time on one that does, as PostgreSQL does unless told otherwise.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from shardwright import Cluster, engines, sharded_by
from shardwright.catalog import models
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready

TURNS, COLD, CALLS, ROWS = 120, 5, 20, 2000


class Base(DeclarativeBase):
    """Of the benchmark's models."""


class Item(Base):
    """One row a key."""

    __tablename__ = "items"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    score: Mapped[int]


Work = Callable[[int], None]


def sharded(engines_by_shard: dict[str, sa.Engine], cluster: Cluster) -> sessionmaker[ShardedSession]:
    """SQLAlchemy's own sharding, with the same map."""

    def of_key(key: int) -> str:
        return cluster.map.route("users", key).shard

    def choose(_mapper: object, instance: object, clause: object = None) -> str:
        return of_key(instance.id) if isinstance(instance, Item) else next(iter(engines_by_shard))

    def choose_for_statement(context: object) -> list[str]:
        return [of_key(context.parameters["key"])]  # type: ignore[attr-defined]

    return sessionmaker(
        class_=ShardedSession,
        shard_chooser=choose,
        identity_chooser=lambda _mapper, key, **_: [of_key(key[0])],
        execute_chooser=choose_for_statement,
        shards=engines_by_shard,
    )


def plain_engine(dsn: str) -> sa.Engine:
    """An engine as an application without shards has it."""
    return sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))


def measure(title: str, works: dict[str, Work], turns: int = TURNS) -> None:
    """Run works in turns of a few calls each, and print what one call took."""
    keys: Iterator[int] = iter(range(10**9))
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(turns):
        # Another one begins each time; the first calls of a turn find everything cold and do not count.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for call in range(COLD + CALLS):
                key = next(keys)
                start = time.perf_counter()
                works[name](key)
                if call >= COLD and turn > 2:
                    times[name].append(time.perf_counter() - start)
    plain = statistics.quantiles(times["plain Session"], n=4)
    for name, found in times.items():
        quarter, median, _ = statistics.quantiles(found, n=4)
        ratios = f"{median / plain[1]:5.2f} of plain (fastest quarter {quarter / plain[0]:.2f})"
        print(f"  {title:13} {name:30} {median * 1e6:7.0f} us  {ratios}", flush=True)


SHARDS, SCATTERS, WAITED = 8, 40, 0.1


def scatter(server: Server) -> None:
    """A scatter over eight shards, against the slowest of them asked alone.

    Each answer takes a shard 100 ms, during which it waits, as it would for a disk: the eight are on one machine, and would
    share its processors.
    """
    names = [f"c{at}" for at in range(1, SHARDS + 1)]
    for name in ("wide", *names):
        server.create_database(name)
    catalog = server.dsn("wide")
    make_ready(catalog, {name: server.socket_dsn(name) or server.dsn(name) for name in names})
    with engines.connect_catalog(catalog) as connection:
        models.register(connection, Base.metadata)
    with Cluster.connect(catalog) as cluster:
        keys = {cluster.map.route("users", key).shard: key for key in range(ROWS)}
        for name, key in keys.items():
            cluster.run(key, lambda session, key=key, name=name: session.add(Item(id=key, name=name, score=1)))  # type: ignore[misc]
        slow = sa.select(Item.id, sa.cast(sa.func.pg_sleep(WAITED), sa.Text)).order_by(Item.id)
        times: dict[str, list[float]] = {"all": [], **{name: [] for name in names}}
        for turn in range(SCATTERS):
            for name in times:
                start = time.perf_counter()
                if name == "all":
                    with cluster.sessionmaker()() as session:
                        assert len(session.execute(slow).all()) == SHARDS
                else:
                    with cluster.sessionmaker()() as session:
                        assert len(session.execute(slow.where(Item.id == keys[name])).all()) == 1
                if turn > 2:
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    slowest = max(medians[name] for name in names)
    print(
        f"  scatter       over {SHARDS} shards of {WAITED * 1e3:.0f} ms each {medians['all'] * 1e3:8.1f} ms  "
        f"{medians['all'] / slowest:5.2f} of the slowest shard alone ({slowest * 1e3:.1f} ms)",
        flush=True,
    )


def main() -> None:
    """Measure on a server that does not wait for its disk, then inserts on one that does."""
    for fsync in (False, True):
        directory = Path(tempfile.mkdtemp(prefix="sw-"))
        directory.chmod(0o755)
        server = Server(directory / "server", fsync=fsync, remove_with_owner=directory)
        server.start()
        try:
            run(server, durable=fsync)
        finally:
            server.stop("immediate")
            shutil.rmtree(directory, ignore_errors=True)


def run(server: Server, *, durable: bool) -> None:
    """Measure on a running server; inserts alone where it waits for its disk."""
    for name in ("catalog", "s1", "s2"):
        server.create_database(name)
    dsns = {name: server.socket_dsn(name) or server.dsn(name) for name in ("s1", "s2")}
    catalog = server.dsn("catalog")
    make_ready(catalog, dsns)
    with engines.connect_catalog(catalog) as connection:
        models.register(connection, Base.metadata)
    strict = Cluster.connect(catalog)
    relaxed = Cluster.connect(catalog, reads="relaxed")
    plain, sharded_engines = plain_engine(dsns["s1"]), {name: plain_engine(dsn) for name, dsn in dsns.items()}
    owner = [strict.map.route("users", key).shard for key in range(ROWS)]
    for name in dsns:
        with psycopg.connect(dsns[name], autocommit=True) as connection, connection.cursor() as cursor:
            with cursor.copy("COPY items FROM STDIN") as copy:
                for key in (key for key in range(ROWS) if owner[key] == name):
                    copy.write_row((key, f"name {key}", key))
            connection.execute("VACUUM ANALYZE items")
    ordinary = sessionmaker(plain)
    ours, ours_relaxed, theirs = strict.sessionmaker(), relaxed.sessionmaker(), sharded(sharded_engines, strict)
    mine = [key for key in range(ROWS) if owner[key] == "s1"]
    statement = sa.select(Item.name).where(Item.id == sa.bindparam("key"))

    def select_in(make: Callable[[int], Session]) -> Work:
        def work(n: int) -> None:
            key = mine[n % len(mine)]
            with make(key) as session:
                session.execute(statement, {"key": key}).one()

        return work

    def get_in(make: Callable[[int], Session]) -> Work:
        def work(n: int) -> None:
            key = mine[n % len(mine)]
            with make(key) as session:
                session.get_one(Item, key)

        return work

    def insert_in(make: Callable[[int], Session]) -> Work:
        def work(n: int) -> None:
            key = keys_on_s1[n]
            with make(key) as session:
                session.add(Item(id=key, name="new", score=n))
                session.commit()

        return work

    total = TURNS * (COLD + CALLS) * 6
    keys_on_s1 = [key for key in range(ROWS, ROWS + 3 * total) if strict.map.route("users", key).shard == "s1"]
    makers: dict[str, Callable[[int], Session]] = {
        "plain Session": lambda _: ordinary(),
        "shardwright, pinned": lambda key: ours(key=key),
        "shardwright, pinned, relaxed": lambda key: ours_relaxed(key=key),
        "shardwright, routed": lambda _: ours(),
        "ShardedSession": lambda _: theirs(),
    }
    inserts = {name: insert_in(make) for name, make in makers.items()}
    if durable:
        measure("insert, fsync", inserts)
    else:
        measure("point select", {name: select_in(make) for name, make in makers.items()})
        measure("get", {name: get_in(make) for name, make in makers.items() if name != "ShardedSession"})
        measure("insert", inserts)
        scatter(server)
    for cluster in (strict, relaxed):
        cluster.close()
    for engine in (plain, *sharded_engines.values()):
        engine.dispose()


if __name__ == "__main__":
    main()
