"""Sessions without a key: each statement and each object finds its shard."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import joinedload, selectinload

from fix_sessions import Order, Shop, User


def test_objects_and_statements_find_their_shards(shop: Shop) -> None:
    cluster = shop.connect()
    sessions = cluster.sessionmaker()
    keys = [shop.key_on("s1"), shop.key_on("s2")]
    for key in keys:
        with sessions.begin() as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=n, amount=n) for n in range(3)]))
    assert [shop.ask(name, "SELECT id FROM users") for name in ("s1", "s2")] == keys
    with sessions() as session:
        assert [session.get_one(User, key).name for key in keys] == [f"user {key}" for key in keys]
        assert [len(session.get_one(User, key).orders) for key in keys] == [3, 3]
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 2
        found = session.scalars(sa.select(User).order_by(User.id.desc())).all()
        assert [user.id for user in found] == sorted(keys, reverse=True)
        assert session.scalar(sa.select(sa.func.sum(Order.amount))) == 6
        for options in (joinedload(User.orders), selectinload(User.orders)):
            session.expire_all()
            loaded = session.scalars(sa.select(User).options(options).order_by(User.id)).unique().all()
            assert [len(user.orders) for user in loaded] == [3, 3]
        assert len(session.query(User).order_by(sa.func.lower(User.name).collate("C")).all()) == 2
