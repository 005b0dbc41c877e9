"""Transactions that write on several shards: refused unless asked for, then all or nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_sessions import Order, Setting, Shop, User
from shardwright import errors
from shardwright.catalog import decisions, recovery
from shardwright.servers import Server
from shardwright.session import events, telling

pytestmark = pytest.mark.newest_postgres


def prepared(shop: Shop) -> list[str]:
    return [row[0] for row in shop.shard("s1").execute("SELECT gid FROM pg_prepared_xacts ORDER BY 1")]


def rows(shop: Shop) -> list[tuple[Any, ...]]:
    return shop.catalog.execute(
        "SELECT outcome, shards, application, settled_at IS NOT NULL FROM shardwright.decisions ORDER BY begun_at"
    ).fetchall()


def two_users(shop: Shop) -> tuple[int, int]:
    keys = shop.key_on("s1"), shop.key_on("s2")
    for key, shard in zip(keys, ("s1", "s2"), strict=True):
        shop.shard(shard).execute("INSERT INTO users (id, name, score) VALUES (%s, 'x', 100)", (key,))
    return keys


def transfer(session: Session, one: int, other: int, amount: int) -> None:
    session.execute(sa.update(User).where(User.id == one).values(score=User.score - amount))
    session.execute(sa.update(User).where(User.id == other).values(score=User.score + amount))


def scores(shop: Shop) -> tuple[int, int]:
    return shop.ask("s1", "SELECT sum(score) FROM users"), shop.ask("s2", "SELECT sum(score) FROM users")


@pytest.mark.every_driver
def test_a_transfer_between_two_shards_is_committed_on_both(shop: Shop) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster:
        sessions = cluster.sessionmaker(cross_shard="two_phase")
        with sessions() as session, session.begin():
            transfer(session, one, other, 30)
        assert scores(shop) == (70, 130)
        with sessions() as session, session.begin():
            transfer(session, one, other, 5)
            session.add_all([Order(user_id=one, n=1, amount=1), Order(user_id=other, n=1, amount=1)])
    assert scores(shop) == (65, 135)
    assert prepared(shop) == []
    assert rows(shop) == [("committed", ["s1", "s2"], "test", True)] * 2


def test_it_is_refused_unless_asked_for(shop: Shop) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster:
        with cluster.sessionmaker()() as session, pytest.raises(errors.CrossShardTransaction):
            transfer(session, one, other, 30)
        assert scores(shop) == (100, 100)
        with pytest.raises(errors.BadOption, match="stays on one shard"):
            cluster.sessionmaker(cross_shard="two_phase")(key=one)
        with pytest.raises(errors.BadOption, match="no meaning"):
            cluster.sessionmaker(cross_shard="yes")()


def test_one_writer_commits_as_ever(shop: Shop) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        assert session.get_one(User, other).score == 100
        session.get_one(User, one).score = 1
        # It writes nothing, whatever it looks like.
        session.execute(sa.update(User).where(User.id == other, User.name == "nobody").values(score=2))
    assert scores(shop) == (1, 100)
    assert rows(shop) == []


def test_who_listens_to_the_commit_may_write_too(shop: Shop) -> None:
    """The COMMITs are united when nothing can be written any more, not when somebody may still."""
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:

        @sa.event.listens_for(session, "before_commit")
        def late(session: Session) -> None:
            session.add(Order(user_id=other, n=7, amount=1))

        session.get_one(User, one).score = 1
        session.commit()
    assert shop.ask("s2", "SELECT count(*) FROM orders") == 1
    assert [row[:2] for row in rows(shop)] == [("committed", ["s1", "s2"])]


def test_what_a_function_writes_is_a_part_too(shop: Shop) -> None:
    one, other = two_users(shop)
    shop.shard("s2").execute("CREATE FUNCTION bump() RETURNS void LANGUAGE sql AS 'UPDATE users SET score = score + 1'")
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        session.get_one(User, one).score = 99
        session.execute(sa.text("SELECT bump()"), bind_arguments={"key": other})
    assert scores(shop) == (99, 101)
    assert [row[0] for row in rows(shop)] == ["committed"]


@pytest.mark.parametrize("level", [pytest.param("REPEATABLE READ", marks=pytest.mark.slow), "SERIALIZABLE"])
def test_levels_that_keep_a_snapshot(shop: Shop, level: str) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster:
        sessions = cluster.sessionmaker(cross_shard="two_phase", isolation_level=level)
        with sessions() as session, session.begin():
            transfer(session, one, other, 30)
    assert scores(shop) == (70, 130)


def test_a_shard_that_refuses_at_the_end_undoes_all(shop: Shop) -> None:
    one, other = two_users(shop)
    shop.shard("s2").execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'not now'; END$$"
    )
    shop.shard("s2").execute(
        "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with shop.connect() as cluster:
        with cluster.sessionmaker(cross_shard="two_phase")() as session:
            transfer(session, one, other, 30)
            with pytest.raises(sa.exc.DBAPIError, match="not now"):
                session.commit()
            session.rollback()
            # The session goes on.
            assert session.get_one(User, one).score == 100
        assert scores(shop) == (100, 100)
        assert prepared(shop) == []
    assert rows(shop) == [("aborted", ["s1", "s2"], "test", True)]


UNPREPARABLE = {
    "temporary": "CREATE TEMPORARY TABLE t (a int)",
    "LISTEN": "LISTEN somebody",
    "NOTIFY": "NOTIFY somebody",
    "WITH HOLD": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
}


@pytest.mark.every_driver
def test_what_cannot_be_prepared_is_refused_with_the_reason(shop: Shop) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster:
        for what, statement in UNPREPARABLE.items():
            with cluster.sessionmaker(cross_shard="two_phase")() as session:
                transfer(session, one, other, 30)
                session.execute(sa.text(statement), bind_arguments={"key": other})
                with pytest.raises(errors.CrossShardTransaction, match="cannot PREPARE"):
                    session.commit()
                session.rollback()
            assert scores(shop) == (100, 100), what
            assert prepared(shop) == []


def test_a_transaction_that_was_taken_for_abandoned_is_rolled_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else decides first: the session's own decision comes to nothing."""
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        decide = cluster.decider.commit

        def too_late(transaction: str, patience: float) -> bool:
            (ended,), unreachable = recovery.recover(shop.catalog, older_than=0)
            assert (ended.outcome, sorted(ended.ended_on), ended.left, unreachable) == ("aborted", ["s1", "s2"], {}, {})
            return decide(transaction, patience)

        monkeypatch.setattr(cluster.decider, "commit", too_late)
        transfer(session, one, other, 30)
        with pytest.raises(errors.TransactionGivenUp):
            session.commit()
    assert scores(shop) == (100, 100)
    assert [row[0] for row in rows(shop)] == ["aborted"]


@pytest.mark.slow
def test_a_decision_wins_over_whoever_comes_later(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        decide = cluster.decider.commit

        def first(transaction: str, patience: float) -> bool:
            decided = decide(transaction, patience)
            (ended,), _ = recovery.recover(shop.catalog, older_than=0)
            assert (ended.outcome, sorted(ended.ended_on), ended.left) == ("committed", ["s1", "s2"], {})
            return decided

        monkeypatch.setattr(cluster.decider, "commit", first)
        transfer(session, one, other, 30)
        session.commit()
    assert scores(shop) == (70, 130)


def test_a_row_that_is_gone_cannot_be_committed_any_more(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session wakes long after it was given up, and its row has been forgotten."""
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        decide = cluster.decider.commit

        def days_later(transaction: str, patience: float) -> bool:
            shop.catalog.execute("UPDATE shardwright.decisions SET outcome = 'aborted', decided_at = now()")
            shop.catalog.execute("UPDATE shardwright.decisions SET settled_at = now() - interval '3 days'")
            decisions.settle(shop.catalog, [])
            assert rows(shop) == []
            return decide(transaction, patience)

        monkeypatch.setattr(cluster.decider, "commit", days_later)
        transfer(session, one, other, 30)
        with pytest.raises(errors.TransactionGivenUp):
            session.commit()
    assert scores(shop) == (100, 100)
    assert prepared(shop) == []


@pytest.mark.parametrize("decided", [True, False])
def test_a_lost_answer_of_the_catalog_is_unknown_and_found_out(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, decided: bool
) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        decide = cluster.decider.commit

        def lost(transaction: str, patience: float) -> bool:
            if decided:
                decide(transaction, patience)
            raise errors.CannotConnect("the connection is lost")

        monkeypatch.setattr(cluster.decider, "commit", lost)
        heard: list[events.Event] = []
        stop = telling.listen(heard.append)
        transfer(session, one, other, 30)
        with pytest.raises(errors.CommitUnknown) as caught:
            session.commit()
        session.rollback()
        stop()
        # Who counts transactions is told the same.
        assert [one.outcome for one in heard if isinstance(one, events.TransactionEnded)] == ["unknown"]
        assert len(prepared(shop)) == 2
        assert cluster.commit_outcome(caught.value) == ("committed" if decided else "aborted")
        assert prepared(shop) == []
        assert scores(shop) == ((70, 130) if decided else (100, 100))
        # Asking again gives the same answer.
        assert cluster.commit_outcome(caught.value) == ("committed" if decided else "aborted")


def test_a_catalog_that_is_away_stops_it_before_anything_is_prepared(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        monkeypatch.setattr(cluster._calls, "_dsn", "host=127.0.0.1 port=1 dbname=x")
        transfer(session, one, other, 30)
        with pytest.raises(errors.CannotConnect):
            session.commit()
    assert scores(shop) == (100, 100)
    assert prepared(shop) == []


@pytest.mark.every_driver
def test_a_connection_that_breaks_after_the_decision_makes_no_error(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed, and the shard is told over another connection."""
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        decide = cluster.decider.commit

        def cut(transaction: str, patience: float) -> bool:
            decided = decide(transaction, patience)
            shop.shard("s2").execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'shardwright test'"
            )
            return decided

        monkeypatch.setattr(cluster.decider, "commit", cut)
        transfer(session, one, other, 30)
        session.commit()
        assert scores(shop) == (70, 130)
        assert prepared(shop) == []
        assert session.get_one(User, other).score == 130


def test_a_connection_that_breaks_before_the_decision_undoes_all(shop: Shop) -> None:
    one, other = two_users(shop)
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        transfer(session, one, other, 30)
        shop.shard("s2").execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'shardwright test'"
        )
        with pytest.raises((errors.ShardUnavailable, sa.exc.DBAPIError)):
            session.commit()
        session.rollback()
        assert prepared(shop) == []
        assert scores(shop) == (100, 100)


def test_others_prepared_transactions_are_left_alone(shop: Shop) -> None:
    cluster_id = shop.catalog.execute("SELECT id FROM shardwright.cluster").fetchone()[0]  # type: ignore[index]
    names = ["somebody's", f"shardwright:{uuid.uuid4()}:{uuid.uuid4()}:s1", f"shardwright:{cluster_id}:no-id:s1"]
    for name in names:
        shop.shard("s1").execute("BEGIN")
        shop.shard("s1").execute(f"PREPARE TRANSACTION '{name.replace(chr(39), chr(39) * 2)}'".encode())
    try:
        assert recovery.recover(shop.catalog, older_than=0) == ([], {})
        assert sorted(prepared(shop)) == sorted(names)
    finally:
        for name in names:
            shop.shard("s1").execute(f"ROLLBACK PREPARED '{name.replace(chr(39), chr(39) * 2)}'".encode())


@pytest.mark.slow
def test_a_server_that_prepares_nothing_is_named_before_anything_is_sent(
    shop: Shop, server_factory: Callable[..., Server]
) -> None:
    one, _ = two_users(shop)
    elsewhere = server_factory(settings={"max_prepared_transactions": "0"})
    with psycopg.connect(elsewhere.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE settings (name text PRIMARY KEY, value text)")
        facts = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        oid = connection.execute("SELECT oid::int8 FROM pg_database WHERE datname = current_database()").fetchone()
    assert facts is not None
    assert oid is not None
    # The home of the settings is on such a server from now on.
    shop.catalog.execute(
        "UPDATE shardwright.shards SET conninfo = %s, system_identifier = %s, database_oid = %s WHERE name = 's2'",
        (elsewhere.dsn(), facts[0], oid[0]),
    )
    with shop.connect() as cluster, cluster.sessionmaker(cross_shard="two_phase")() as session:
        session.execute(sa.update(User).where(User.id == one).values(score=0))
        session.execute(sa.insert(Setting).values(name="a", value="b"))
        with pytest.raises(errors.UnfitServer, match="shard s2 has max_prepared_transactions = 0"):
            session.commit()
    assert shop.ask("s1", "SELECT score FROM users WHERE id = %s", one) == 100
    assert rows(shop) == []
