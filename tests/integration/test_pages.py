"""Reads in pages: each row once, also when its range moves between two pages, and no transaction in between."""

from __future__ import annotations

import asyncio
import datetime
import random
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from fix_sessions import Country, Order, Reading, Shop, User
from shardwright import errors
from shardwright.session import Cluster

pytestmark = pytest.mark.newest_postgres

ROWS = 300
ORDERED = [(User.id,), (User.id.desc(),), (User.name, User.id), (User.name.desc(), User.id.asc())]


@pytest.fixture
def many(shop: Shop) -> Shop:
    shard_map = shop.map
    for name in ("s1", "s2"):
        mine = [key for key in range(1, ROWS + 1) if shard_map.route("users", key).shard == name]
        shop.shard(name).execute(
            "INSERT INTO users (id, name, score) SELECT k, 'name ' || k %% 7, k %% 10 FROM unnest(%s::bigint[]) AS k",
            (mine,),
        )
        shop.shard(name).execute("INSERT INTO orders SELECT id, n, n FROM users, generate_series(1, 3) AS n")
    return shop


def _read(cluster: Cluster, statement: Any, **options: Any) -> list[Any]:
    return [row for page in cluster.pages(statement, **options) for row in page.scalars()]


def test_every_row_is_on_one_page(many: Shop) -> None:
    cluster = many.connect()
    for order in ORDERED:
        statement = sa.select(User.id).where(User.score != 3).order_by(*order)
        with cluster.sessionmaker()() as session:
            whole = session.scalars(statement).all()
        for size, merged in ((17, False), (17, True), (1000, False), (1000, True)):
            pages = list(cluster.pages(statement, size=size, merged=merged))
            found = [row.id for page in pages for row in page]
            assert all(0 < len(page) <= size for page in pages)
            assert found == whole if merged else sorted(found) == sorted(whole)
    assert (many.ask("s1", _OPEN), many.ask("s2", _OPEN)) == (0, 0)


_OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"


def test_objects_rows_and_joins(many: Shop) -> None:
    cluster = many.connect()
    users = [user for page in cluster.pages(sa.select(User), size=50) for user in page.scalars()]
    assert sorted((user.id, user.name) for user in users) == [(key, f"name {key % 7}") for key in range(1, ROWS + 1)]
    joined = sa.select(User.name, Order.amount).join(User.orders).where(User.id <= 20).order_by(Order.amount)
    rows = [row for page in cluster.pages(joined, size=9, merged=True) for row in page]
    assert len(rows) == 60
    assert [row.amount for row in rows] == sorted(row.amount for row in rows)
    mine = many.key_on("s1", 3)
    pinned = sa.select(Order).where(Order.user_id == mine)
    assert [len(page) for page in cluster.pages(pinned, size=2, key=mine)] == [2, 1]
    assert [order.n for order in _read(cluster, pinned, size=2, key=mine)] == [1, 2, 3]
    assert [order.n for order in _read(cluster, pinned, size=2)] == [1, 2, 3]


def test_ranges_move_between_the_pages(many: Shop, rng: random.Random) -> None:
    """Back and forth, to shards that were read already and to those that were not."""
    cluster = many.connect()
    statement = sa.select(User.id).order_by(User.name, User.id)
    for merged in (False, True):
        found: list[int] = []
        moves = 0
        for at, page in enumerate(cluster.pages(statement, size=20, merged=merged)):
            found += page.scalars()
            if at % 3 == 0:
                key = rng.randrange(1, ROWS + 1)
                here = many.map.route("users", key).shard
                many.hand_over(key, "s2" if here == "s1" else "s1")
                moves += 1
        assert moves >= 4
        assert sorted(found) == list(range(1, ROWS + 1)), "lost or given twice"


def test_a_range_moves_while_a_pinned_reader_is_between_pages(many: Shop) -> None:
    key = many.key_on("s1", 2)
    cluster = many.connect()
    pages = cluster.pages(sa.select(Order.n).where(Order.user_id == key).order_by(Order.n), size=2, key=key)
    assert next(pages).scalars() == [1, 2]
    many.hand_over(key, "s2")
    assert next(pages).scalars() == [3]
    assert next(pages, None) is None


def test_a_reader_goes_on_in_another_process(many: Shop) -> None:
    statement = sa.select(User.id).order_by(User.name.desc(), User.id)
    whole = _read(many.connect(), statement, size=40)
    found: list[int] = []
    after = None
    while True:
        # A new cluster for each page, as after a crash.
        page = next(many.connect().pages(statement, size=40, after=after))
        found += page.scalars()
        after = page.after
        if after is None:
            break
    assert found == whole
    other = sa.select(User.id).where(User.score > 1).order_by(User.name.desc(), User.id)
    token = next(many.connect().pages(statement, size=40)).after
    for wrong, given in ((statement, "nonsense"), (statement, ""), (other, token), (statement.order_by(None), token)):
        with pytest.raises(errors.BadOption, match="position"):
            next(many.connect().pages(wrong, after=given))


def test_keys_of_every_type_go_through_a_token(shop: Shop) -> None:
    cluster = shop.connect()
    day = datetime.datetime(2026, 10, 25, 0, 30, tzinfo=datetime.UTC)
    for key in range(1, 9):
        row = Reading(
            user_id=key,
            at=day + datetime.timedelta(minutes=20 * (key % 3)),
            local=datetime.datetime(2026, 1, key % 2 + 1),
            day=datetime.date(2026, 1, 1),
            tag=uuid.UUID(int=key % 4),
            doc={},
        )
        cluster.run(key, lambda session, row=row: session.add(row))  # type: ignore[misc]
    for column in (Reading.at, Reading.local, Reading.day, Reading.tag):
        statement = sa.select(Reading.user_id).order_by(column)
        with cluster.sessionmaker()() as session:
            whole = session.scalars(statement.order_by(Reading.user_id)).all()
        found, after = [], None
        while page := next(cluster.pages(statement, size=3, merged=True, after=after), None):
            found += page.scalars()
            if (after := page.after) is None:
                break
        assert found == whole, column


def test_tasks_read_pages_too(many: Shop) -> None:
    async def read(**options: Any) -> list[int]:
        return [key async for page in cluster.apages(sa.select(User.id), size=70, **options) for key in page.scalars()]

    async def both() -> tuple[list[int], list[int]]:
        found = await read(), await read(merged=True)
        await cluster.aclose()
        return found

    cluster = many.connect()
    apart, merged = asyncio.run(both())
    assert sorted(apart) == merged == list(range(1, ROWS + 1))


UNFIT: list[tuple[Any, str]] = [
    (sa.select(User).limit(3), "LIMIT"),
    (sa.select(User).with_for_update(), "FOR UPDATE"),
    (sa.select(User.country).distinct(), "groups"),
    (sa.select(User.country).group_by(User.country), "groups"),
    (sa.select(User).order_by(User.score), "may be NULL"),
    (sa.select(User).order_by(sa.func.lower(User.name)), "no column"),
    (sa.select(User).order_by(User.id.nulls_first()), "where NULLs go"),
    (sa.select(User, Order).outerjoin(User.orders), "outer join"),
    (sa.select(sa.select(User.id).subquery()), "reads from a Subquery"),
    (sa.union(sa.select(User.id), sa.select(Order.n)), "not a SELECT"),
]


def test_what_has_no_pages(shop: Shop) -> None:
    cluster = shop.connect()
    for statement, why in UNFIT:
        with pytest.raises(errors.BadOption, match=why):
            next(cluster.pages(statement))
    with pytest.raises(errors.BadOption, match="0 rows"):
        next(cluster.pages(sa.select(Country), size=0))
