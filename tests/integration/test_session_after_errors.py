"""A session that has met an error: what it may still be used for, and that it hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, PendingRollbackError

from fix_sessions import Order, Shop, User
from shardwright import Cluster, ShardSession, errors

pytestmark = pytest.mark.newest_postgres

Open = Callable[[], ShardSession]


@pytest.fixture(params=["pinned", "routed"])
def opened(request: pytest.FixtureRequest, shop: Shop) -> tuple[Cluster, Open, int, int]:
    """A cluster, what opens a session, a key, and a key of another shard."""
    cluster = shop.connect(map_wait=0.1)
    here, there = shop.key_on("s1"), shop.key_on("s2")
    sessions = cluster.sessionmaker()
    options: dict[str, Any] = {"key": here} if request.param == "pinned" else {}
    return cluster, lambda: sessions(**options), here, there


def count(session: ShardSession, key: int) -> Any:
    return session.scalar(sa.select(sa.func.count()).select_from(User).where(User.id == key))


def pool_is_whole(cluster: Cluster) -> bool:
    return all(cluster.engine(shard).pool.checkedout() == 0 for shard in ("s1", "s2"))  # type: ignore[attr-defined]


def test_after_an_error_of_the_database_it_needs_a_rollback(opened: tuple[Cluster, Open, int, int]) -> None:
    cluster, open_session, here, _ = opened
    with open_session() as session:
        session.add(User(id=here, name="x"))
        session.commit()
        session.execute(sa.update(User).where(User.id == here).values(name="y"))
        with pytest.raises(IntegrityError):
            session.execute(sa.insert(User).values(id=here, name="z"))
        # Nothing runs in a transaction that has failed, and its COMMIT is no success.
        with pytest.raises((DBAPIError, PendingRollbackError)):
            count(session, here)
        with pytest.raises((InternalError, PendingRollbackError)):
            session.commit()
        session.rollback()
        assert session.get_one(User, here).name == "x"
        session.get_one(User, here).name = "w"
        session.commit()
        # A flush that fails rolls back by itself; the session says so until that is acknowledged.
        session.expunge_all()
        session.add(User(id=here, name="v"))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        assert session.get_one(User, here).name == "w"
    assert pool_is_whole(cluster)


def test_a_savepoint_takes_an_error_back(opened: tuple[Cluster, Open, int, int]) -> None:
    _, open_session, here, _ = opened
    with open_session() as session:
        session.execute(sa.insert(User).values(id=here, name="x"))
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(sa.insert(User).values(id=here, name="y"))
        session.execute(sa.insert(Order).values(user_id=here, n=1, amount=1))
        session.commit()
        assert count(session, here) == 1


def test_a_refusal_of_ours_leaves_the_transaction_as_it_was(opened: tuple[Cluster, Open, int, int]) -> None:
    """Nothing was sent: what was done before is there, and can be committed."""
    cluster, open_session, here, there = opened
    with open_session() as session:
        session.execute(sa.insert(User).values(id=here, name="x"))
        for statement, error in (
            (sa.insert(User).values(id=there, name="x"), errors.SessionError),
            (sa.update(User).values(name="all"), errors.NoShardKey),
            (sa.select(User).where(User.id == "1"), errors.BadKey),
        ):
            with pytest.raises(error):
                session.execute(statement)
        session.execute(sa.insert(Order).values(user_id=here, n=1, amount=1))
        session.commit()
    with open_session() as session:
        assert count(session, here) == 1
    assert pool_is_whole(cluster)


def test_after_a_shard_has_refused_it_goes_on(shop: Shop, opened: tuple[Cluster, Open, int, int]) -> None:
    cluster, open_session, here, _ = opened
    with open_session() as session:
        shop.fence(here)
        with pytest.raises(errors.MapTimeout):
            count(session, here)
        shop.unfence(here)
        assert count(session, here) == 0
        session.rollback()
        session.add(User(id=here, name="x"))
        shop.fence(here)
        with pytest.raises(errors.MapTimeout):
            session.commit()
        session.rollback()
        shop.unfence(here)
        session.add(User(id=here, name="x"))
        session.commit()
        assert count(session, here) == 1
    assert pool_is_whole(cluster)


def test_after_a_lost_connection_it_goes_on_by_another(shop: Shop, opened: tuple[Cluster, Open, int, int]) -> None:
    cluster, open_session, here, _ = opened
    with open_session() as session:
        session.add(User(id=here, name="x"))
        session.flush()
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"), bind_arguments={"key": here})
        shop.ask("s1", "SELECT pg_terminate_backend(%s, 5000)", pid)
        with pytest.raises(errors.ShardUnavailable):
            session.execute(sa.update(User).where(User.id == here).values(name="y"))
        # What it had done is gone, and it does not act as if it were not.
        with pytest.raises((PendingRollbackError, errors.ShardUnavailable, DBAPIError)):
            session.commit()
        session.rollback()
        assert count(session, here) == 0
        session.add(User(id=here, name="y"))
        session.commit()
        assert count(session, here) == 1
    assert pool_is_whole(cluster)
