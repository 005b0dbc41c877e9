"""Factories of sessions, as SQLAlchemy's documentation uses them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from fix_blog import Author, Blog

pytestmark = pytest.mark.newest_postgres


def test_factories(blog: Blog) -> None:
    scoped = orm.scoped_session(blog.cluster.sessionmaker())
    assert scoped.get_one(Author, blog.one).id == blog.one
    scoped(), scoped.remove()
    made = blog.cluster.sessionmaker(expire_on_commit=False, info={"a": 1})
    with made() as session:
        assert session.info == {"a": 1}
    made.configure(autobegin=False)
    with made() as session:
        with pytest.raises(sa.exc.InvalidRequestError):
            session.get(Author, blog.one)
        with session.begin():
            assert session.get(Author, blog.one)
    with made(key=blog.one, close_resets_only=False, autobegin=True) as session:
        assert session.get(Author, blog.one)
    with pytest.raises(sa.exc.InvalidRequestError):
        session.get(Author, blog.one)
