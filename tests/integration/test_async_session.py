"""Sessions for tasks: what SQLAlchemy's AsyncSession offers, on shards."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

from fix_sessions import Order, Shop, User
from shardwright import Cluster


def test_a_pinned_session_writes_and_reads_on_its_shard(shop: Shop) -> None:
    async def work() -> None:
        async with await Cluster.aconnect(shop.dsns.catalog, refresh="never", application="test") as cluster:
            sessions = cluster.async_sessionmaker()
            for shard in ("s1", "s2"):
                key = shop.key_on(shard)
                async with sessions(key=key) as session:
                    session.add(User(id=key, name=f"user {key}", orders=[Order(n=1, amount=10), Order(n=2, amount=20)]))
                    await session.commit()
                assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == f"user {key}"
                async with sessions(key=key) as session:
                    user = await session.get_one(User, key)
                    assert await session.scalar(sa.select(sa.func.sum(Order.amount)).where(Order.user_id == key)) == 30
                    user.name = "changed"
                    await session.commit()
                assert shop.ask(shard, "SELECT name FROM users WHERE id = %s", key) == "changed"

    asyncio.run(work())
