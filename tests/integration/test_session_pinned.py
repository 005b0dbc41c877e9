"""Sessions that are pinned to one key."""

from __future__ import annotations

import sqlalchemy as sa

from fix_sessions import Order, Shop, User


def test_a_pinned_session_writes_and_reads_on_its_shard(shop: Shop) -> None:
    cluster = shop.connect()
    sessions = cluster.sessionmaker()
    for shard in ("s1", "s2"):
        key = shop.key_on(shard)
        with sessions(key=key) as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=1, amount=10), Order(n=2, amount=20)]))
            session.commit()
        assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == f"user {key}"
        with sessions(key=key) as session:
            user = session.get_one(User, key)
            assert [order.amount for order in user.orders] == [10, 20]
            assert session.scalar(sa.select(sa.func.sum(Order.amount)).where(Order.user_id == key)) == 30
            user.name = "changed"
            session.commit()
            assert user.name == "changed"
            session.delete(user.orders[0])
            session.commit()
        assert shop.ask(shard, "SELECT count(*) FROM orders") == 1


def test_the_check_travels_with_begin(shop: Shop) -> None:
    cluster = shop.connect()
    key = shop.key_on("s1")
    number = cluster.map.route("users", key).range_id
    with cluster.sessionmaker()(key=key) as session:
        session.execute(sa.select(User).where(User.id == key))
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1397249860 AND objid = %s"
        assert shop.ask("s1", held, number) == 1
    assert shop.ask("s1", held, number) == 0
