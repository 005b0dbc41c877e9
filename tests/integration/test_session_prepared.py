"""Statements that stay prepared on a shard's connections: which do, and what happens when they are of no use any more."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_sessions import Shop, User
from shardwright import errors
from shardwright.session import opening
from shardwright.session.faults import sqlstate_of

pytestmark = [pytest.mark.newest_postgres, pytest.mark.every_driver(tasks="slow")]

PREPARED = sa.text("SELECT statement FROM pg_prepared_statements")
SCORE = sa.select(User.score).where(User.id == sa.bindparam("key"))


def read(shop: Shop, sessions: Any, times: int, **options: Any) -> None:
    key = shop.key_on("s1")
    for _ in range(times):
        with sessions(key=key, **options) as session:
            assert session.scalar(SCORE, {"key": key}) is None


def prepared(shop: Shop, sessions: Any) -> list[str]:
    with sessions(key=shop.key_on("s1")) as session:
        return list(session.scalars(PREPARED))


@pytest.mark.every_driver
def test_what_reads_stays_prepared_beyond_its_transaction(shop: Shop) -> None:
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    read(shop, sessions, 9)
    found = prepared(shop, sessions)
    assert any("users.score" in one for one in found)
    # With asyncpg the check is no statement of its own.
    if shop.driver != "asyncpg":
        assert sum("shardwright.enter(" in one for one in found) == 1


def test_nothing_is_prepared_where_it_is_not_wanted(shop: Shop) -> None:
    sessions = shop.connect(pool_size=1, max_overflow=0, prepare_threshold=None).sessionmaker()
    read(shop, sessions, 9)
    assert [one for one in prepared(shop, sessions) if "pg_prepared_statements" not in one] == []


@pytest.mark.parametrize("options", [{}, {"isolation_level": "REPEATABLE READ"}, {"read_only": True}], ids=str)
def test_a_column_gets_another_type_between_two_reads(shop: Shop, options: dict[str, Any]) -> None:
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    read(shop, sessions, 9, **options)
    shop.shard("s1").execute("ALTER TABLE users ALTER score TYPE numeric")
    read(shop, sessions, 9, **options)


def test_after_something_has_run_the_caller_is_told_that_the_transaction_may_be_replayed(shop: Shop) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    sessions = cluster.sessionmaker()
    read(shop, sessions, 9)
    with sessions(key=key) as session:
        session.execute(sa.text("SELECT 1"))
        shop.shard("s1").execute("ALTER TABLE users ALTER score TYPE numeric")
        with pytest.raises(errors.ShardUnavailable, match="prepared is of no use any more"):
            session.scalar(SCORE, {"key": key})

    seen = []

    def work(session: Session) -> Any:
        seen.append(1)
        session.execute(sa.text("SELECT 1"))
        if len(seen) == 1:
            shop.shard("s1").execute("ALTER TABLE users ALTER score TYPE double precision")
        return session.scalar(SCORE, {"key": key})

    read(shop, sessions, 9)
    assert cluster.run(key, work) is None
    assert len(seen) == 2


@pytest.mark.parametrize("forgotten", ["DEALLOCATE ALL", "DISCARD PLANS"])
def test_the_application_forgets_what_is_prepared(shop: Shop, forgotten: str) -> None:
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    for _ in range(3):
        read(shop, sessions, 9)
        with sessions(key=shop.key_on("s1")) as session:
            session.execute(sa.text(forgotten))
            session.commit()


def test_an_application_executes_a_statement_that_it_has_not_prepared(shop: Shop) -> None:
    """Its own mistake: nothing of it is run again, and the connection is as good as before."""
    key = shop.key_on("s1")
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    with sessions(key=key) as session:
        process = session.scalar(sa.text("SELECT pg_backend_pid()"))
    with sessions(key=key) as session, pytest.raises(sa.exc.DBAPIError, match="missing") as raised:
        session.execute(sa.text("EXECUTE missing"))
    assert sqlstate_of(raised.value) == "26000"
    with sessions(key=key) as session:
        assert session.scalar(sa.text("SELECT pg_backend_pid()")) == process


def test_a_transaction_that_fails_costs_no_connection(shop: Shop) -> None:
    """psycopg forgets what it has prepared at such an end, and what is prepared beside it is gone as well."""
    key = shop.key_on("s1")
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    processes = set()
    for _ in range(3):
        read(shop, sessions, 9)
        with sessions(key=key) as session:
            processes.add(session.scalar(sa.text("SELECT pg_backend_pid()")))
            with pytest.raises(sa.exc.DBAPIError):
                session.execute(sa.text("SELECT 1 / 0"))
    assert len(processes) == 1


def test_a_session_writes_after_its_prepared_statements_were_forgotten(shop: Shop) -> None:
    """The forgetting is not seen by the driver: a function does it."""
    key = shop.key_on("s1")
    shop.shard("s1").execute(
        "CREATE FUNCTION forget() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"
    )
    cluster = shop.connect(pool_size=1, max_overflow=0)
    sessions = cluster.sessionmaker()
    for turn in range(3):
        for n in range(9):
            with sessions(key=key) as session:
                session.merge(User(id=key, name="x", score=turn * 10 + n))
                session.commit()
        with sessions(key=key) as session:
            session.execute(sa.text("SELECT forget()"))
    assert shop.ask("s1", "SELECT score FROM users WHERE id = %s", key) == 28


def test_a_refusal_does_not_leave_a_statement_that_was_not_prepared(shop: Shop) -> None:
    """A statement that is to be prepared comes behind a check that fails: it was never parsed."""
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0, prepare_threshold=0, map_wait=0.3)
    sessions = cluster.sessionmaker()
    shop.shard("s1").execute("UPDATE shardwright.ranges SET state = 'fenced' WHERE state = 'open'")
    with sessions(key=key) as session, pytest.raises(errors.MapTimeout):
        session.scalar(SCORE, {"key": key})
    with sessions(key=key) as session, pytest.raises(errors.MapTimeout):
        session.add(User(id=key, name="x"))
        session.flush()
    shop.shard("s1").execute("UPDATE shardwright.ranges SET state = 'open' WHERE state = 'fenced'")
    read(shop, sessions, 3)


def test_a_connection_is_given_back_whatever_comes_between_begin_and_the_first_statement(shop: Shop) -> None:
    """BEGIN has been sent by then, and its answer has not been read."""
    here, there = shop.key_on("s1"), shop.key_on("s2")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    sessions = cluster.sessionmaker()

    class Uncompilable(sa.sql.expression.ColumnElement[int]):
        inherit_cache = False

    for _ in range(3):
        with sessions(key=here) as session, pytest.raises(sa.exc.CompileError):
            session.execute(sa.select(Uncompilable()).select_from(User).where(User.id == here))
        with sessions(key=here) as session:
            with pytest.raises(sa.exc.CompileError):
                session.execute(sa.select(Uncompilable()).select_from(User).where(User.id == here))
            session.commit()
            assert session.scalar(SCORE, {"key": here}) is None
        with sessions(key=here) as session:
            with pytest.raises(sa.exc.CompileError):
                session.execute(sa.select(Uncompilable()).select_from(User).where(User.id == here))
            with session.begin_nested():
                assert session.scalar(SCORE, {"key": here}) is None
            assert opening.driver_of(session.connection()).has_entered
        with sessions(key=here) as session, pytest.raises(errors.KeyOutsideSession):
            session.add(User(id=there, name="x"))
            session.flush()
    read(shop, sessions, 1)


@pytest.mark.every_driver
def test_rows_that_come_and_go_without_a_statement(shop: Shop) -> None:
    """A flush for which a transaction was begun, and which then has nothing to write."""
    key = shop.key_on("s1")
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    for _ in range(3):
        with sessions(key=key) as session:

            @sa.event.listens_for(session, "before_flush")
            def take_back(session: Session, *_: Any) -> None:
                for one in list(session.new):
                    session.expunge(one)

            session.add(User(id=key, name="x"))
            session.commit()
    assert shop.ask("s1", "SELECT count(*) FROM users") == 0


def test_a_read_before_the_flush_takes_the_transaction_that_was_begun_for_it(shop: Shop) -> None:
    key = shop.key_on("s1")
    sessions = shop.connect(pool_size=1, max_overflow=0).sessionmaker()
    with sessions(key=key) as session:

        @sa.event.listens_for(session, "before_flush")
        def count(session: Session, *_: Any) -> None:
            with session.no_autoflush:
                session.info["seen"] = session.scalar(
                    sa.select(sa.func.count()).select_from(User).where(User.id == key)
                )

        session.add(User(id=key, name="x"))
        session.commit()
        assert session.info["seen"] == 0
    assert shop.ask("s1", "SELECT count(*) FROM users") == 1


def test_server_side_cursors_and_copy_begin_too(shop: Shop) -> None:
    key = shop.key_on("s1")
    cluster = shop.connect(pool_size=1, max_overflow=0)
    sessions = cluster.sessionmaker()
    for _ in range(3):
        with sessions(key=key) as session:
            rows = session.execute(SCORE, {"key": key}, execution_options={"stream_results": True})
            assert rows.all() == []
        if shop.driver == "psycopg":
            with sessions(key=key) as session:
                raw = session.connection().connection.driver_connection
                assert isinstance(raw, psycopg.Connection)
                with raw.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
                    assert [bytes(one) for one in copy] == [b"1\n"]


@pytest.mark.every_driver
def test_what_was_prepared_long_ago_is_looked_at_each_time(shop: Shop) -> None:
    """Whether it writes, and which ranges it needs: also where the driver is not asked to prepare it again."""
    here, there = shop.key_on("s1"), shop.key_on("s2")
    sessions = shop.connect(pool_size=1, max_overflow=0, prepare_threshold=0, map_wait=0.3).sessionmaker()
    write = sa.update(User).where(User.id == sa.bindparam("key")).values(name="y")
    for key in (here, there):
        for _ in range(3):
            with sessions() as session:
                session.execute(write, {"key": key})
                session.execute(SCORE, {"key": key})
                session.commit()
    with sessions() as session:
        session.execute(write, {"key": here})
        with pytest.raises(errors.CrossShardTransaction):
            session.execute(write, {"key": there})
    shop.fence(there)
    with sessions() as session:
        session.execute(SCORE, {"key": here})
        with pytest.raises(errors.MapTimeout):
            session.execute(SCORE, {"key": there})
