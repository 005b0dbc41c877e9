"""One statement that writes on several shards, in a session that may do so."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as pg_insert

from fix_sessions import Order, Shop, User
from shardwright import ShardSession, errors

pytestmark = [pytest.mark.newest_postgres, pytest.mark.every_driver(tasks="slow")]


def keys(shop: Shop, count: int = 4) -> list[int]:
    return [shop.key_on(name, nth) for nth in range(count) for name in ("s2", "s1")]


def stored(shop: Shop, what: str = "id, name, score") -> list[Any]:
    found = []
    for name in ("s1", "s2"):
        rows = shop.shard(name).execute(f"SELECT {what} FROM users".encode()).fetchall()
        assert all(shop.map.route("users", row[0]).shard == name for row in rows)
        found += rows
    return sorted(found)


def rows_of(given: list[int]) -> list[dict[str, Any]]:
    return [{"id": key, "name": f"user {key}", "score": at} for at, key in enumerate(given)]


INSERTS: dict[str, Callable[[ShardSession, list[dict[str, Any]]], Any]] = {
    "core": lambda s, rows: s.execute(sa.insert(User.__table__), rows),
    "orm": lambda s, rows: s.execute(sa.insert(User), rows),
    "upsert": lambda s, rows: s.execute(pg_insert(User).on_conflict_do_nothing(), rows),
    "objects": lambda s, rows: s.add_all([User(**row) for row in rows]),
}


@pytest.mark.parametrize("how", INSERTS)
def test_rows_are_dealt_out(shop: Shop, how: str) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop)
    with sessions.begin() as session:
        INSERTS[how](session, rows_of(given))
    assert stored(shop) == sorted((key, f"user {key}", at) for at, key in enumerate(given))
    with shop.connect().sessionmaker()() as session, pytest.raises(errors.CrossShardTransaction, match="s1, s2"):
        session.execute(sa.insert(User), rows_of(given))


def test_what_comes_back_is_in_the_order_of_the_rows(shop: Shop, rng: random.Random) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop, 20)
    rng.shuffle(given)
    with sessions() as session:
        for inserted in (sa.insert(User), sa.insert(User.__table__)):
            returning = inserted.returning(User.__table__.c.score, sort_by_parameter_order=True)
            assert session.scalars(returning, rows_of(given)).all() == list(range(len(given)))
            session.rollback()
        made = session.scalars(sa.insert(User).returning(User, sort_by_parameter_order=True), rows_of(given)).all()
        assert [user.id for user in made] == given
        assert made[0] is session.get(User, given[0])
        session.rollback()
    assert stored(shop) == []


def test_updates_and_deletes_reach_each_shards_rows(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop)
    with sessions.begin() as session:
        session.execute(sa.insert(User.__table__), rows_of(given))
    with sessions.begin() as session:
        session.execute(sa.update(User), [{"id": key, "name": "by key"} for key in given])
        found = session.execute(sa.update(User).where(User.id.in_(given[2:])).values(score=7))
        assert found.rowcount == len(given) - 2
    assert stored(shop) == sorted((key, "by key", 7 if at > 1 else at) for at, key in enumerate(given))
    with sessions.begin() as session:
        gone = session.scalars(sa.delete(User).where(User.id.in_(given), User.score == 7).returning(User.id)).all()
        assert sorted(gone) == sorted(given[2:])
    assert [row[0] for row in stored(shop)] == sorted(given[:2])


def test_rows_that_a_shard_does_not_own_are_left_alone(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop)
    with sessions.begin() as session:
        session.execute(sa.insert(User), rows_of(given))
    moving = next(key for key in given if shop.map.route("users", key).shard == "s1")
    shop.importing(moving, "s2")
    with sessions.begin() as session:
        changed = session.execute(sa.update(User).where(User.id.in_(given)).values(name="new"))
        assert changed.rowcount == len(given)
    assert shop.ask("s1", "SELECT name FROM users WHERE id = %s", moving) == "new"
    # The copy is the apply worker's to change.
    assert shop.ask("s2", "SELECT name FROM users WHERE id = %s", moving) == f"user {moving}"


def test_a_stale_router_begins_again_before_anything_is_written(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop)
    moved = shop.key_on("s1")
    shop.hand_over(moved, "s2")
    with sessions.begin() as session:
        session.execute(sa.insert(User), rows_of(given))
    assert shop.ask("s2", "SELECT count(*) FROM users WHERE id = %s", moved) == 1
    assert len(stored(shop)) == len(given)


def test_what_cannot_be_dealt_out_says_why(shop: Shop) -> None:
    sessions = shop.connect().sessionmaker(cross_shard="two_phase")
    given = keys(shop)
    copied = sa.select(Order.user_id, sa.literal("x")).where(Order.user_id.in_(given))
    refused: list[tuple[Any, str]] = [
        (sa.insert(User).values(rows_of(given)), "list of mappings"),
        (sa.insert(User).from_select(["id", "name"], copied), "list of mappings"),
        (sa.select(User).where(User.id.in_(given)).with_for_update(), "lock rows of one shard"),
    ]
    with sessions() as session:
        for statement, way_out in refused:
            with pytest.raises(errors.CrossShardTransaction) as error:
                session.execute(statement)
            assert way_out in error.value.fix
        with pytest.raises(errors.NoShardKey):
            session.execute(sa.update(User).values(name="x"))
