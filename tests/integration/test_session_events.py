"""What sessions tell to whoever listens, and that they tell nothing where nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

import pytest
import sqlalchemy as sa

from fix_sessions import Country, Order, Shop, User, in_thread, until
from shardwright import errors
from shardwright.session import events, telling
from shardwright.session.events import (
    Event,
    FlushRefused,
    Replayed,
    StatementEnded,
    StatementRouted,
    TransactionBegun,
    TransactionEnded,
    TurnedAway,
    Waited,
)

pytestmark = pytest.mark.newest_postgres

E = TypeVar("E")


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    found: list[Event] = []
    stop = telling.listen(found.append)
    yield found
    stop()


def of(kind: type[E], heard: list[Event]) -> list[E]:
    return [event for event in heard if isinstance(event, kind)]


def test_statements_and_transactions_are_told(shop: Shop, heard: list[Event]) -> None:
    one, other = shop.key_on("s1"), shop.key_on("s2")
    cluster = shop.connect()
    with cluster.sessionmaker()(key=one) as session:
        session.add(User(id=one, name="x"))
        session.commit()
        session.execute(sa.select(User).where(User.id == one))
        with session.begin_nested():
            session.execute(sa.text("SELECT 1"))
        session.rollback()
    assert [(e.route, e.shard) for e in of(TransactionBegun, heard)] == [("pinned", "s1")] * 2
    ended = of(TransactionEnded, heard)
    assert [(e.route, e.shards, e.outcome) for e in ended] == [
        ("pinned", ("s1",), "committed"),
        ("pinned", ("s1",), "rolled_back"),
    ]
    assert all(e.seconds > 0 for e in ended)
    assert [e.explanation.route for e in of(StatementRouted, heard)] == ["pinned"] * 2
    # By the time a statement has been routed, nothing has been sent.
    kinds = [type(e) for e in heard]
    assert kinds[-6:] == [
        StatementRouted,
        TransactionBegun,
        StatementEnded,
        StatementRouted,
        StatementEnded,
        TransactionEnded,
    ]
    heard.clear()
    with cluster.sessionmaker()() as session:
        session.scalars(sa.select(User).where(User.id.in_([one, other]))).all()
        session.scalar(sa.select(sa.func.count()).select_from(Order))
        session.execute(sa.select(Country))
        with pytest.raises(errors.NoShardKey):
            session.execute(sa.delete(User))
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("SELECT 1/0"), bind_arguments={"shard": "s1"})
    told = of(StatementEnded, heard)
    assert [e.routed.explanation.where for e in told] == ["some", "everywhere", "any", "refused", "one"]
    assert [type(e.error) for e in told[:4]] == [type(None)] * 3 + [errors.NoShardKey]
    assert isinstance(told[4].error, sa.exc.DBAPIError)
    assert {e.shard for e in of(TransactionBegun, heard)} == {"s1", "s2"}
    assert [(set(e.shards), e.outcome) for e in of(TransactionEnded, heard)] == [({"s1", "s2"}, "rolled_back")]
    heard.clear()
    with cluster.sessionmaker()() as session:
        session.add_all([User(id=10_001, name="x"), Order(n=1, amount=1)])
        with pytest.raises(errors.NoShardKey):
            session.flush()
    assert [type(e.error) for e in of(FlushRefused, heard)] == [errors.NoShardKey]


def test_handovers_replays_and_lost_commits_are_told(shop: Shop, heard: list[Event]) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect()
    sessions = cluster.sessionmaker()
    shop.fence(key)

    def read() -> None:
        with sessions(key=key) as session:
            session.execute(sa.text("SELECT 1"))

    with in_thread(read) as ran:
        until(lambda: of(Waited, heard), "nobody waits")
        shop.unfence(key)
    assert "error" not in ran
    assert {(e.shard, e.sqlstate) for e in of(TurnedAway, heard)} == {("s1", "SH002")}
    assert all(e.seconds >= 0 for e in of(Waited, heard))
    attempts = iter(["40001", "40P01", None])

    def work(session: sa.orm.Session) -> None:
        failure = next(attempts)
        session.execute(sa.text(f"DO $$ BEGIN RAISE SQLSTATE '{failure}'; END $$" if failure else "SELECT 1"))

    cluster.run(key, work)
    assert [e.reason for e in of(Replayed, heard)] == ["40001", "40P01"]
    assert [e.outcome for e in of(TransactionEnded, heard)][-3:] == ["rolled_back", "rolled_back", "committed"]
    # The connection's end comes while COMMIT is under way: a deferred trigger holds it up.
    shop.shard("s1").execute(
        "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_lock(77); RETURN NULL; END $$"
    )
    shop.shard("s1").execute(
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    shop.shard("s1").execute("SELECT pg_advisory_lock(77)")
    with sessions(key=key) as session:
        session.execute(sa.insert(User).values(id=key, name="x"))
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))

        def end_it() -> None:
            until(
                lambda: shop.ask("s1", "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", pid),
                "COMMIT does not wait",
            )
            shop.ask("s1", "SELECT pg_terminate_backend(%s)", pid)

        thread = threading.Thread(target=end_it)
        thread.start()
        with pytest.raises(errors.CommitUnknown):
            session.commit()
        thread.join()
    assert of(TransactionEnded, heard)[-1].outcome == "unknown"


def test_nothing_is_told_where_nobody_listens(shop: Shop) -> None:
    assert events.hook is None
    first: list[Event] = []
    second: list[Event] = []
    key = shop.key_on("s1")
    sessions = shop.connect().sessionmaker()

    def read() -> None:
        with sessions(key=key) as session:
            session.execute(sa.text("SELECT 1"))

    stop = telling.listen(first.append)
    stop_too = telling.listen(second.append)
    read()
    assert len(first) == len(second) == 4
    stop()
    read()
    assert (len(first), len(second)) == (4, 8)
    stop_too()
    read()
    assert (len(first), len(second)) == (4, 8)
    assert events.hook is None
    assert not any(sa.event.contains(*hooked) for hooked in telling._SQLALCHEMY)

    # What a listener raises comes out where the statement was made.
    def refuse(event: Event) -> None:
        raise LookupError("not here")

    stop = telling.listen(refuse)
    try:
        with pytest.raises(LookupError):
            read()
    finally:
        stop()
