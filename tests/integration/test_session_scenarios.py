"""What SQLAlchemy's documentation shows of sessions, relationship loading and bulk statements, on two shards."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import insert as pg_insert

from fix_blog import Author, Blog, Category, Comment, Media, Photo, Post, both
from shardwright import errors

pytestmark = [pytest.mark.newest_postgres, pytest.mark.every_driver(tasks="slow")]

# ---------------------------------------------------------------------- relationship loading


LOADERS = {
    "select": orm.lazyload,
    "joined": orm.joinedload,
    "subquery": orm.subqueryload,
    "selectin": orm.selectinload,
    "immediate": orm.immediateload,
}


@pytest.mark.parametrize("how", LOADERS)
def test_relationships_are_loaded_from_the_objects_shard(blog: Blog, how: str) -> None:
    loads = LOADERS[how]
    for session, key in both(blog):
        chosen = (
            sa.select(Author)
            .where(Author.id == key)
            .options(loads(Author.posts).options(loads(Post.comments), loads(Post.tags)))
        )
        found = session.scalars(chosen).unique().one()
        assert [[comment.text for comment in post.comments] for post in found.posts] == [["1 1", "1 2"], ["2 1", "2 2"]]
        assert [[tag.word for tag in post.tags] for post in found.posts] == [["w"], ["w"]]
        child = session.scalars(
            sa.select(Comment)
            .where(Comment.author_id == key, Comment.post_n == 2, Comment.n == 1)
            .options(loads(Comment.post))
        ).one()
        assert child.post is found.posts[1]


@pytest.mark.parametrize("how", LOADERS)
def test_relationships_of_all_shards_are_loaded(blog: Blog, how: str) -> None:
    loads = LOADERS[how]
    with blog.sessions() as session:
        every = (
            sa.select(Author)
            .order_by(Author.id)
            .options(loads(Author.posts).options(loads(Post.comments), loads(Post.tags)))
        )
        found = session.scalars(every).unique().all()
        assert [one.id for one in found] == sorted([blog.one, blog.two])
        for one in found:
            assert [[comment.text for comment in post.comments] for post in one.posts] == [
                ["1 1", "1 2"],
                ["2 1", "2 2"],
            ]
            assert {comment.author_id for post in one.posts for comment in post.comments} == {one.id}
            assert [[tag.word for tag in post.tags] for post in one.posts] == [["w"], ["w"]]


def test_other_ways_to_load(blog: Blog) -> None:
    for session, key in both(blog):
        raising = session.scalars(sa.select(Author).where(Author.id == key).options(orm.raiseload("*"))).one()
        with pytest.raises(sa.exc.InvalidRequestError):
            _ = raising.posts
        session.expunge_all()
        eager = (
            sa.select(Author)
            .join(Author.posts)
            .where(Author.id == key, Post.n == 2)
            .options(orm.contains_eager(Author.posts))
        )
        assert [post.n for post in session.scalars(eager).unique().one().posts] == [2]
        session.expunge_all()
        criteria = orm.with_loader_criteria(Post, Post.n == 1)
        assert [
            p.n for p in session.scalars(sa.select(Author).where(Author.id == key).options(criteria)).one().posts
        ] == [1]
        session.expunge_all()
        some = sa.select(Author).where(Author.id == key).options(orm.selectinload(Author.posts.and_(Post.n == 2)))
        assert [p.n for p in session.scalars(some).one().posts] == [2]
        session.expunge_all()
        found = session.scalars(sa.select(Author).where(Author.id == key).options(orm.load_only(Author.id))).one()
        assert "name" not in found.__dict__
        assert found.name == f"author {key}"
        assert [post.body for post in found.posts] == ["b", "bb"]
        assert list(found.titles) == ["title 1", "title 2"]
        assert [p.n for p in session.scalars(found.drafts.select().where(Post.author_id == key))] == [1, 2]
        assert [type(one).__name__ for one in found.medias] == ["Photo", "Sound"]


def test_trees_and_inheritance(blog: Blog) -> None:
    for session, key in both(blog):
        root = session.get_one(Category, (key, 1))
        assert root.children[0].children[0].n == 3
        deep = sa.select(Category).where(Category.author_id == key, Category.n == 1)
        session.expunge_all()
        loaded = session.scalars(deep.options(orm.selectinload(Category.children, recursion_depth=2))).one()
        assert loaded.children[0].children[0].n == 3
        photo = session.scalars(sa.select(Photo).where(Photo.author_id == key)).one()
        assert photo.width == 7
        media = session.scalars(sa.select(Media).where(Media.author_id == key).order_by(Media.n)).all()
        assert [(type(one).__name__, one.n) for one in media] == [("Photo", 1), ("Sound", 2)]
        session.expunge_all()
        all_kinds = orm.with_polymorphic(Media, "*")
        media = session.scalars(sa.select(all_kinds).where(all_kinds.author_id == key).order_by(all_kinds.n)).all()
        assert media[0].width == 7
        session.expunge_all()
        eager = sa.select(Media).where(Media.author_id == key).options(orm.selectin_polymorphic(Media, [Photo]))
        assert {type(one).__name__ for one in session.scalars(eager)} == {"Photo", "Sound"}
    with blog.sessions() as session:
        assert sorted(one.width for one in session.scalars(sa.select(Photo))) == [7, 7]
        assert len(session.scalars(sa.select(Media)).all()) == 4
        assert len(session.scalars(sa.select(Media).options(orm.selectin_polymorphic(Media, [Photo]))).all()) == 4


# ---------------------------------------------------------------------- session basics


def test_objects_live_through_their_states(blog: Blog) -> None:
    for session, key in both(blog):
        found = session.get_one(Author, key)
        assert session.get(Author, key) is found
        assert sa.inspect(found).persistent
        assert orm.object_session(found) is session
        found.name = "new"
        assert session.is_modified(found)
        assert found in session.dirty
        session.rollback()
        assert found.name == f"author {key}"
        session.expire(found, ["name"])
        session.refresh(found)
        session.expunge(found)
        assert sa.inspect(found).detached
        session.add(found)
        kept = pickle.loads(pickle.dumps(found))
        session.close()
        again = session.merge(kept, load=False)
        assert [post.title for post in again.posts] == ["title 1", "title 2"]
        orm.make_transient(again)
        session.rollback()
        session.refresh(session.get_one(Author, key, with_for_update=True), ["name"], with_for_update=True)
        session.rollback()
        session.close()


def test_cascades_and_orphans(blog: Blog) -> None:
    for shard, key in ((0, blog.one), (1, blog.two)):
        sessions = blog.sessions
        with sessions() as session, session.begin():
            found = session.get_one(Author, key)
            found.posts[1].tags.clear()
            found.posts.pop()
        assert blog.count("posts") == 3 - 2 * shard
        with sessions() as session, session.begin():
            session.delete(session.get_one(Author, key))
        assert blog.count("posts") == 2 - 2 * shard
    assert blog.count("tagged") == 0


def test_savepoints(blog: Blog) -> None:
    for session, key in both(blog):
        with session.begin():
            found = session.get_one(Author, key)
            for n in (5, 6, 7):
                try:
                    with session.begin_nested():
                        session.add(Post(author_id=key, n=n, title="t"))
                        if n == 6:
                            session.add(Post(author_id=key, n=1, title="twice"))
                except sa.exc.IntegrityError:
                    pass
            nested = session.begin_nested()
            found.name = "undone"
            session.flush()
            nested.rollback()
            assert found.name == f"author {key}"
            chosen = sa.select(Post.n).where(Post.author_id == key).order_by(Post.n)
            assert session.scalars(chosen).all() == [1, 2, 5, 7]
            session.execute(sa.delete(Post).where(Post.author_id == key, Post.n > 4))


def test_events_are_told(blog: Blog) -> None:
    for session, key in both(blog):
        told: list[str] = []
        for name in (
            "before_flush",
            "after_flush",
            "after_flush_postexec",
            "before_commit",
            "after_commit",
            "after_begin",
            "pending_to_persistent",
            "do_orm_execute",
            "after_transaction_end",
            "loaded_as_persistent",
        ):
            sa.event.listen(session, name, lambda *args, told=told, n=name: told.append(n))

        @sa.event.listens_for(session, "do_orm_execute")
        def narrowed(state: orm.ORMExecuteState) -> None:
            if state.is_select and not state.is_column_load and not state.is_relationship_load:
                state.statement = state.statement.options(orm.with_loader_criteria(Post, Post.n < 2))

        with session.begin():
            session.add(Post(author_id=key, n=9, title="x"))
            session.flush()
            assert [p.n for p in session.scalars(sa.select(Post).where(Post.author_id == key))] == [1]
            session.execute(sa.delete(Post).where(Post.author_id == key, Post.n == 9))
        assert set(told) >= {
            "before_flush",
            "after_flush",
            "before_commit",
            "after_commit",
            "after_begin",
            "do_orm_execute",
        }


# ---------------------------------------------------------------------- bulk and ORM-enabled statements


def test_orm_inserts(blog: Blog) -> None:
    for session, key in both(blog):
        rows = [{"author_id": key, "n": n, "title": f"t{n}"} for n in range(110, 100, -1)]
        with session.begin():
            given = session.scalars(sa.insert(Post).returning(Post, sort_by_parameter_order=True), rows).all()
            assert [post.n for post in given] == list(range(110, 100, -1))
            mixed: list[dict[str, Any]] = [
                {"id": key, "name": "x"},
                {"id": key, "name": "y", "fullname": "z"},
            ]
            upsert = pg_insert(Author).on_conflict_do_update(index_elements=[Author.id], set_={"name": "upserted"})
            for row in mixed:
                session.execute(upsert, [row])
            got = session.scalars(
                pg_insert(Author)
                .values(id=key, name="q")
                .on_conflict_do_update(index_elements=[Author.id], set_={"fullname": "kept"})
                .returning(Author),
                execution_options={"populate_existing": True},
            ).one()
            assert (got.name, got.fullname) == ("upserted", "kept")
            session.execute(
                sa.insert(Post).values(author_id=key, n=sa.bindparam("number"), title=sa.func.upper("abc")),
                {"number": 99},
            )
            session.execute(
                sa.insert(Post).values(
                    [{"author_id": key, "n": 97, "title": "a"}, {"author_id": key, "n": 98, "title": "b"}]
                )
            )
            copied = sa.select(Post.author_id, Post.n + 1000, Post.title).where(Post.author_id == key)
            session.execute(sa.insert(Post).from_select(["author_id", "n", "title"], copied))
            assert session.scalar(sa.select(sa.func.count()).where(Post.author_id == key)) == 30
        with session.begin():
            session.execute(sa.delete(Post).where(Post.author_id == key, Post.n > 2))
            session.execute(sa.update(Author).where(Author.id == key).values(name=f"author {key}", fullname=None))


@pytest.mark.parametrize("how", ["auto", "evaluate", "fetch", False])
def test_orm_updates_and_deletes(blog: Blog, how: Any) -> None:
    for session, key in both(blog):
        with session.begin():
            post = session.get_one(Post, (key, 1))
            changed = sa.update(Post).where(Post.author_id == key, Post.n == 1).values(title="changed")
            session.execute(changed.execution_options(synchronize_session=how))
            assert post.title == ("title 1" if how is False else "changed")
            given = session.execute(
                sa.update(Post).where(Post.author_id == key).values(title=Post.title + "!").returning(Post.n)
            ).all()
            assert sorted(given) == [(1,), (2,)]
            session.execute(
                sa.update(Post),
                [{"author_id": key, "n": 1, "title": "one"}, {"author_id": key, "n": 2, "title": "two"}],
            )
            joined = (
                sa.update(Post)
                .where(Post.author_id == Author.id, Author.id == key, Author.name != "")
                .values(title="from")
            )
            assert session.execute(joined).rowcount == 2
            gone = sa.delete(Comment).where(Comment.author_id == key, Comment.post_n == 1).returning(Comment.n)
            assert sorted(session.scalars(gone.execution_options(synchronize_session=how))) == [1, 2]
            deleted = session.query(Comment).filter(Comment.author_id == key).delete(synchronize_session=how)
            assert deleted == 2
            session.rollback()


def test_queries_of_many_kinds(blog: Blog) -> None:
    for session, key in both(blog):
        other = orm.aliased(Post)
        pairs = (
            sa.select(Post.n, other.n)
            .join(other, sa.and_(Post.author_id == other.author_id, Post.n < other.n))
            .where(Post.author_id == key)
        )
        assert session.execute(pairs).all() == [(1, 2)]
        newest = sa.select(sa.func.max(Post.n)).where(Post.author_id == Author.id).correlate(Author).scalar_subquery()
        assert session.execute(sa.select(Author.name, newest).where(Author.id == key)).all() == [(f"author {key}", 2)]
        exists = sa.select(Author).where(Author.id == key, Author.posts.any(Post.title == "title 2"))
        assert session.scalars(exists).one().id == key
        assert session.scalars(sa.select(Comment).where(Comment.author_id == key, Comment.post.has(Post.n == 1))).all()
        cte = (
            sa.select(Post.author_id, sa.func.count().label("many"))
            .where(Post.author_id == key)
            .group_by(Post.author_id)
            .cte()
        )
        assert session.execute(sa.select(Author.id, cte.c.many).join(cte, cte.c.author_id == Author.id)).all() == [
            (key, 2)
        ]
        sub = orm.aliased(Post, sa.select(Post).where(Post.author_id == key, Post.n == 2).subquery())
        assert session.scalars(sa.select(sub)).one().n == 2
        union = sa.union_all(
            sa.select(Post).where(Post.author_id == key, Post.n == 1),
            sa.select(Post).where(Post.author_id == key, Post.n == 2),
        )
        assert len(session.scalars(sa.select(Post).from_statement(union)).all()) == 2
        ranked = sa.select(Post.n, sa.func.row_number().over(order_by=Post.n.desc())).where(Post.author_id == key)
        assert sorted(session.execute(ranked).all()) == [(1, 2), (2, 1)]
        lateral = (
            sa.select(Comment.text)
            .where(Comment.author_id == Post.author_id, Comment.post_n == Post.n)
            .limit(1)
            .lateral()
        )
        assert (
            len(
                session.execute(
                    sa.select(Post.n, lateral.c.text).join(lateral, sa.true()).where(Post.author_id == key)
                ).all()
            )
            == 2
        )
        assert session.scalar(sa.select(Author.shout).where(Author.id == key)) == f"AUTHOR {key}"
        bundle = orm.Bundle("pair", Post.n, Post.title)
        assert (
            session.execute(sa.select(bundle).where(Post.author_id == key).order_by(Post.n)).first()[0].title
            == "title 1"
        )
        assert (
            session.execute(sa.select(sa.func.coalesce(Author.fullname, "none")).where(Author.id == key)).scalar_one()
            == "none"
        )
        for page in session.scalars(
            sa.select(Post).where(Post.author_id == key).order_by(Post.n).execution_options(yield_per=1)
        ).partitions():
            assert len(page) == 1
        query = session.query(Post).filter_by(author_id=key).order_by(Post.n)
        assert query.count() == 2
        assert query.first().n == 1
        assert query.filter(Post.n == 2).one_or_none().n == 2
        pairs = session.query(Post.n, Author.name).join(Post.author).filter(Author.id == key).order_by(Post.n)
        assert list(pairs) == [(1, f"author {key}"), (2, f"author {key}")]
        assert session.query(Author).options(orm.joinedload(Author.posts)).filter(Author.id == key).one().posts
        with pytest.warns(sa.exc.LegacyAPIWarning):
            assert session.query(Author).get(key).id == key  # type: ignore[union-attr]
        assert session.query(query.exists()).scalar()
        assert query.order_by(None).update({"title": "q"}) == 2
        session.rollback()


def test_what_text_reads_needs_a_key(blog: Blog) -> None:
    with blog.sessions() as session:
        text = sa.text("SELECT title FROM posts WHERE author_id = :key ORDER BY n")
        assert session.scalars(text, {"key": blog.two}, bind_arguments={"key": blog.two}).all() == [
            "title 1",
            "title 2",
        ]
        columns = text.columns(Post.title)
        assert len(session.execute(columns, {"key": blog.two}, bind_arguments={"shard": "s2"}).all()) == 2
        entities = sa.select(Post).from_statement(sa.text("SELECT * FROM posts WHERE author_id = :key"))
        assert len(session.scalars(entities, {"key": blog.two}, bind_arguments={"key": blog.two}).all()) == 2
        with pytest.raises(errors.NoShardKey):
            session.scalars(text, {"key": blog.two})
