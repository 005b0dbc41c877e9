"""`session.explain_route`: where a statement would go, told without executing it, and true when it is executed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from fix_sessions import Country, Order, Setting, Shop, User
from shardwright import errors
from shardwright.session.explaining import Explanation

pytestmark = pytest.mark.newest_postgres


def explained(session: Any, statement: Any, params: Any = None, **more: Any) -> Explanation:
    found: Explanation = session.explain_route(statement, params, **more)
    # Whatever it is, it can be printed and sent.
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert str(found).count("map version") == 1
    return found


def test_where_statements_would_go(shop: Shop) -> None:
    one_shard_and_its_range(shop)
    some_shards_and_every_shard(shop)
    tables_that_are_elsewhere(shop)


def one_shard_and_its_range(shop: Shop) -> None:
    key = shop.key_on("s2")
    route = shop.map.route("users", key)
    with shop.connect().sessionmaker()() as session:
        for statement, params, writes in (
            (sa.select(User).where(User.id == key), None, False),
            (sa.select(User).where(User.id == sa.bindparam("k")), {"k": key}, False),
            (sa.select(User).where(User.id == key).with_for_update(), None, True),
            (sa.update(User).where(User.id == key).values(name="x"), None, True),
            (sa.insert(User), [{"id": key, "name": "x"}], True),
        ):
            found = explained(session, statement, params)
            assert (found.where, found.route, found.shards) == ("one", "routed", ("s2",))
            assert found.keys == (("users", key),)
            assert found.ranges == {"s2": (route.range_id,)}
            assert (found.map_version, found.writes, found.merge) == (route.map_version, writes, None)
        named = explained(session, sa.text("SELECT 1"), bind_arguments={"key": key})
        assert (named.where, named.route, named.shards, named.writes) == ("one", "named", ("s2",), None)
        assert not session.in_transaction()
    assert shop.ask("s2", "SELECT count(*) FROM users") == 0


def some_shards_and_every_shard(shop: Shop) -> None:
    keys = [shop.key_on("s1"), shop.key_on("s2")]
    with shop.connect().sessionmaker()() as session:
        some = explained(session, sa.select(User).where(User.id.in_(keys)).order_by(User.id.desc()))
        assert (some.where, some.shards, some.narrowed) == ("some", ("s1", "s2"), "always")
        assert {key for _, key in some.keys} == set(keys)
        assert some.merge is not None
        assert some.merge.order == ("id desc",)
        every = explained(
            session,
            sa.select(User.country, sa.func.avg(User.score), sa.func.upper(User.country))
            .group_by(User.country)
            .order_by(User.country),
        )
        assert (every.where, every.shards, every.narrowed) == ("everywhere", ("s1", "s2"), "while rows move")
        assert every.narrowed_by == "users.id"
        assert every.ranges == {"s1": (), "s2": ()}
        assert every.without_key is not None
        assert "users.id" in every.without_key
        assert every.merge is not None
        assert every.merge.groups == ("users.country",)
        assert every.merge.order == ("users.country ASC NULLS LAST",)
        assert every.merge.aggregates == ("avg = sum(users.score) / count(users.score)",)
        assert every.merge.asked == ("upper",)
        assert "every shard: s1, s2 (routed" in str(every)
        assert "narrowed while rows move by users.id" in str(every)
    with shop.connect().sessionmaker()(reads="relaxed") as session:
        assert explained(session, sa.select(User)).narrowed == "always"


def tables_that_are_elsewhere(shop: Shop) -> None:
    with shop.connect().sessionmaker()() as session:
        anywhere = explained(session, sa.select(Country))
        assert (anywhere.where, anywhere.shards) == ("any", ("s1", "s2"))
        assert explained(session, sa.insert(Country).values(code="a", name="b")).shards == ("s1",)
        assert explained(session, sa.select(Setting)).shards == ("s2",)
        session.execute(sa.select(Setting))
        # By now the transaction is on a shard, and stays there.
        assert (explained(session, sa.select(Country)).where, explained(session, sa.select(Country)).shards) == (
            "any",
            ("s2",),
        )


def test_a_refusal_says_why_and_what_to_do(shop: Shop) -> None:
    one, other = shop.key_on("s1"), shop.key_on("s2")
    refused: list[tuple[Any, Any, type[errors.ShardwrightError]]] = [
        (sa.text("SELECT 1"), None, errors.NoShardKey),
        (sa.delete(User), None, errors.NoShardKey),
        (sa.select(sa.func.stddev(User.score)), None, errors.NotMergeable),
        (sa.insert(User), [{"name": "x"}], errors.NoShardKey),
        (sa.select(User).where(User.id == "1"), None, errors.BadKey),
        (sa.select(sa.Table("strangers", sa.MetaData(), sa.Column("a", sa.Integer))), None, errors.UnknownTable),
        (sa.update(User).where(User.id == one).values(id=other), None, errors.WriteRefused),
    ]
    with shop.connect().sessionmaker()() as session:
        for statement, params, kind in refused:
            found = explained(session, statement, params)
            with pytest.raises(kind) as raised:
                session.execute(statement, params)
            assert found.where == "refused"
            assert found.refusal is not None
            assert found.refusal.code == kind.code
            assert (found.refusal.reason, found.refusal.way_out) == (raised.value.message, raised.value.fix)
            assert found.refusal.reason in str(found)
            session.rollback()
        session.execute(sa.insert(User).values(id=one, name="x"))
        found = explained(session, sa.insert(User).values(id=other, name="x"))
        assert found.refusal is not None
        assert found.refusal.kind == "cross-shard-transaction"


def test_a_pinned_session_explains_without_beginning(shop: Shop) -> None:
    key = shop.key_on("s1")
    route = shop.map.route("users", key)
    far = shop.key_on("s2")
    near = next(k for k in range(key + 1, 100_000) if shop.map.route("users", k).range_id == route.range_id)
    cluster = shop.connect()
    with cluster.sessionmaker()(key=key) as session:
        for statement in (sa.text("SELECT 1"), sa.select(User).where(User.id == key), sa.select(Country)):
            found = explained(session, statement)
            assert (found.where, found.route, found.shards) == ("one", "pinned", ("s1",))
            assert found.ranges == {"s1": (route.range_id,)}
        assert explained(session, sa.select(User).where(User.id == near)).keys == (("users", near),)
        outside = explained(session, sa.select(User).where(User.id == far))
        assert outside.refusal is not None
        assert outside.refusal.kind == "key-outside-session"
        keyless = explained(session, sa.select(Order))
        assert keyless.refusal is not None
        assert keyless.refusal.kind == "no-shard-key"
        assert not session.in_transaction()
        with session.begin():
            explained(session, sa.select(User).where(User.id == near))
            transaction = session.get_transaction()
            assert transaction is not None
            assert not transaction._connections
        shop.hand_over(key, "s2")
        # By the map that it knows, until it knows better.
        assert explained(session, sa.select(User).where(User.id == key)).shards == ("s1",)
        cluster.refresh()
        moved = explained(session, sa.select(User).where(User.id == key))
        assert (moved.shards, moved.map_version) == (("s2",), shop.map.version)
