"""Three tables of an application's platform, and one line each that says where rows live and how long."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Date, DateTime, Index, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright import sharded_by, time_partitioned


class Base(DeclarativeBase):
    """The platform's models."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text, dict[str, Any]: JSONB}


class AnalyticsEvent(Base):
    """What a user did. A partition a month, kept for a year; a user's events are all on one shard."""

    __tablename__ = "analytics_events"
    __table_args__ = (
        {"info": sharded_by("user_id") | time_partitioned("created_at", every="1 month", keep="12 months")},
    )

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), primary_key=True, server_default=text("now()")
    )
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str]
    properties: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


class UserActivity(Base):
    """When a user was seen. A partition an ISO week, kept for three months; colocated with the user's events."""

    __tablename__ = "user_activity"
    __table_args__ = ({"info": sharded_by("user_id") | time_partitioned("timestamp", every="1 week", keep="3 months")},)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    timestamp: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True, server_default=text("now()"))
    action: Mapped[str] = mapped_column(primary_key=True)


class SystemLog(Base):
    """What a service said. A partition a day, kept for 30 days; it has no shard key, so each shard has rows of its own."""

    __tablename__ = "system_logs"
    __table_args__ = (
        Index("system_logs_by_service", "service", "log_date"),
        {"info": time_partitioned("log_date", every="1 day", keep="30 days")},
    )

    log_date: Mapped[date] = mapped_column(Date, primary_key=True, server_default=text("current_date"))
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, server_default=text("gen_random_uuid()"))
    service: Mapped[str]
    message: Mapped[str]
