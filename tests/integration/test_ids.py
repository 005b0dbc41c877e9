"""Ids made by shards, and grants of the catalog to those who make them elsewhere."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_catalog import Found
from shardwright import Cluster, errors, ids, next_id
from shardwright.catalog import generators, migrations, shards
from shardwright.servers import Server

NEXT = "SELECT shardwright.next_id() FROM generate_series(1, 500)"


def taken(connection: psycopg.Connection[Any], statement: str = NEXT) -> list[int]:
    return [row[0] for row in connection.execute(statement.encode())]


def set_clock(connection: psycopg.Connection[Any], milliseconds: int) -> None:
    """Let a shard's clock be off by so much."""
    connection.execute(
        "CREATE OR REPLACE FUNCTION shardwright.ids_clock() RETURNS bigint LANGUAGE sql VOLATILE AS $$ "
        "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1735689600000 "
        f"+ ({milliseconds}) $$".encode()
    )


def test_shards_and_processes_never_make_one_twice(found: Callable[..., Found]) -> None:
    made = found(2)
    numbers = [made.ask(name, "SELECT generator FROM shardwright.identity") for name in ("s1", "s2")]
    assert numbers == [0, 1]
    with (
        Cluster.connect(made.dsns.catalog, refresh="never") as one,
        Cluster.connect(made.dsns.catalog, refresh="never") as other,
    ):
        now = time.time() * 1000 - ids.EPOCH_MS
        seen: dict[str, list[int]] = {
            "s1": taken(made.shard("s1")),
            "s2": taken(made.shard("s2")),
            "one": [one.next_id() for _ in range(500)],
            "other": [other.next_id() for _ in range(500)],
        }
    assert len({number for each in seen.values() for number in each}) == 2000
    for who, each in seen.items():
        assert each == sorted(each), who
        # The bits are the same in SQL and in Python.
        parts = [ids.Id.read(number) for number in each]
        assert {part.generator for part in parts} == {{"s1": 0, "s2": 1, "one": 1023, "other": 1022}[who]}
        assert all(abs(part.stamp - now) < 30_000 for part in parts), who
        assert [int(part) for part in parts] == each


def test_a_clock_that_steps_back_repeats_nothing(found: Callable[..., Found]) -> None:
    made = found(1)
    shard = made.shard("s1")
    seen = taken(shard)
    for step in (-3_600_000, -10_000_000, 5_000, -5_000, 0):
        set_clock(shard, step)
        seen += taken(shard)
        # Whatever is rolled back.
        with shard.transaction(force_rollback=True):
            seen += taken(shard)
    assert seen == sorted(set(seen))


def test_many_sessions_at_once(found: Callable[..., Found]) -> None:
    made = found(1)
    seen: list[list[int]] = [[] for _ in range(4)]

    def take(mine: list[int], nth: int) -> None:
        with psycopg.connect(made.dsns.shards["s1"], autocommit=True) as connection:
            for at in range(5):
                if nth == 0:
                    set_clock(connection, (-1) ** at * 2000)
                mine.extend(taken(connection))

    threads = [threading.Thread(target=take, args=(mine, nth)) for nth, mine in enumerate(seen)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for mine in seen for number in mine}) == 4 * 5 * 500
    assert all(mine == sorted(mine) for mine in seen)


def test_nothing_is_locked_by_those_who_were_cancelled(found: Callable[..., Found]) -> None:
    made = found(1)
    with psycopg.connect(made.dsns.shards["s1"]) as other:
        for patience in (1, 5, 20, 80):
            with pytest.raises(psycopg.errors.QueryCanceled):
                other.execute(f"SET statement_timeout = {patience}".encode())
                other.execute("SELECT count(shardwright.next_id()) FROM generate_series(1, 10000000)")
            other.rollback()
        # Neither by a transaction that is still open.
        other.execute("SELECT shardwright.next_id()")
        made.shard("s1").execute("SET statement_timeout = 5000")
        assert taken(made.shard("s1"))
        held = made.ask("s1", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4294967294")
        assert held == 0


def test_an_application_may_use_it_and_not_the_sequence(found: Callable[..., Found]) -> None:
    made = found(1)
    shard = made.shard("s1")
    with shard.transaction(force_rollback=True):
        shard.execute("CREATE ROLE somebody")
        shard.execute("SET LOCAL ROLE somebody")
        assert len(taken(shard)) == 500
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            shard.execute("SELECT setval('shardwright.ids', 1)")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), shard.transaction():
        shard.execute("SET TRANSACTION READ ONLY")
        taken(shard)


def test_a_shard_that_comes_again_goes_on(found: Callable[..., Found]) -> None:
    made = found(2, keyspace=None)
    last = max(taken(made.shard("s2")))
    shards.remove_shard(made.catalog, "s2")
    made.add("s2")
    assert made.ask("s2", "SELECT generator FROM shardwright.identity") == 1
    assert min(taken(made.shard("s2"))) > last


def test_the_catalog_grants_nothing_twice(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as catalog:
        migrations.apply(catalog, "catalog")
        first = generators.grant(catalog, "a", 1000)
        again = generators.grant(catalog, "a", 1000, first)
        assert (again.number, again.first) == (first.number, first.end)
        other = generators.grant(catalog, "b", 1000)
        assert other.number != first.number
        # What was granted to nobody's knowledge is lost, and not granted again.
        lost = generators.grant(catalog, "a", 1000, again)
        elsewhere = generators.grant(catalog, "a", 1000, again)
        assert elsewhere.number not in (lost.number, other.number)
        with pytest.raises(psycopg.errors.CheckViolation, match="granted up to"):
            catalog.execute(
                "UPDATE shardwright.generators SET granted = granted - 1 WHERE number = %s", (first.number,)
            )
        catalog.execute("UPDATE shardwright.generators SET granted = shardwright.ids_clock() + 60000")
        with pytest.raises(errors.OperationConflict):
            generators.grant(catalog, "c", 1000)
        assert generators.number_for(catalog, "s9") == generators.number_for(catalog, "s9")


def test_uuids_of_sql_are_such_as_those_of_python(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as shard:
        migrations.apply(shard, "shard")
        before = time.time_ns() // 1_000_000
        made: list[uuid.UUID] = []
        for _ in range(20):
            made += taken(shard, "SELECT shardwright.uuid7()")  # type: ignore[arg-type]
        after = time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert all(before <= one.int >> 80 <= after for one in made)
    # By the microsecond, which two statements cannot share.
    assert [one.int >> 64 for one in made] == sorted(one.int >> 64 for one in made)
    assert len({one.int & (2**62 - 1) for one in made}) == 20


def test_as_a_default_of_a_column(found: Callable[..., Found]) -> None:
    """In a model the id is made here, in DDL on the shard; both may be asked for in one table."""
    made = found(1)
    table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True, default=next_id))
    made.shard("s1").execute("CREATE TABLE things (id bigint PRIMARY KEY DEFAULT shardwright.next_id())")
    with Cluster.connect(made.dsns.catalog, refresh="never") as cluster, cluster.engine("s1").connect() as connection:
        connection.execute(sa.insert(table), [{} for _ in range(3)])
        connection.execute(sa.text("INSERT INTO things DEFAULT VALUES"))
        connection.commit()
    numbers = {ids.Id.read(row).generator for row in taken(made.shard("s1"), "SELECT id FROM things")}
    assert numbers == {0, 1023}


@pytest.mark.slow
def test_a_promoted_standby_goes_on_after_all_that_was_given_out(server_factory: Callable[..., Server]) -> None:
    """Even what had not reached it, and though its clock is behind."""
    primary = server_factory()
    with psycopg.connect(primary.dsn(), autocommit=True) as shard:
        migrations.apply(shard, "shard")
        shard.execute("INSERT INTO shardwright.identity VALUES (true, gen_random_uuid(), 's1', 7)")
        seen = taken(shard)
        standby = primary.standby(primary.directory.parent / "standby")
        try:
            # Replay stops: what is given out from here on does not arrive.
            standby.execute("SELECT pg_wal_replay_pause()")
            seen += taken(shard)
            primary.kill()
            standby.execute("SELECT pg_wal_replay_resume()")
            standby.promote()
            with psycopg.connect(standby.dsn(), autocommit=True) as promoted:
                set_clock(promoted, -3000)
                later = taken(promoted) + taken(promoted)
            assert later == sorted(later)
            assert min(later) > max(seen)
        finally:
            standby.stop("immediate")
