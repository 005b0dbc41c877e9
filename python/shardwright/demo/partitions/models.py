"""The simulated platform's partitioned tables, as an application declares them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Date, DateTime, MetaData, Table, Text

from shardwright.routing.tables import sharded_by, time_partitioned

#: The keyspace of users.
USERS = "users"


def platform(archive: str | None = None, grace: str | None = "7 days") -> MetaData:
    """The three tables of a platform: a partition a month, a week, a day.

    Args:
        archive: directory that windows are archived to before they are dropped; None: they are not.
        grace: between detaching and dropping.
    """
    made = MetaData()

    def kept(column: str, every: str, keep: str) -> dict[str, object]:
        return time_partitioned(column, every, keep=keep, archive=archive, grace=grace)

    Table(
        "analytics_events",
        made,
        Column("user_id", BigInteger, primary_key=True, autoincrement=False),
        Column("created_at", DateTime(timezone=True), primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False),
        info=sharded_by("user_id", USERS) | kept("created_at", "1 month", "12 months"),
    )
    Table(
        "user_activity",
        made,
        Column("user_id", BigInteger, primary_key=True, autoincrement=False),
        Column("timestamp", DateTime(timezone=True), primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False),
        info=sharded_by("user_id", USERS) | kept("timestamp", "1 week", "3 months"),
    )
    Table(
        "system_logs",
        made,
        Column("log_date", Date, primary_key=True),
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False, index=True),
        info=kept("log_date", "1 day", "30 days"),
    )
    return made
