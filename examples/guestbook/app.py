"""A guest book as a Flask application: users sign each other's books, and a book is on its owner's shard.

make guestbook                            from the top of the checkout: serves until Ctrl-C, and leaves nothing
SHARDWRIGHT_CATALOG=.. flask run          against a cluster that is there
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, g, jsonify, request
from sqlalchemy import BigInteger, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright import Cluster, ShardSession, errors, sharded_by


class Base(DeclarativeBase):
    """The models."""


class Entry(Base):
    """What somebody wrote into a book."""

    __tablename__ = "entries"
    __table_args__ = ({"info": sharded_by("owner_id")},)

    owner_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    said: Mapped[str]


def make_app(catalog: str) -> Flask:
    """The application.

    Args:
        catalog: how to reach the cluster's catalog.
    """
    app = Flask(__name__)
    cluster = Cluster.connect(catalog, application="guestbook")
    new_session = cluster.sessionmaker()
    app.extensions["cluster"] = cluster

    def session() -> ShardSession:
        """The request's session; without a key, so that each statement finds its shard."""
        if "session" not in g:
            g.session = new_session()
        return g.session  # type: ignore[no-any-return]

    @app.teardown_appcontext
    def close(_: BaseException | None) -> None:
        if (used := g.pop("session", None)) is not None:
            used.close()

    @app.errorhandler(errors.ShardUnavailable)
    def unavailable(error: errors.ShardUnavailable) -> tuple[Any, int]:
        return jsonify(error=error.message), 503

    @app.post("/books/<int:owner>")
    def sign(owner: int) -> tuple[Any, int]:
        """Run again by itself when the owner's rows have just moved to another shard."""
        entry = Entry(owner_id=owner, id=cluster.next_id(), said=request.get_json()["said"])
        cluster.run(owner, lambda session: session.add(entry))
        return jsonify(id=entry.id), 201

    @app.get("/books/<int:owner>")
    def read(owner: int) -> Any:
        found = session().scalars(select(Entry.said).where(Entry.owner_id == owner).order_by(Entry.id))
        return jsonify(list(found))

    @app.get("/longest")
    def longest() -> Any:
        """Asked of all shards at once."""
        counted = select(Entry.owner_id, func.count().label("many")).group_by(Entry.owner_id)
        found = session().execute(counted.order_by(func.count().desc(), Entry.owner_id).limit(3))
        return jsonify([dict(row) for row in found.mappings()])

    return app


def create_app() -> Flask:
    """What `flask run` calls."""
    return make_app(os.environ["SHARDWRIGHT_CATALOG"])
