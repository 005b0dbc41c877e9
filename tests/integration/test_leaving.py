"""Leaving: a plain PostgreSQL database remains, the same as before it was adopted."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import psycopg
import pytest

from fix_catalog import Found
from fix_servers import Postgres
from shardwright.catalog import adoption, keyspaces, leaving, locking, shards
from shardwright.catalog.adoption import Wanted
from shardwright.errors import ClusterInUse, LockTimeout
from shardwright.routing.tables import Declaration

SCHEMA = (
    "CREATE SCHEMA shop",
    "CREATE TYPE mood AS ENUM ('sad', 'ok')",
    "CREATE TABLE users (user_id bigint PRIMARY KEY, name text NOT NULL, mood mood DEFAULT 'ok')",
    "CREATE TABLE orders (user_id bigint REFERENCES users, id serial, at timestamptz DEFAULT now(), PRIMARY KEY (user_id, id))",
    "CREATE INDEX by_at ON orders (at)",
    "CREATE TABLE shop.countries (code char(2) PRIMARY KEY, name text)",
    "CREATE TABLE weather (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER mine BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION f()",
    "GRANT SELECT ON users TO PUBLIC",
    "INSERT INTO users SELECT g, 'n' || g FROM generate_series(1, 500) g",
    "INSERT INTO orders (user_id) SELECT g % 500 + 1 FROM generate_series(1, 2000) g",
    "INSERT INTO shop.countries VALUES ('de', 'Germany')",
)
WANTED = [
    Wanted("public", "users", Declaration("sharded", "user_id", "users")),
    Wanted("public", "orders", Declaration("sharded", "user_id", "users")),
    Wanted("shop", "countries", Declaration("reference")),
    Wanted("public", "weather", Declaration("global", home="s1")),
]


def dump(postgres: Postgres, dsn: str) -> str:
    if postgres.bin_dir is None:
        pytest.skip("needs pg_dump")
    done = subprocess.run(
        [postgres.bin_dir / "pg_dump", "--schema-only", dsn], capture_output=True, text=True, check=True
    )
    # newer minor releases wrap the dump into a pair of \restrict and \unrestrict with a random key
    return re.sub(r"(?m)^\\(un)?restrict .*$", "", done.stdout)


def fill(cluster: Found) -> None:
    for statement in SCHEMA:
        cluster.shard("s1").execute(statement.encode())


def test_the_database_is_as_it_was(found: Callable[..., Found], postgres: Postgres) -> None:
    cluster = found(2, joined=0, keyspace=None)
    fill(cluster)
    before = dump(postgres, cluster.dsns.shards["s1"])
    cluster.add("s1")
    keyspaces.create_keyspace(cluster.catalog, "users")
    adoption.adopt(cluster.catalog, WANTED)
    cluster.shard("s2").execute(SCHEMA[7].encode())  # functions are the application's own affair
    cluster.add("s2")
    assert dump(postgres, cluster.dsns.shards["s1"]) != before
    with pytest.raises(ClusterInUse) as refused:
        leaving.leave(cluster.catalog)
    assert "shardwright shard remove s2" in refused.value.fix
    shards.remove_shard(cluster.catalog, "s2")
    left = leaving.leave(cluster.catalog)
    assert left.shard == "s1"
    assert set(left.tables) == {"public.orders", "public.users", "public.weather", "shop.countries"}
    assert dump(postgres, cluster.dsns.shards["s1"]) == before
    assert cluster.ask("s1", "SELECT count(*) FROM orders") == 2000
    assert cluster.ask("s1", "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0
    assert cluster.catalog.execute("SELECT to_regnamespace('shardwright')").fetchone() == (None,)


def test_empty_tables_of_the_last_shard_stay(found: Callable[..., Found]) -> None:
    """They were made by us, and they are the application's now."""
    cluster = found(2, joined=2, keyspace=None)
    cluster.shard("s2").execute("CREATE TABLE weather (id int PRIMARY KEY)")
    cluster.shard("s2").execute("CREATE TABLE r (id int PRIMARY KEY)")
    cluster.adopt("weather", kind="global", home="s2")
    cluster.adopt("r", kind="reference", home="s2")
    shards.remove_shard(cluster.catalog, "s1")
    leaving.leave(cluster.catalog)
    assert cluster.ask("s2", "SELECT to_regclass('r')::text") == "r"
    assert cluster.ask("s1", "SELECT to_regclass('r')") is None


def test_not_while_an_operation_is_live(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.catalog.execute("INSERT INTO shardwright.operations (request) VALUES ('{}')")
    with pytest.raises(ClusterInUse, match="operation 1 is live"):
        leaving.leave(cluster.catalog)


def test_a_run_that_broke_off_is_repeated(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = found(1)
    cluster.shard("s1").execute(
        "CREATE TABLE a (user_id bigint PRIMARY KEY); CREATE TABLE b (user_id bigint PRIMARY KEY)"
    )
    cluster.adopt("a", "b")
    monkeypatch.setitem(locking.patiently.__kwdefaults__, "patience", 0.3)
    with psycopg.connect(cluster.dsns.shards["s1"]) as reader:
        reader.execute("SELECT FROM b")
        with pytest.raises(LockTimeout, match=rf"public\.b .*pid {reader.info.backend_pid}"):
            leaving.leave(cluster.catalog)
    assert leaving.leave(cluster.catalog).tables == ("public.a", "public.b")
    assert cluster.ask("s1", "SELECT count(*) FROM pg_trigger") == 0
    assert cluster.ask("s1", "SELECT to_regnamespace('shardwright')") is None


def test_a_crash_between_shard_and_catalog(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("DROP SCHEMA shardwright CASCADE")
    assert leaving.leave(cluster.catalog).shard == "s1"


def test_a_catalog_without_shards_is_just_dropped(found: Callable[..., Found]) -> None:
    cluster = found(1, joined=0, keyspace=None)
    assert leaving.leave(cluster.catalog).shard is None
    assert cluster.catalog.execute("SELECT to_regnamespace('shardwright')").fetchone() == (None,)
