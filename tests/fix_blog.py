"""A blog on two shards, whose models use what SQLAlchemy's documentation shows; for tests of sessions.

Users with posts, comments on posts, tags, a tree of categories, and two kinds of media (joined and single-table
inheritance). Everything of an author is on one shard, so each relationship joins by the shard key too.

Fixtures:
    blog    Blog: the cluster, with an author on each shard
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, relationship

import fix_drivers
from fix_servers import Dsns
from shardwright import ShardSession, sharded_by
from shardwright.catalog import models
from shardwright.session import Cluster
from shardwright.session.pools import Driver
from shardwright.testing.clusters import make_ready


class Base(orm.DeclarativeBase):
    pass


Key = sa.BigInteger


class Author(Base):
    __tablename__ = "authors"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(Key, primary_key=True, autoincrement=False)
    name: Mapped[str]
    fullname: Mapped[str | None]
    posts: Mapped[list[Post]] = relationship(
        primaryjoin="Author.id == foreign(Post.author_id)",
        back_populates="author",
        order_by="Post.n",
        cascade="all, delete-orphan",
    )
    drafts: orm.WriteOnlyMapped[Post] = relationship(
        primaryjoin="Author.id == foreign(Post.author_id)", order_by="Post.n", viewonly=True
    )
    titles: AssociationProxy[list[str]] = association_proxy("posts", "title")
    medias: Mapped[list[Media]] = relationship(
        primaryjoin="Author.id == foreign(Media.author_id)", order_by="Media.n", cascade="all, delete-orphan"
    )

    @hybrid_property
    def shout(self) -> str:
        return self.name.upper()

    @shout.inplace.expression
    @classmethod
    def _shout(cls) -> sa.ColumnElement[str]:
        return sa.func.upper(cls.name)


tagged = sa.Table(
    "tagged",
    Base.metadata,
    sa.Column("author_id", Key, primary_key=True),
    sa.Column("post_n", sa.Integer, primary_key=True),
    sa.Column("tag_n", sa.Integer, primary_key=True),
    info=sharded_by("author_id"),
)


class Post(Base):
    __tablename__ = "posts"
    __table_args__ = ({"info": sharded_by("author_id")},)
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str] = mapped_column(deferred=True, default="")
    author: Mapped[Author] = relationship(primaryjoin="Author.id == foreign(Post.author_id)", back_populates="posts")
    comments: Mapped[list[Comment]] = relationship(
        primaryjoin="and_(Post.author_id == foreign(Comment.author_id), Post.n == foreign(Comment.post_n))",
        order_by="Comment.n",
        back_populates="post",
        cascade="all, delete-orphan",
    )
    tags: Mapped[list[Tag]] = relationship(
        secondary=tagged,
        primaryjoin="and_(Post.author_id == tagged.c.author_id, Post.n == tagged.c.post_n)",
        secondaryjoin="and_(Tag.author_id == tagged.c.author_id, Tag.n == tagged.c.tag_n)",
        foreign_keys=[tagged.c.author_id, tagged.c.post_n, tagged.c.tag_n],
        order_by="Tag.n",
    )


class Comment(Base):
    __tablename__ = "comments"
    __table_args__ = ({"info": sharded_by("author_id")},)
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    post_n: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    post: Mapped[Post] = relationship(
        primaryjoin="and_(Post.author_id == foreign(Comment.author_id), Post.n == foreign(Comment.post_n))",
        back_populates="comments",
    )


class Tag(Base):
    __tablename__ = "tags"
    __table_args__ = ({"info": sharded_by("author_id")},)
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str]


class Category(Base):
    """A tree, adjacency list."""

    __tablename__ = "categories"
    __table_args__ = ({"info": sharded_by("author_id")},)
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    parent_n: Mapped[int | None]
    children: Mapped[list[Category]] = relationship(
        primaryjoin="and_(Category.author_id == foreign(remote(Category.author_id)), "
        "Category.n == foreign(remote(Category.parent_n)))",
        order_by="Category.n",
    )


class Media(Base):
    """Joined inheritance."""

    __tablename__ = "media"
    __table_args__ = ({"info": sharded_by("author_id")},)
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "media"}


class Photo(Media):
    __tablename__ = "photos"
    author_id: Mapped[int] = mapped_column(Key, primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    width: Mapped[int]
    __table_args__ = (
        sa.ForeignKeyConstraint(["author_id", "n"], ["media.author_id", "media.n"]),
        {"info": sharded_by("author_id")},
    )
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "photo"}


class Sound(Media):
    """Single-table inheritance."""

    seconds: Mapped[int | None]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "sound"}


@dataclass
class Blog:
    """Two shards, an author on each with two posts of two comments, a tag on every post, media and a tree."""

    cluster: Cluster
    dsns: Dsns
    #: what is closed by whoever runs the test
    clusters: list[Cluster]
    #: an author's key on s1, and one on s2
    one: int
    two: int

    @property
    def sessions(self) -> Callable[..., ShardSession]:
        return self.cluster.sessionmaker()

    def count(self, table: str) -> int:
        found = 0
        for dsn in self.dsns.shards.values():
            with psycopg.connect(dsn) as connection:
                row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
                assert row is not None
                found += row[0]
        return found


def author(key: int) -> Author:
    made = Author(id=key, name=f"author {key}", fullname=None)
    made.posts = [
        Post(n=n, title=f"title {n}", body="b" * n, comments=[Comment(n=m, text=f"{n} {m}") for m in (1, 2)])
        for n in (1, 2)
    ]
    return made


@pytest.fixture
def blog(cluster_dsns: Callable[..., Dsns], driver: Driver) -> Iterator[Blog]:
    with ExitStack() as stack:
        dsns = cluster_dsns(2)
        make_ready(dsns.catalog, dsns.shards)
        with psycopg.connect(dsns.catalog, autocommit=True) as catalog:
            models.register(catalog, Base.metadata)
        with Cluster.connect(dsns.catalog, refresh="never", application="test") as cluster:
            keys = [next(k for k in range(1, 10_000) if cluster.map.route("users", k).shard == s) for s in ("s1", "s2")]
            for key in keys:
                fill(cluster, key)
        driven = stack.enter_context(fix_drivers.connect(driver, dsns.catalog, refresh="never", application="test"))
        yield Blog(driven, dsns, [driven], *keys)


def fill(cluster: Cluster, key: int) -> None:
    """Write an author, and all that is the author's."""
    with cluster.sessionmaker()(key=key) as session, session.begin():
        tag = Tag(author_id=key, n=1, word="w")
        root = Category(author_id=key, n=1, children=[Category(n=2, children=[Category(n=3)])])
        medias = [Photo(author_id=key, n=1, width=7), Sound(author_id=key, n=2, seconds=3)]
        session.add_all([author(key), tag, root, *medias])
        session.flush()
        for post in session.scalars(sa.select(Post).where(Post.author_id == key)):
            post.tags.append(tag)


def both(blog: Blog) -> Iterator[tuple[ShardSession, int]]:
    """A pinned session and a routed one, each with an author of its own."""
    for key in (blog.one, blog.two):
        with blog.sessions(key=key) as session:
            yield session, key
        with blog.sessions() as session:
            yield session, key
