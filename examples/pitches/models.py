"""A platform where creators publish pitches, and investors read them, comment and sign NDAs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, ForeignKeyConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardwright import reference, sharded_by, time_partitioned

NOW = text("now()")


class Base(DeclarativeBase):
    """The platform's models."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
    }


class Genre(Base):
    """What a pitch is about: a full copy on every shard, so that everybody may join it."""

    __tablename__ = "genres"
    __table_args__ = ({"info": reference()},)

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class User(Base):
    """A creator or an investor. Everything of a user is on one shard."""

    __tablename__ = "users"
    __table_args__ = ({"info": sharded_by("id", keyspace="users")},)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    pitches: Mapped[list[Pitch]] = relationship(back_populates="creator", order_by="Pitch.id")


class Pitch(Base):
    """What a creator published; on the creator's shard."""

    __tablename__ = "pitches"
    __table_args__ = (
        ForeignKeyConstraint(["creator_id"], ["users.id"]),
        ForeignKeyConstraint(["genre"], ["genres.code"]),
        Index("pitches_newest", "id"),
        {"info": sharded_by("creator_id", keyspace="users")},
    )

    creator_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    genre: Mapped[str]
    title: Mapped[str]
    secret: Mapped[str]
    creator: Mapped[User] = relationship(back_populates="pitches")
    comments: Mapped[list[Comment]] = relationship(order_by="Comment.id")


class Comment(Base):
    """What somebody said of a pitch; beside the pitch, whoever said it."""

    __tablename__ = "comments"
    __table_args__ = (
        ForeignKeyConstraint(["creator_id", "pitch_id"], ["pitches.creator_id", "pitches.id"]),
        {"info": sharded_by("creator_id", keyspace="users")},
    )

    creator_id: Mapped[int] = mapped_column(primary_key=True)
    pitch_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: a user of any shard, so no foreign key
    author_id: Mapped[int]
    said: Mapped[str]


class Nda(Base):
    """An investor's promise; on the investor's shard."""

    __tablename__ = "ndas"
    __table_args__ = (
        ForeignKeyConstraint(["investor_id"], ["users.id"]),
        {"info": sharded_by("investor_id", keyspace="users")},
    )

    investor_id: Mapped[int] = mapped_column(primary_key=True)
    creator_id: Mapped[int] = mapped_column(primary_key=True)
    pitch_id: Mapped[int] = mapped_column(primary_key=True)
    signed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Notification(Base):
    """What a user should know."""

    __tablename__ = "notifications"
    __table_args__ = (
        ForeignKeyConstraint(["user_id"], ["users.id"]),
        {"info": sharded_by("user_id", keyspace="users")},
    )

    user_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    what: Mapped[str]


class AnalyticsEvent(Base):
    """What a user did: a partition a month, kept for a year."""

    __tablename__ = "analytics_events"
    __table_args__ = (
        {
            "info": sharded_by("user_id", keyspace="users")
            | time_partitioned("created_at", every="1 month", keep="12 months")
        },
    )

    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(primary_key=True, server_default=NOW)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    about: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
