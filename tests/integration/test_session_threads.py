"""200 threads against pools of 5: no deadlock, no leak, and no session on the wrong shard."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_sessions import Shop, User, until
from shardwright import Cluster, errors

pytestmark = pytest.mark.newest_postgres

THREADS, EACH = 200, 2
WHERE = sa.text("SELECT current_database()")


def in_threads(work: Callable[[int], None], each: int, count: int = THREADS) -> list[BaseException]:
    """Run something in many threads at the same time; what they raised. Fails where one does not come back."""
    together, failed = threading.Barrier(count), []

    def run(number: int) -> None:
        together.wait(60)
        try:
            for _ in range(each):
                work(number)
        except Exception as error:  # noqa: BLE001 - looked at below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    return failed


def check_no_leak(shop: Shop, cluster: Cluster) -> None:
    for shard, database in databases(shop).items():
        pool: Any = cluster.engine(shard).pool
        assert pool.checkedout() == 0
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardwright test' AND datname = %s"
        assert shop.ask(shard, mine, database) <= 5
        busy = mine + " AND state <> 'idle'"
        until(lambda s=shard, q=busy, d=database: shop.ask(s, q, d) == 0, "a transaction was left open")


def databases(shop: Shop) -> dict[str, str]:
    return {name: str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]) for name, dsn in shop.dsns.shards.items()}


def test_threads_of_every_kind(shop: Shop) -> None:
    names = databases(shop)
    with shop.connect(pool_size=5, max_overflow=0, pool_timeout=180, connect_timeout=60) as cluster:
        sessions, shard_map = cluster.sessionmaker(), cluster.map
        with sessions() as session:
            for key in range(1, THREADS + 1):
                session.execute(sa.insert(User).values(id=key, name=str(key), score=0))
                session.commit()

        def work(number: int) -> None:
            key = number + 1
            home = names[shard_map.route("users", key).shard]
            with sessions(key=key) as session:
                session.get_one(User, key).score += 1  # type: ignore[operator]
                session.flush()
                assert session.scalar(WHERE) == home
                session.commit()
            with sessions() as session:
                if number % 4 == 0:
                    assert session.scalar(sa.select(sa.func.count()).select_from(User)) == THREADS
                    # On the transactions that the scatter has opened.
                for shard in sorted(names):
                    assert session.scalar(WHERE, bind_arguments={"shard": shard}) == names[shard]
                assert session.get_one(User, key).name == str(key)
                assert session.scalar(WHERE, bind_arguments={"key": key}) == home
            cluster.run(key, lambda session: session.execute(sa.update(User).where(User.id == key).values(country="x")))

        assert in_threads(work, EACH) == []
        with sessions() as session:
            assert session.scalar(sa.select(sa.func.sum(User.score))) == THREADS * EACH
        check_no_leak(shop, cluster)


def test_transactions_that_take_shards_in_any_order(shop: Shop, rng: random.Random) -> None:
    """They would wait for each other for ever: some are ended at once, and succeed when they are run again."""
    names, ended = databases(shop), []
    orders = [rng.sample(sorted(names), len(names)) for _ in range(THREADS)]
    with shop.connect(pool_size=5, max_overflow=0, pool_timeout=180, connect_timeout=60) as cluster:
        sessions = cluster.sessionmaker()

        def once(number: int) -> None:
            with sessions() as session:
                for shard in orders[number]:
                    assert session.scalar(WHERE, bind_arguments={"shard": shard}) == names[shard]
                if number % 3 == 0:
                    session.execute(sa.select(User))

        def work(number: int) -> None:
            while True:
                try:
                    return once(number)
                except errors.PoolDeadlock as error:
                    ended.append(error)

        assert in_threads(work, 1, 60) == []
        assert ended, "nobody met anybody: this has tried nothing"
        check_no_leak(shop, cluster)
