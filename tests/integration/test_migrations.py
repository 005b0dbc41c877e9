"""The embedded SQL on a real server: applied once, checked in both directions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import get_args

import psycopg
import pytest

from shardwright import core
from shardwright.catalog.migrations import Kind, apply, check
from shardwright.errors import CatalogNewer, CatalogOlder, UnfitServer

KINDS = get_args(Kind)
FILES = Path(__file__).parents[2] / "migrations"


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_embedded(kind: Kind) -> None:
    files = sorted((FILES / kind).glob("*.sql"))
    assert [(name, sql) for _, name, sql in core.migrations(kind)] == [(path.stem, path.read_text()) for path in files]
    assert [number for number, _, _ in core.migrations(kind)] == list(range(1, len(files) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_apply_is_idempotent(database: str, kind: Kind) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        with pytest.raises(CatalogOlder):
            check(conn, kind)
        assert apply(conn, kind) == [number for number, _, _ in core.migrations(kind)]
        check(conn, kind)
        assert apply(conn, kind) == []


def test_older_and_newer_are_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        apply(conn, "catalog")
        conn.execute("INSERT INTO shardwright.migrations (number, name) VALUES (9000, '9000_future')")
        for call in (apply, check):
            with pytest.raises(CatalogNewer, match="9000"):
                call(conn, "catalog")
        conn.execute("DELETE FROM shardwright.migrations")
        with pytest.raises(CatalogOlder, match="no shardwright schema"):
            check(conn, "catalog")


@pytest.mark.parametrize("kind", KINDS)
def test_one_database_is_one_thing(database: str, kind: Kind) -> None:
    other: Kind = "shard" if kind == "catalog" else "catalog"
    with psycopg.connect(database, autocommit=True) as conn:
        apply(conn, kind)
        for call in (apply, check):
            with pytest.raises(UnfitServer, match=f"is a {kind}"):
                call(conn, other)
        check(conn, kind)


def test_a_foreign_schema_is_left_alone(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA shardwright")
        with pytest.raises(UnfitServer, match="not ours"):
            apply(conn, "shard")


def test_a_transaction_around_it_is_kept_whole(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        with conn.transaction(force_rollback=True):
            apply(conn, "shard")
            check(conn, "shard")
        with pytest.raises(CatalogOlder):
            check(conn, "shard")


def test_search_path_of_the_caller_does_not_matter(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA trap")
        conn.execute(
            "CREATE FUNCTION trap.gen_random_uuid() RETURNS uuid LANGUAGE sql AS 'SELECT 1/0; SELECT NULL::uuid'"
        )
        conn.execute("SET search_path = trap, pg_catalog")
        apply(conn, "catalog")
        row = conn.execute("SHOW search_path").fetchone()
        assert row == ("trap, pg_catalog",)


def test_two_at_once(database: str) -> None:
    applied: list[list[int]] = []

    def one() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            applied.append(apply(conn, "shard"))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [number for number, _, _ in core.migrations("shard")]
    assert sorted(applied) == [[], [], [], numbers]
