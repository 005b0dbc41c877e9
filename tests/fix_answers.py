"""One plain database and clusters of several sizes with the same rows, for tests that compare their answers.

Fixtures:
    make_worlds   (sizes, make_database=) -> Worlds: one plain database, and a cluster a size, filled with the same random rows
"""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardwright import engines, reference, sharded_by
from shardwright.catalog import maps, models, shards
from shardwright.routing.tables import global_on
from shardwright.session import Cluster
from shardwright.testing.clusters import make_ready

PEOPLE = 60


class Base(DeclarativeBase):
    pass


class Person(Base):
    """A column of every type that is compared."""

    __tablename__ = "people"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(collation="odd"))
    code: Mapped[str | None] = mapped_column(sa.String(collation="C"))
    country: Mapped[str | None]
    score: Mapped[int | None]
    small: Mapped[int] = mapped_column(sa.SmallInteger)
    weight: Mapped[float | None] = mapped_column(sa.Double)
    ratio: Mapped[float | None] = mapped_column(sa.REAL)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    active: Mapped[bool | None]
    born: Mapped[datetime.date | None]
    seen: Mapped[datetime.datetime] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[datetime.datetime | None] = mapped_column(sa.DateTime())
    tag: Mapped[uuid.UUID | None]
    blob: Mapped[bytes | None]
    doc: Mapped[Any | None] = mapped_column(JSONB)
    pause: Mapped[datetime.timedelta | None] = mapped_column(sa.Interval)
    posts: Mapped[list[Post]] = relationship(
        primaryjoin="Person.id == foreign(Post.person_id)", order_by="Post.n", viewonly=True
    )


class Post(Base):
    __tablename__ = "posts"
    __table_args__ = ({"info": sharded_by("person_id")},)
    person_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    likes: Mapped[int | None]
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    at: Mapped[datetime.datetime] = mapped_column(sa.DateTime(timezone=True))


class Country(Base):
    __tablename__ = "countries"
    __table_args__ = ({"info": reference(home="s1")},)
    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    size: Mapped[int]


class Setting(Base):
    __tablename__ = "settings"
    __table_args__ = ({"info": global_on("s1")},)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


#: A collation that nobody here knows: a linguistic one where there is ICU.
ODD = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_collation WHERE collname = 'und-x-icu') THEN CREATE COLLATION odd FROM "und-x-icu";
    ELSE CREATE COLLATION odd FROM "C"; END IF;
END $$
"""
TABLES: tuple[sa.Table, ...] = (Person.__table__, Post.__table__, Country.__table__, Setting.__table__)  # type: ignore[assignment]
NAMES = [
    "",
    "a",
    "A",
    "b",
    "B",
    "ab",
    "a b",
    "Ab",
    "Zoë",
    "zoe",
    "é",
    "ß",
    "ss",
    "日本",
    "ñandú",
    "_",
    "-a",
    "10",
    "9",
    "\U0001f600",
]
LANDS = ["de", "fr", "it", "日本"]


def random_rows(rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Rows for each table: NULLs, NaN, infinities, empty strings, equal values, numerics of different scale."""
    day = datetime.datetime(2026, 10, 25, tzinfo=datetime.UTC)
    number = Decimal

    def some(*values: Any) -> Any:
        return rng.choice(values)

    def person(key: int) -> dict[str, Any]:
        return {
            "id": key,
            "name": some(*NAMES) + some("", "", str(key % 7)),
            "code": some(None, *NAMES),
            "country": some(None, *LANDS, "xx"),
            "score": some(None, *(rng.randrange(-5, 20) for _ in range(5))),
            "small": rng.randrange(3),
            "weight": some(None, 0.0, -0.0, 1.5, -2.25, float("nan"), float("inf"), float("-inf"), rng.randrange(9) / 4),
            "ratio": some(None, 0.0, 0.5, -1.75, float("nan"), float("inf"), rng.randrange(9) / 8),
            "price": some(None, number("0"), number("0.00"), number("1.1"), number("1.10"), number("-7.5"), number("NaN"),
                          number("Infinity"), number(rng.randrange(10**6)) / 100, number("12345678901234567890.123456789")),
            "active": some(True, False, None),
            "born": some(None, datetime.date(1970, 1, 1), datetime.date(2000, 2, 29) + datetime.timedelta(rng.randrange(4))),
            "seen": day + datetime.timedelta(minutes=30 * rng.randrange(10)),
            "local": some(None, datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=rng.randrange(5))),
            "tag": some(None, uuid.UUID(int=7), uuid.UUID(int=rng.getrandbits(128))),
            "blob": some(None, b"", b"\0", b"a", rng.randbytes(2)),
            "doc": some(None, {}, [], {"k": rng.randrange(3)}, {"k": "a"}, [1, None], "text", 1, 1.5, True),
            "pause": some(None, datetime.timedelta(0), datetime.timedelta(days=30), datetime.timedelta(hours=rng.randrange(3))),
        }  # fmt: skip

    def post(key: int, n: int) -> dict[str, Any]:
        return {
            "person_id": key,
            "n": n,
            "title": some(*NAMES),
            "likes": some(None, *(rng.randrange(8) for _ in range(4))),
            "price": some(None, number(rng.randrange(500)) / 100),
            "at": day + datetime.timedelta(hours=rng.randrange(5)),
        }

    keys = list(range(1, PEOPLE + 1))
    return {
        "people": [person(key) for key in keys],
        "posts": [post(key, n) for key in keys for n in range(rng.choice([0, 0, 1, 2, 3, 5]))],
        "countries": [{"code": code, "name": f"name of {code}", "size": rng.randrange(3)} for code in LANDS],
        "settings": [{"name": name, "value": rng.randrange(5)} for name in ("a", "b", "c")],
    }


@dataclass
class World:
    """One cluster, with an empty shard beside those that serve."""

    size: int
    catalog_dsn: str
    dsns: dict[str, str]
    cluster: Cluster
    countries: list[dict[str, Any]]

    @property
    def spare(self) -> str:
        """The shard that serves nothing before a move."""
        return f"s{self.size + 1}"

    def catalog(self) -> psycopg.Connection[Any]:
        return engines.connect_catalog(self.catalog_dsn, "test")


@dataclass
class Worlds:
    """The plain database, and the clusters by their size."""

    plain: sa.Engine
    by_size: dict[int, World]


def _fill(
    connection: sa.Connection, rows: dict[str, list[dict[str, Any]]], of_shard: Callable[[str, Any], bool]
) -> None:
    for table in TABLES:
        mine = [row for row in rows[table.name] if of_shard(table.name, row)]
        if mine:
            connection.execute(table.insert(), mine)


@pytest.fixture
def make_worlds(make_database: Callable[..., str], rng: random.Random) -> Iterator[Callable[[Sequence[int]], Worlds]]:
    with ExitStack() as stack:

        def make(sizes: Sequence[int], make_database: Callable[..., str] = make_database) -> Worlds:
            rows = random_rows(rng)
            dsn = make_database("plain")
            plain = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
            stack.callback(plain.dispose)
            with plain.begin() as connection:
                connection.exec_driver_sql(ODD)
                Base.metadata.create_all(connection)
                _fill(connection, rows, lambda *_: True)
            return Worlds(plain, {size: _world(size, rows, make_database, stack) for size in sizes})

        yield make


def _world(
    size: int, rows: dict[str, list[dict[str, Any]]], make_database: Callable[..., str], stack: ExitStack
) -> World:
    catalog = make_database("catalog")
    dsns = {f"s{at}": make_database(f"s{at}") for at in range(1, size + 1)}
    make_ready(catalog, dsns)
    for name in dsns:
        with psycopg.connect(dsns[name]) as shard:
            shard.execute(ODD)
    with engines.connect_catalog(catalog, "test") as connection:
        models.register(connection, _registered())
    cluster = stack.enter_context(Cluster.connect(catalog, refresh="never", application="test"))
    shard_map = cluster.map

    def owner(table: str, row: dict[str, Any]) -> str:
        key = {"people": "id", "posts": "person_id"}.get(table)
        return shard_map.route("users", row[key]).shard if key is not None else "s1"

    for name in dsns:
        with cluster.engine(name).begin() as connection:
            Country.__table__.create(connection)  # type: ignore[attr-defined]
            _fill(connection, rows, lambda table, row, name=name: table == "countries" or owner(table, row) == name)  # type: ignore[misc]
    return World(size, catalog, dsns, cluster, rows["countries"])


def _registered() -> sa.MetaData:
    """All tables but the reference one: its copies are filled by hand here, since nothing but routing is looked at."""
    made = sa.MetaData()
    for table in TABLES:
        if table is not Country.__table__:
            table.to_metadata(made)
    return made


def add_spare(world: World, dsn: str) -> None:
    """Add an empty shard to a cluster."""
    with psycopg.connect(dsn) as shard:
        shard.execute(ODD)
    with world.catalog() as connection:
        shards.add_shard(connection, world.spare, dsn)
    world.dsns[world.spare] = dsn
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with engine.begin() as connection:
        Country.__table__.create(connection)  # type: ignore[attr-defined]
        connection.execute(Country.__table__.insert(), world.countries)  # type: ignore[attr-defined]
    engine.dispose()


# A move in slow motion, of all that one shard serves: what a real one does, and nothing of its streams.


def importing(world: World, source: str, target: str) -> list[tuple[int, str]]:
    """Copy a shard's rows to another one, which does not serve them yet; returns ids and points of the ranges."""
    with psycopg.connect(world.dsns[source]) as here, psycopg.connect(world.dsns[target]) as there:
        ranges = here.execute("SELECT id, points::text FROM shardwright.ranges").fetchall()
        there.execute("SET session_replication_role = replica")
        for number, points in ranges:
            there.execute(
                "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
                "VALUES (%s, 'users', %s, 'importing', 1)",
                (number, points),
            )
        for table in (Person.__tablename__, Post.__tablename__):
            with here.cursor().copy(f"COPY {table} TO STDOUT".encode()) as out:
                data = b"".join(bytes(block) for block in out)
            with there.cursor().copy(f"COPY {table} FROM STDIN".encode()) as into:
                into.write(data)
    return ranges


def switched(world: World, ranges: Sequence[tuple[int, str]], source: str, target: str) -> None:
    """Hand the ranges over; the old rows stay where they were."""
    numbers = [number for number, _ in ranges]
    states = ((source, "moved"), (target, "open"))
    with world.catalog() as catalog, catalog.transaction():
        catalog.execute("UPDATE shardwright.ranges SET shard = %s WHERE id = ANY(%s)", (target, numbers))
        maps.write_version(catalog, "test")
    for name, state in states:
        with psycopg.connect(world.dsns[name]) as connection:
            connection.execute("UPDATE shardwright.ranges SET state = %s WHERE id = ANY(%s)", (state, numbers))
