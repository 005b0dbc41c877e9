"""Transactions that wait for each other on two shards: PostgreSQL sees no circle there, so nobody waits for ever."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_sessions import Shop, User
from shardwright import errors

pytestmark = [pytest.mark.newest_postgres, pytest.mark.timeout(120)]

WAITS = sa.text("SELECT extract(epoch FROM current_setting('lock_timeout')::interval)")


def accounts(shop: Shop) -> tuple[int, int]:
    keys = shop.key_on("s1"), shop.key_on("s2")
    with shop.connect().sessionmaker(cross_shard="two_phase")() as session, session.begin():
        session.add_all(User(id=key, name="x", score=100) for key in keys)
    return keys


def test_two_that_wait_for_each_other_both_get_through(shop: Shop) -> None:
    here, there = accounts(shop)
    cluster = shop.connect()
    both = threading.Barrier(2)
    attempts: list[int] = []
    failures: list[BaseException] = []

    def move(first: int, second: int) -> None:
        tried = 0

        def work(session: Session) -> None:
            nonlocal tried
            tried += 1
            session.execute(sa.update(User).where(User.id == first).values(score=User.score - 10))
            if tried == 1:
                both.wait(30)
            session.execute(sa.update(User).where(User.id == second).values(score=User.score + 10))

        try:
            cluster.run_across(work, lock_timeout=0.3)
            attempts.append(tried)
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=move, args=keys) for keys in ((here, there), (there, here))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    assert sum(attempts) > 2, "there was no deadlock"
    assert shop.ask("s1", "SELECT score FROM users") == shop.ask("s2", "SELECT score FROM users") == 100


@pytest.mark.every_driver
def test_how_long_a_transaction_waits(shop: Shop) -> None:
    here, there = shop.key_on("s1"), shop.key_on("s2")
    cluster = shop.connect(pool_size=1, max_overflow=0)

    def waits(key: int = here, **options: Any) -> float:
        with cluster.sessionmaker(**options)() as session:
            session.get(User, there if key == here else here)
            session.execute(sa.select(User)).all()
            found = session.scalar(WAITS, bind_arguments={"key": key})
            assert found is not None
            return float(found)

    assert waits() == 0, "an ordinary session sets nothing"
    assert 2.0 <= waits(cross_shard="two_phase") <= 4.0
    assert 0.6 <= waits(there, cross_shard="two_phase", lock_timeout=1) <= 1.4
    assert waits(cross_shard="two_phase", lock_timeout=None) == 0
    assert waits() == 0, "and nothing stays behind"
    name = shop.ask("s1", "SELECT current_database()")
    shop.shard("s1").execute(f"ALTER DATABASE {name} SET lock_timeout = '7s'".encode())
    cluster = shop.connect(pool_size=1, max_overflow=0)
    assert waits(cross_shard="two_phase", lock_timeout=1) == 7


@pytest.mark.every_driver
def test_who_waited_too_long_is_told(shop: Shop) -> None:
    here, _ = accounts(shop)
    cluster = shop.connect()
    with shop.shard("s1").transaction():
        shop.shard("s1").execute("UPDATE users SET score = 1 WHERE id = %s", (here,))
        with cluster.sessionmaker(cross_shard="two_phase", lock_timeout=0.2)() as session:
            with pytest.raises(sa.exc.DBAPIError, match="lock timeout"):
                session.execute(sa.update(User).where(User.id == here).values(score=2))
            session.rollback()
            assert session.scalar(sa.select(User.score).where(User.id == here)) == 100


@pytest.mark.parametrize("given", [0, -1, float("nan")])
def test_a_wait_that_is_none_is_refused(shop: Shop, given: float) -> None:
    with pytest.raises(errors.BadOption, match="lock_timeout"):
        shop.connect().sessionmaker(cross_shard="two_phase", lock_timeout=given)()
