"""The demo's partitioned tables, and the one that becomes partitioned, as an application declares them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import BigInteger, Column, Date, DateTime, Integer, MetaData, SmallInteger, Table, Text

from shardwright.routing.tables import sharded_by, time_partitioned

#: The keyspaces of users, and of everything that belongs to a plane.
USERS = "users"
PLANES = "tailnum"


def platform(archives: Mapping[str, str] | None = None, grace: str | None = "7 days") -> MetaData:
    """The three tables of a platform: a partition a month, a week, a day.

    Args:
        archives: table -> directory that its windows are archived to before they are dropped; others are not archived.
        grace: between detaching and dropping.
    """
    made = MetaData()

    def kept(table: str, column: str, every: str, keep: str) -> dict[str, object]:
        return time_partitioned(column, every, keep=keep, archive=(archives or {}).get(table), grace=grace)

    Table(
        "analytics_events",
        made,
        Column("user_id", BigInteger, primary_key=True, autoincrement=False),
        Column("created_at", DateTime(timezone=True), primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False),
        info=sharded_by("user_id", USERS) | kept("analytics_events", "created_at", "1 month", "12 months"),
    )
    Table(
        "user_activity",
        made,
        Column("user_id", BigInteger, primary_key=True, autoincrement=False),
        Column("timestamp", DateTime(timezone=True), primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False),
        info=sharded_by("user_id", USERS) | kept("user_activity", "timestamp", "1 week", "3 months"),
    )
    Table(
        "system_logs",
        made,
        Column("log_date", Date, primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False, index=True),
        info=kept("system_logs", "log_date", "1 day", "30 days"),
    )
    return made


def flights() -> MetaData:
    """All flights in one ordinary table, sharded by tail number; `checked_in` is not of the data set: writers count with it."""
    made = MetaData()
    plain = ("dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay")
    Table(
        "flights",
        made,
        Column("tailnum", Text, primary_key=True),
        Column("id", Integer, primary_key=True, autoincrement=False),
        *(Column(name, SmallInteger, nullable=False) for name in ("year", "month", "day")),
        *(Column(name, Integer) for name in plain),
        Column("carrier", Text, nullable=False),
        Column("flight", Integer, nullable=False),
        Column("origin", Text, nullable=False),
        Column("dest", Text, nullable=False, index=True),
        Column("air_time", Integer),
        Column("distance", Integer, nullable=False),
        *(Column(name, SmallInteger, nullable=False) for name in ("hour", "minute")),
        Column("time_hour", DateTime(timezone=True), nullable=False),
        Column("checked_in", Integer, nullable=False, server_default="0"),
        info=sharded_by("tailnum", PLANES),
    )
    return made
