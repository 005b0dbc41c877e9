"""The demo's tables as an application declares them: SQLAlchemy models, and one line each that says where rows live."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Integer, MetaData, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright.routing.tables import global_on, reference, sharded_by

#: The keyspace of everything that belongs to a plane.
KEYSPACE = "tailnum"
#: Where the tables live that are not spread.
HOME = "s1"


class Base(DeclarativeBase):
    """The demo's models."""

    metadata = MetaData()
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class _Departure:
    """What a row of the data set says about a departure."""

    year: Mapped[int] = mapped_column(SmallInteger)
    month: Mapped[int] = mapped_column(SmallInteger)
    day: Mapped[int] = mapped_column(SmallInteger)
    dep_time: Mapped[int | None]
    sched_dep_time: Mapped[int]
    dep_delay: Mapped[int | None]
    arr_time: Mapped[int | None]
    sched_arr_time: Mapped[int]
    arr_delay: Mapped[int | None]
    carrier: Mapped[str]
    flight: Mapped[int]
    origin: Mapped[str]
    dest: Mapped[str]
    air_time: Mapped[int | None]
    distance: Mapped[int]
    hour: Mapped[int] = mapped_column(SmallInteger)
    minute: Mapped[int] = mapped_column(SmallInteger)
    time_hour: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Flight(_Departure, Base):
    """One departure of a known plane. `checked_in` is not of the data set: the workload counts with it."""

    __tablename__ = "flights"
    __table_args__ = ({"info": sharded_by("tailnum", keyspace=KEYSPACE)},)

    tailnum: Mapped[str] = mapped_column(primary_key=True, sort_order=-2)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, sort_order=-1)
    checked_in: Mapped[int] = mapped_column(Integer, server_default=text("0"), sort_order=1)


class FlightWithoutTailnum(_Departure, Base):
    """A departure that the data set gives no tail number for: it has no shard key, so it lives on one shard."""

    __tablename__ = "flights_without_tailnum"
    __table_args__ = ({"info": global_on(HOME)},)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, sort_order=-1)


class Plane(Base):
    """A plane; colocated with its flights."""

    __tablename__ = "planes"
    __table_args__ = ({"info": sharded_by("tailnum", keyspace=KEYSPACE)},)

    tailnum: Mapped[str] = mapped_column(primary_key=True)
    year: Mapped[int | None]
    type: Mapped[str]
    manufacturer: Mapped[str]
    model: Mapped[str]
    engines: Mapped[int]
    seats: Mapped[int]
    speed: Mapped[int | None]
    engine: Mapped[str]


class Logbook(Base):
    """A page of a plane's logbook: a list that is only appended to. Written by the workload."""

    __tablename__ = "logbook"
    __table_args__ = ({"info": sharded_by("tailnum", keyspace=KEYSPACE)},)

    tailnum: Mapped[str] = mapped_column(primary_key=True)
    page: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    entries: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))


class Booking(Base):
    """A seat on a plane, booked and perhaps cancelled. Written by the workload."""

    __tablename__ = "bookings"
    __table_args__ = ({"info": sharded_by("tailnum", keyspace=KEYSPACE)},)

    tailnum: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class Airline(Base):
    """A carrier; every shard has all of them."""

    __tablename__ = "airlines"
    __table_args__ = ({"info": reference()},)

    carrier: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class Airport(Base):
    """An airport; every shard has all of them."""

    __tablename__ = "airports"
    __table_args__ = ({"info": reference()},)

    faa: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    lat: Mapped[float]
    lon: Mapped[float]
    alt: Mapped[int]
    tz: Mapped[int]
    dst: Mapped[str]
    tzone: Mapped[str | None]


class Weather(Base):
    """The weather of an hour at one of the three origins; on one shard."""

    __tablename__ = "weather"
    __table_args__ = ({"info": global_on(HOME)},)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    origin: Mapped[str]
    year: Mapped[int] = mapped_column(SmallInteger)
    month: Mapped[int] = mapped_column(SmallInteger)
    day: Mapped[int] = mapped_column(SmallInteger)
    hour: Mapped[int] = mapped_column(SmallInteger)
    temp: Mapped[float | None]
    dewp: Mapped[float | None]
    humid: Mapped[float | None]
    wind_dir: Mapped[int | None]
    wind_speed: Mapped[float | None]
    wind_gust: Mapped[float | None]
    precip: Mapped[float | None]
    pressure: Mapped[float | None]
    visib: Mapped[float | None]
    time_hour: Mapped[datetime] = mapped_column(DateTime(timezone=True))


#: For ``shardwright table register shardwright.demo.models:metadata``.
metadata = Base.metadata
