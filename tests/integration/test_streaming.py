"""Scatters that are streamed: bounded memory, backpressure, cancel on close, and one shard's error ends all."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from fix_sessions import Order, Shop, User, until
from shardwright.session import streaming
from shardwright.session.faults import sqlstate_of

pytestmark = pytest.mark.newest_postgres

ROWS = 600
BLOCK = 20


@pytest.fixture
def many(shop: Shop) -> Shop:
    """Many rows, on both shards."""
    shard_map = shop.map
    for name in ("s1", "s2"):
        mine = [key for key in range(1, ROWS + 1) if shard_map.route("users", key).shard == name]
        shop.shard(name).execute(
            "INSERT INTO users (id, name, score) SELECT k, 'name ' || k %% 7, k %% 10 FROM unnest(%s::bigint[]) AS k",
            (mine,),
        )
        shop.shard(name).execute("INSERT INTO orders SELECT id, 1, id FROM users")
    return shop


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each fetch from a shard brought."""
    found: list[int] = []
    original = streaming.ShardRows._fetch

    def counting(self: streaming.ShardRows) -> list[Any]:
        rows = original(self)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(streaming.ShardRows, "_fetch", counting)
    return found


ORDERS: list[tuple[Any, ...]] = [
    (),
    (User.id,),
    (User.id.desc(),),
    (User.score.nulls_first(), User.id),
    (User.name.collate("odd"), User.id),
]


@pytest.mark.every_driver
def test_a_stream_gives_what_a_list_gives(many: Shop) -> None:
    for name in ("s1", "s2"):
        many.shard(name).execute('CREATE COLLATION odd FROM "C"')
    with many.connect().sessionmaker()() as session:
        for order in ORDERS:
            statement = sa.select(User.id, User.score, User.name).where(User.score != 3).order_by(*order)
            whole = [tuple(row) for row in session.execute(statement)]
            streamed = [tuple(row) for row in session.execute(statement, execution_options={"yield_per": BLOCK})]
            assert (streamed == whole) if order else (sorted(streamed) == sorted(whole))
            some = statement.limit(70).offset(33)
            cut = [tuple(row) for row in session.execute(some, execution_options={"stream_results": True})]
            assert cut == whole[33:103] if order else len(cut) == 70
        parts = list(session.scalars(sa.select(User).order_by(User.id).execution_options(yield_per=BLOCK)).partitions())
        assert [len(part) for part in parts] == [BLOCK] * (ROWS // BLOCK)
        assert [user.id for part in parts for user in part] == list(range(1, ROWS + 1))


@pytest.mark.every_driver
def test_who_reads_slowly_holds_back_the_shards(many: Shop, fetched: list[int]) -> None:
    with many.connect().sessionmaker()() as session:
        for order in ((), (User.id,)):
            fetched.clear()
            result = session.execute(sa.select(User.id).order_by(*order), execution_options={"yield_per": BLOCK})
            for given in range(1, 200):
                assert result.fetchone() is not None
                # Of each shard: the block that is looked at, and the next one.
                assert sum(fetched) <= given + 2 * 2 * BLOCK
            result.close()
            assert sum(fetched) < ROWS


@pytest.mark.every_driver(tasks="slow")
def test_other_statements_go_between_the_blocks(many: Shop) -> None:
    with many.connect().sessionmaker().begin() as session:
        seen = 0
        for user in session.scalars(sa.select(User).order_by(User.id).execution_options(yield_per=BLOCK)):
            seen += 1
            assert [order.amount for order in user.orders] == [user.id]
            if seen == 50:
                user.score = -1
                session.flush()
            if seen % 100 == 0:
                assert session.scalar(sa.select(sa.func.count()).select_from(User)) == ROWS
        assert seen == ROWS
    with many.connect().sessionmaker()() as session:
        assert session.scalar(sa.select(User.score).where(User.id == 50)) == -1


def _running(shop: Shop, what: str) -> int:
    return sum(
        shop.ask(
            name,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
            "AND pid <> pg_backend_pid() AND query LIKE %s",
            what,
        )
        for name in ("s1", "s2")
    )


@pytest.mark.every_driver(tasks="slow")
@pytest.mark.parametrize("way", ["result", "session"])
def test_closing_cancels_what_the_servers_do(many: Shop, way: str) -> None:
    cluster = many.connect(pool_size=1, max_overflow=0)
    with cluster.sessionmaker()() as session:
        # The first rows of each shard, as many as SQLAlchemy takes from asyncpg at once, come soon; the next takes half a minute.
        firsts = [many.key_on(name, nth) for name in ("s1", "s2") for nth in range(50)]
        fetches = "SELECT%" if many.driver == "asyncpg" else "FETCH FORWARD%"
        slow = sa.select(User.id, sa.case((User.id.not_in(firsts), sa.cast(sa.func.pg_sleep(30), sa.Text)), else_=""))
        result = session.execute(slow.order_by(User.id), execution_options={"yield_per": 50})
        assert result.fetchone() is not None
        until(lambda: _running(many, fetches) == 2, "no fetch is under way")
        {"result": result.close, "session": session.close}[way]()
        assert _running(many, fetches) == 0
        # The connections, of which there is one a shard, are as good as new.
        assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == ROWS
        session.commit()
    assert all(cluster.engine(name).pool.checkedout() == 0 for name in ("s1", "s2"))  # type: ignore[attr-defined]


@pytest.mark.every_driver(tasks="slow")
def test_the_error_of_one_shard_ends_the_others(many: Shop) -> None:
    on_s2 = many.key_on("s2", 100)
    failing = sa.select(User.id, 1 / (User.id - on_s2)).order_by(User.id)
    cluster = many.connect(pool_size=1, max_overflow=0)
    with cluster.sessionmaker()() as session:
        with pytest.raises(sa.exc.DBAPIError) as raised:
            session.execute(failing, execution_options={"yield_per": BLOCK}).all()
        assert sqlstate_of(raised.value) == "22012"
        for name in ("s1", "s2"):
            assert many.ask(name, "SELECT count(*) FROM pg_cursors") == 0
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == ROWS


@pytest.mark.every_driver(tasks="slow")
def test_a_connection_that_is_lost_in_the_middle_is_said_to_be(many: Shop) -> None:
    with many.connect().sessionmaker()() as session:
        result = session.execute(sa.select(User.id).order_by(User.id), execution_options={"yield_per": BLOCK})
        result.fetchone()
        many.ask("s2", _END_OTHERS)
        with pytest.raises(Exception, match="connection to shard s2 was lost") as raised:
            result.all()
        assert type(raised.value).code == "SW608"  # type: ignore[attr-defined]


_END_OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'shardwright%%'"
)
