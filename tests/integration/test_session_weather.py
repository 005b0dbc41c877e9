"""The example by which SQLAlchemy's documentation explains horizontal sharding: weather reports, kept by continent."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from fix_servers import Dsns
from shardwright import ShardSession, errors, sharded_by
from shardwright.catalog import keyspaces, models
from shardwright.session import Cluster
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres

TEMPERATURES = {
    ("Asia", "Tokyo"): 80,
    ("North America", "New York"): 75,
    ("North America", "Toronto"): 65,
    ("Europe", "London"): 65,
    ("Europe", "Dublin"): 70,
    ("South America", "Brasilia"): 85,
    ("South America", "Quito"): 75,
}


class Base(DeclarativeBase):
    pass


class Location(Base):
    __tablename__ = "weather_locations"
    __table_args__ = ({"info": sharded_by("continent", keyspace="continents")},)
    continent: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    city: Mapped[str]
    reports: Mapped[list[Report]] = relationship(back_populates="location", order_by="Report.id")


class Report(Base):
    __tablename__ = "weather_reports"
    __table_args__ = (
        sa.ForeignKeyConstraint(["continent", "location_id"], ["weather_locations.continent", "weather_locations.id"]),
        {"info": sharded_by("continent", keyspace="continents")},
    )
    continent: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    location_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    temperature: Mapped[float]
    reported_at: Mapped[datetime.datetime] = mapped_column(server_default=sa.func.now())
    location: Mapped[Location] = relationship(back_populates="reports")


@pytest.fixture
def cluster(cluster_dsns: Callable[..., Dsns]) -> Iterator[Cluster]:
    with ExitStack() as stack:
        dsns = cluster_dsns(2)
        make_ready(dsns.catalog, dsns.shards, keyspace="")
        with psycopg.connect(dsns.catalog, autocommit=True) as catalog:
            keyspaces.create_keyspace(catalog, "continents", key_type="text", buckets=64, shards=list(dsns.shards))
            models.register(catalog, Base.metadata)
        made = stack.enter_context(Cluster.connect(dsns.catalog, refresh="never", application="test"))
        numbers = itertools.count(1)
        with made.sessionmaker(cross_shard="two_phase").begin() as session:
            for (continent, city), temperature in TEMPERATURES.items():
                place = Location(continent=continent, id=next(numbers), city=city)
                place.reports.append(Report(id=1, temperature=temperature))
                session.add(place)
        yield made


@pytest.fixture
def session(cluster: Cluster) -> Iterator[ShardSession]:
    with cluster.sessionmaker()() as made:
        yield made


def test_what_the_page_asks(cluster: Cluster, session: ShardSession) -> None:
    shards = {continent: cluster.map.route("continents", continent).shard for continent, _ in TEMPERATURES}
    assert set(shards.values()) == {"s1", "s2"}, "the continents' keys no longer tell two shards apart"

    tokyo = session.get_one(Location, ("Asia", 1))
    assert (tokyo.city, tokyo.reports[0].temperature) == ("Tokyo", 80)
    here = session.scalars(sa.select(Location).filter(Location.continent == "North America")).all()
    assert {one.city for one in here} == {"New York", "Toronto"}
    there = session.scalars(sa.select(Location).filter(Location.continent.in_(["Europe", "Asia"]))).all()
    assert {one.city for one in there} == {"Tokyo", "London", "Dublin"}
    # What the extension gives as lists behind each other is one result here: ordered, limited, counted.
    warm = sa.select(Location).join(Location.reports).where(Report.temperature > 70)
    warm = warm.order_by(Report.temperature.desc(), Location.city.collate("C")).limit(3)
    assert [one.city for one in session.scalars(warm)] == ["Brasilia", "Tokyo", "New York"]
    assert session.scalar(sa.select(sa.func.max(Report.temperature))) == 85
    average = sa.select(Location.continent, sa.func.avg(Report.temperature)).join(Location.reports)
    means = dict(session.execute(average.group_by(Location.continent)).all())
    assert means == {"Asia": 80, "North America": 70, "Europe": 67.5, "South America": 80}
    loaded = session.scalars(sa.select(Location).options(selectinload(Location.reports))).all()
    assert sorted(one.reports[0].temperature for one in loaded) == sorted(TEMPERATURES.values())


def test_objects_know_their_shard(cluster: Cluster, session: ShardSession) -> None:
    # The extension keeps it as an identity token beside the key; here the key itself tells.
    places = session.scalars(sa.select(Location)).all()
    session.commit()
    for place in places:
        assert session.get(Location, (place.continent, place.id)) is place
        assert place.reports[0].location is place
    assert len(session.identity_map) == 2 * len(places)


def test_updates_and_deletes_name_key_or_shard(session: ShardSession) -> None:
    with pytest.raises(errors.NoShardKey):
        session.execute(sa.update(Report).values(temperature=0))
    named = session.execute(
        sa.update(Report).where(Report.continent == "Asia").values(temperature=Report.temperature + 1)
    )
    assert named.rowcount == 1
    assert session.get_one(Report, ("Asia", 1, 1)).temperature == 81
    session.rollback()
    wide = (
        sa.update(Report)
        .where(Report.temperature > 0)
        .values(temperature=0)
        .execution_options(synchronize_session=False)
    )
    with pytest.raises(errors.NoShardKey):
        session.execute(wide)
    changed = session.execute(wide, bind_arguments={"shard": "s1"}).rowcount
    assert 0 < changed < len(TEMPERATURES)
    session.rollback()
