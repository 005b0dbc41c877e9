"""Comments that say who sent a statement where: seen by the server, harmless to it, and to what sessions know of it."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
import sqlalchemy as sa

from fix_sessions import Shop, User
from shardwright.session.commenting import comment_of
from shardwright.session.wire import may_write

pytestmark = pytest.mark.newest_postgres

SEEN = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
NASTY = "o'neil's */ DROP TABLE users; /* 100% :x %s %(x)s\n\\ ünï UPDATE order"


@pytest.mark.parametrize("value", [NASTY, "update", "DELETE-service", "plain", "*/", "'", "%", "🐘"])
def test_no_value_ends_its_comment(value: str) -> None:
    comment = comment_of(application=value, shard=None, route="pinned")
    inside = comment.removeprefix("/*").removesuffix("*/")
    assert "*" not in inside
    assert inside.count("'") == 4
    name, _, rest = inside.partition("=")
    assert (name, unquote(rest.split("'")[1])) == ("application", value)
    assert inside.endswith(",route='pinned'")
    # No word in it makes a read a write.
    assert not may_write(f"SELECT 1 {comment}")


def test_statements_say_who_sent_them(shop: Shop) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(application=NASTY, comments=True, prepare_threshold=0)
    sessions = cluster.sessionmaker()
    who = comment_of(application=NASTY).removeprefix("/*").removesuffix("*/")
    told = {
        name: f"/*{who},route='{name}',shard='s1'*/" if name else f"/*{who},shard='s1'*/"
        for name in ("pinned", "routed", "scatter", "")
    }
    with sessions.begin() as session:
        session.add(User(id=key, name="100%"))
    with sessions(key=key) as session:
        assert session.scalar(sa.text(SEEN)) == f"{SEEN} {told['pinned']}"
        # Values and % in statements are what they were.
        assert session.scalar(sa.select(User.name).where(User.id == key, User.name.like("1%"))) == "100%"
        # Each text is prepared once, and there is one for a route.
        for _ in range(3):
            session.execute(sa.text("SELECT 1"))
        prepared = session.scalars(sa.text("SELECT statement FROM pg_prepared_statements")).all()
        assert sum(text.startswith("SELECT 1") for text in prepared) == 1
    seen = sa.table("pg_stat_activity", sa.column("query"), sa.column("pid"))
    mine = sa.select(seen.c.query).where(seen.c.pid == sa.func.pg_backend_pid())
    with sessions() as session:
        assert session.scalar(mine, bind_arguments={"shard": "s1"}).endswith(f" {told['routed']}")
        session.rollback()  # the view is read once a transaction
        # A scatter, whose rows tell what was asked where they are.
        asked = sa.select(mine.scalar_subquery()).select_from(User).where(User.name == "100%")
        assert [text.rpartition(" ")[2] for text in session.scalars(asked)] == [told["scatter"].rpartition(" ")[2]]
        # What was read on s1 was not taken for a write.
        session.execute(sa.insert(User).values(id=shop.key_on("s2"), name="x"))
        session.commit()
    with cluster.engine("s1").connect() as connection:
        assert connection.scalar(sa.text(SEEN)) == f"{SEEN} {told['']}"
        # PostgreSQL's number of a statement, by which pg_stat_statements counts, is the same with any comment.
        connection.rollback()
        connection.execute(sa.text("SET compute_query_id = on"))
        number = "SELECT query_id FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ids = {connection.exec_driver_sql(number).scalar()}
    with shop.connect().engine("s1").connect() as connection:
        connection.execute(sa.text("SET compute_query_id = on"))
        ids.add(connection.exec_driver_sql(number).scalar())
    assert len(ids) == 1
    assert None not in ids
    # Unless asked for, there is none.
    with shop.connect().sessionmaker()(key=key) as session:
        assert session.scalar(sa.text(SEEN)) == SEEN
