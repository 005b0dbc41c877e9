"""What is no key, or names more than one, wherever a session may meet it: refused before anything is sent, or routed rightly."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from fix_sessions import Order, Shop, User
from shardwright import ShardSession, errors

pytestmark = pytest.mark.newest_postgres

BAD: list[Any] = [
    None,
    "1",
    b"1",
    True,
    1.0,
    Decimal(1),
    2**63,
    -(2**63) - 1,
    np.bool_(True),
    np.float64(1),
    np.uint64(2**63),
]

Way = Callable[[ShardSession, Any], Any]
BY_STATEMENT: dict[str, Way] = {
    "select": lambda s, k: s.execute(sa.select(User).where(User.id == sa.bindparam("k")), {"k": k}),
    "core select": lambda s, k: s.execute(sa.select(User.__table__).where(User.__table__.c.id == sa.literal(k, sa.BigInteger))),
    "one of a list": lambda s, k: s.execute(sa.select(User).where(User.id.in_([1, k]))),
    "tuple": lambda s, k: s.execute(sa.select(Order).where(sa.tuple_(Order.n, Order.user_id).in_([(1, k)]))),
    "or": lambda s, k: s.execute(sa.select(User).where(sa.or_(User.id == 1, User.id == sa.literal(k, sa.BigInteger)))),
    "update": lambda s, k: s.execute(sa.update(User).where(User.id == sa.bindparam("k")).values(name="x"), {"k": k}),
    "delete": lambda s, k: s.execute(sa.delete(User).where(User.id == sa.bindparam("k")), {"k": k}),
    "insert": lambda s, k: s.execute(sa.insert(User).values(id=k, name="x")),
    "insert rows": lambda s, k: s.execute(sa.insert(User), [{"id": 1, "name": "x"}, {"id": k, "name": "x"}]),
    "upsert": lambda s, k: s.execute(
        postgresql.insert(User).values(id=k, name="x").on_conflict_do_nothing(), execution_options={}
    ),
    "bulk": lambda s, k: s.bulk_insert_mappings(User, [{"id": k, "name": "x"}]),
    "named": lambda s, k: s.execute(sa.text("SELECT 1"), bind_arguments={"key": k}),
    "connection": lambda s, k: s.connection(bind_arguments={"key": k}),
    "explained": lambda s, k: _raise(s.explain_route(sa.select(User).where(User.id == sa.bindparam("k")), {"k": k})),
}  # fmt: skip


def _raise(explanation: Any) -> None:
    assert explanation.refusal is not None
    assert explanation.refusal.kind == "bad-key"
    raise errors.BadKey(explanation.refusal.reason)


def flush(session: ShardSession, key: Any) -> None:
    session.add(User(id=key, name="x"))
    session.flush()


def test_what_is_no_key_is_refused_wherever_it_comes(shop: Shop) -> None:
    cluster = shop.connect()
    sessions = cluster.sessionmaker()
    for bad in BAD:
        with pytest.raises(errors.BadKey):
            sessions(key=bad)
        with pytest.raises(errors.BadKey):
            cluster.run(bad, lambda session: pytest.fail("it was run"))
        for name, way in BY_STATEMENT.items():
            with sessions() as session:
                # A row that names no key is said to name none.
                kind = (errors.BadKey, errors.NoShardKey) if bad is None else errors.BadKey
                with pytest.raises(kind):
                    way(session, bad)
                    pytest.fail(f"{name} took {bad!r}")
        with sessions() as session, pytest.raises((errors.BadKey, errors.NoShardKey)):
            flush(session, bad)
        if bad is not None:
            with sessions(key=1) as session, pytest.raises(errors.BadKey):
                session.execute(sa.select(User).where(User.id == sa.bindparam("k")), {"k": bad})
            with sessions(key=1) as session, pytest.raises(errors.BadKey):
                flush(session, bad)
    assert sum(shop.ask(name, "SELECT count(*) FROM users") for name in ("s1", "s2")) == 0

    # Integers of other libraries are integers.
    key = shop.key_on("s2")
    for good in (np.int64(key), np.int32(key), np.uint16(key)):
        with sessions(key=good) as session:
            session.execute(sa.insert(User).values(id=int(good), name="x"))
            session.commit()
        with sessions.begin() as session:
            assert session.scalar(sa.select(User.id).where(User.id == sa.bindparam("k")), {"k": good}) == key
            assert session.scalar(sa.select(User.id).where(User.id.in_([good, 1]))) == key
            assert session.execute(sa.delete(User).where(User.id == good)).rowcount == 1


def test_two_keys_in_one_statement_and_keys_that_change(shop: Shop) -> None:
    one, other = shop.key_on("s1"), shop.key_on("s2")
    sessions = shop.connect().sessionmaker()
    for key in (one, other):
        with sessions.begin() as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=1, amount=key)]))
    both = [
        sa.select(User.id).where(User.id.in_([one, other])),
        sa.select(User.id).where(sa.or_(User.id == one, User.id == other)),
        sa.select(User.id).where(sa.or_(User.id == one, sa.and_(User.id == other, User.name != ""))),
        sa.select(User.id).where(User.id == sa.any_(sa.literal([one, other], sa.ARRAY(sa.BigInteger)))),
    ]
    with sessions() as session:
        for statement in both:
            assert session.explain_route(statement).where == "some"
            assert sorted(session.scalars(statement)) == sorted([one, other])
        # Two that contradict each other: whichever is asked, no row is both.
        assert session.scalars(sa.select(User.id).where(User.id == one, User.id == other)).all() == []
        # An OR that one branch of names no key needs every shard.
        loose = sa.select(User.id).where(sa.or_(User.id == one, User.name == f"user {other}"))
        assert session.explain_route(loose).where == "everywhere"
        assert sorted(session.scalars(loose)) == sorted([one, other])
    writes = [
        sa.update(User).where(sa.or_(User.id == one, User.id == other)).values(name="x"),
        sa.delete(User).where(User.id.in_([one, other])),
        sa.insert(User).values([{"id": one, "name": "x"}, {"id": other, "name": "x"}]),
    ]
    for statement in writes:
        with sessions() as session, pytest.raises(errors.CrossShardTransaction):
            session.execute(statement)
    changes: list[Way] = [
        lambda s, k: s.execute(sa.update(User).where(User.id == one).values(id=k)),
        lambda s, k: s.execute(sa.update(User).where(User.id == one).values({User.id: User.id + 1})),
        lambda s, k: s.execute(sa.update(User.__table__).where(User.__table__.c.id == one).values(id=k)),
        lambda s, k: (setattr(s.get_one(User, one), "id", k), s.flush()),
    ]
    for change in changes:
        with sessions() as session, pytest.raises(errors.WriteRefused):
            change(session, other)
        with sessions(key=one) as session, pytest.raises(errors.WriteRefused):
            change(session, other)
    assert shop.ask("s1", "SELECT name FROM users WHERE id = %s", one) == f"user {one}"
    assert shop.ask("s2", "SELECT name FROM users WHERE id = %s", other) == f"user {other}"
