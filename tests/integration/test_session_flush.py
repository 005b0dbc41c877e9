"""A flush whose first write is refused by the check: its transaction begins anew elsewhere, and nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_sessions import Order, Shop, User
from shardwright import errors
from shardwright.session import events

pytestmark = [pytest.mark.newest_postgres, pytest.mark.every_driver(tasks="slow")]

KILL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'shardwright%%'"
)


def add(session: Session, key: int) -> None:
    session.add(User(id=key, name="x", orders=[Order(n=n, amount=n) for n in range(3)]))


def add_in_savepoint(session: Session, key: int) -> None:
    with session.begin_nested():
        add(session, key)


def add_many(session: Session, key: int) -> None:
    session.add_all([User(id=key, name="x"), *(Order(user_id=key, n=n, amount=n) for n in range(3))])


def add_beside_a_listener(session: Session, key: int) -> None:
    fired: list[int] = []

    @sa.event.listens_for(session, "after_flush")
    def note(*_: Any) -> None:
        fired.append(1)

    add(session, key)
    session.flush()
    assert fired == [1]


WAYS = [add, add_in_savepoint, add_many, add_beside_a_listener]


def rows(shop: Shop, shard: str, key: int) -> tuple[int, int]:
    return (
        shop.ask(shard, "SELECT count(*) FROM users WHERE id = %s", key),
        shop.ask(shard, "SELECT count(*) FROM orders WHERE user_id = %s", key),
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"isolation_level": "SERIALIZABLE"}, {"reads": "relaxed"}], ids=str)
def test_the_range_has_moved(shop: Shop, way: Callable[[Session, int], None], options: dict[str, Any]) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    shop.hand_over(key, "s2")
    if options == {"reads": "relaxed"}:
        # Without the check, it is the guard that refuses the row; a new map is known then.
        with cluster.sessionmaker()(key=key, **options) as session, pytest.raises(errors.ShardMoved):
            way(session, key)
            session.commit()
    with cluster.sessionmaker()(key=key, **options) as session:
        way(session, key)
        session.commit()
    assert rows(shop, "s2", key) == (1, 3)
    assert rows(shop, "s1", key) == (0, 0)
    assert [one.in_use for one in cluster._engines.usage()] == [0] * len(cluster._engines.usage())


@pytest.mark.parametrize("way", WAYS)
def test_the_connection_was_lost_in_the_pool(shop: Shop, way: Callable[[Session, int], None]) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    with cluster.sessionmaker()(key=key) as session:
        assert session.get(User, key) is None
    assert shop.ask("s1", KILL) == 1
    with cluster.sessionmaker()(key=key) as session:
        way(session, key)
        session.commit()
    assert rows(shop, "s1", key) == (1, 3)


@pytest.mark.parametrize("way", WAYS)
def test_the_range_is_fenced_for_too_long(shop: Shop, way: Callable[[Session, int], None]) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0, map_wait=0.2)
    shop.fence(key)
    with cluster.sessionmaker()(key=key) as session:
        with pytest.raises(errors.MapTimeout):
            way(session, key)
            session.commit()
        session.rollback()
        shop.unfence(key)
        way(session, key)
        session.commit()
    assert rows(shop, "s1", key) == (1, 3)


def test_the_range_opens_while_the_flush_waits(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    refused: list[object] = []

    def hook(event: object) -> None:
        if isinstance(event, events.TurnedAway):
            refused.append(event)
            if len(refused) == 3:
                shop.unfence(key)

    monkeypatch.setattr(events, "hook", hook)
    shop.fence(key)
    with cluster.sessionmaker()(key=key) as session:
        add(session, key)
        session.commit()
    assert len(refused) >= 3
    assert rows(shop, "s1", key) == (1, 3)


def test_other_keys_of_the_range_are_held_before_they_are_believed(shop: Shop) -> None:
    """The new map has cut the range: one of the keys lives elsewhere, and the session is not for it."""
    cluster = shop.connect(pool_size=1, max_overflow=0)
    key = shop.key_on("s1")
    shop.split(4096)
    old, new = cluster.map, shop.map
    near = next(
        other
        for other in range(key + 1, 100_000)
        if old.route("users", other).range_id == old.route("users", key).range_id
        and new.route("users", other).range_id != new.route("users", key).range_id
    )
    with cluster.sessionmaker()(key=key) as session:
        session.add_all([User(id=key, name="x"), User(id=near, name="y")])
        with pytest.raises(errors.KeyOutsideSession):
            session.commit()
    assert rows(shop, "s1", key) == rows(shop, "s1", near) == (0, 0)
    with cluster.sessionmaker()(key=key) as session:
        add(session, key)
        session.commit()
    assert rows(shop, "s1", key) == (1, 3)


def test_what_fails_after_the_first_write_is_not_tried_again(shop: Shop) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    killed: list[int] = []

    def kill(*_: Any) -> None:
        killed.append(shop.ask("s1", KILL))

    with cluster.sessionmaker()(key=key) as session:
        add(session, key)
        # The user's row has been written by then, and those of the orders follow.
        sa.event.listen(User, "after_insert", kill)
        try:
            with pytest.raises(errors.ShardUnavailable):
                session.commit()
        finally:
            sa.event.remove(User, "after_insert", kill)
    assert killed == [1]
    assert rows(shop, "s1", key) == (0, 0)
    with cluster.sessionmaker()(key=key) as session:
        session.add(User(id=key, name=None))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()


@pytest.mark.parametrize("how", ["update", "delete"])
def test_objects_of_an_earlier_transaction_are_written(shop: Shop, how: str) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    with cluster.sessionmaker()(key=key, expire_on_commit=False) as session:
        user = User(id=key, name="x")
        session.add(user)
        session.commit()
        shop.hand_over(key, "s2")
        if how == "update":
            user.name = "y"
        else:
            # Its relationships are looked for first, where a refusal is answered as for any read.
            session.delete(user)
        session.commit()
    found = shop.ask("s2", "SELECT max(name) FROM users WHERE id = %s", key)
    assert found == ("y" if how == "update" else None)
