"""Shards join and leave the cluster; what cannot be a shard is refused and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from fix_catalog import Found
from shardwright import engines
from shardwright.catalog import decisions, leaving, migrations, roster, shards, tables
from shardwright.errors import (
    BadOption,
    CannotConnect,
    CatalogNewer,
    ClusterInUse,
    LockTimeout,
    MisplacedRows,
    NotPrimary,
    PasswordMissing,
    SameServer,
    SecretInConninfo,
    UnfitServer,
    UnfitTable,
    UnknownShard,
)
from shardwright.servers import Endpoint, Server


def schemas(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'shardwright'").fetchone()
        assert row is not None
        return int(row[0])


def test_a_shard_is_stored_with_what_it_is(found: Callable[..., Found]) -> None:
    cluster = found(1, joined=0, keyspace=None)
    added = cluster.add("s1", region="north", weight=3, replication_conninfo="host=inside dbname=x")
    assert shards.list_shards(cluster.catalog) == [added] == [shards.get_shard(cluster.catalog, "s1")]
    assert (added.region, added.weight, added.subscribers_conninfo) == ("north", 3, "dbname=x host=inside")
    assert added.server_version == cluster.catalog.info.server_version
    assert cluster.ask("s1", "SELECT shard FROM shardwright.identity") == "s1"


def test_adding_again_changes_the_address_and_nothing_else(found: Callable[..., Found]) -> None:
    cluster = found(1)
    first = shards.get_shard(cluster.catalog, "s1")
    again = shards.add_shard(cluster.catalog, "s1", first.conninfo + " connect_timeout=7", weight=2)
    assert again.conninfo != first.conninfo
    assert shards.list_shards(cluster.catalog) == [again]


def test_a_run_that_broke_off_is_repeated(found: Callable[..., Found]) -> None:
    cluster = found(1, joined=0, keyspace=None)
    with engines.connect_shard(roster.Shard("s1", cluster.dsns.shards["s1"])) as half:
        migrations.apply(half, "shard")
        half.execute(
            "INSERT INTO shardwright.identity (cluster, shard) VALUES (%s, 'other-name')",
            (roster.cluster_id(cluster.catalog),),
        )
    assert shards.list_shards(cluster.catalog) == []
    cluster.add("s1")
    assert cluster.ask("s1", "SELECT shard FROM shardwright.identity") == "s1"


@pytest.mark.parametrize("name", ["S1", "1s", "", "a b", "a" * 32, "ä", 'a"b', "s1;"])
def test_names_that_are_refused(found: Callable[..., Found], name: str) -> None:
    cluster = found(1, joined=0, keyspace=None)
    with pytest.raises(BadOption, match="not a shard's name"):
        shards.add_shard(cluster.catalog, name, cluster.dsns.shards["s1"])
    with pytest.raises(UnknownShard):
        shards.get_shard(cluster.catalog, name)


@pytest.mark.parametrize(
    "secret",
    [
        "{} password=geheim",
        "{} password='ge heim'",
        "{} sslpassword=geheim",
        "postgresql://postgres:geheim@127.0.0.1/x",
        "postgresql://127.0.0.1/x?password=geheim",
    ],
)
def test_no_password_is_stored_or_shown(found: Callable[..., Found], secret: str) -> None:
    cluster = found(1, joined=0, keyspace=None)
    good = engines.without_secret(cluster.dsns.shards["s1"])
    for address, inside in ((secret.format(good), None), (good, secret.format("host=x"))):
        with pytest.raises(SecretInConninfo) as refused:
            shards.add_shard(cluster.catalog, "s1", address, replication_conninfo=inside)
        assert "geheim" not in repr(refused.value.as_json())
    assert shards.list_shards(cluster.catalog) == []
    assert schemas(cluster.dsns.shards["s1"]) == 0


def test_one_database_under_two_names(found: Callable[..., Found]) -> None:
    cluster = found(1)
    alias = cluster.dsns.shards["s1"].replace("127.0.0.1", "localhost")
    assert alias != cluster.dsns.shards["s1"]
    with pytest.raises(SameServer, match="is shard s1 already"):
        shards.add_shard(cluster.catalog, "s2", alias)


def test_one_name_for_two_databases(found: Callable[..., Found]) -> None:
    cluster = found(2, joined=1)
    with pytest.raises(BadOption, match="it is another database"):
        shards.add_shard(cluster.catalog, "s1", cluster.dsns.shards["s2"])
    assert schemas(cluster.dsns.shards["s2"]) == 0


def test_a_shard_of_another_cluster(found: Callable[..., Found]) -> None:
    one, two = found(1), found(1, joined=0, keyspace=None)
    with pytest.raises(UnfitServer, match="another shardwright cluster"):
        shards.add_shard(two.catalog, "s1", one.dsns.shards["s1"])


def test_the_catalog_is_no_shard(found: Callable[..., Found]) -> None:
    cluster = found(1, joined=0, keyspace=None)
    with pytest.raises(UnfitServer, match="is a catalog"):
        shards.add_shard(cluster.catalog, "s1", cluster.dsns.catalog)


def test_a_database_of_another_encoding(found: Callable[..., Found], server: Endpoint) -> None:
    cluster = found(1, joined=0, keyspace=None)
    name = f"latin_{cluster.catalog.info.backend_pid}"
    server.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(UnfitServer, match="LATIN1"):
            shards.add_shard(cluster.catalog, "s1", server.dsn(name))
    finally:
        server.drop_database(name)


def test_wal_level_must_be_logical(found: Callable[..., Found], server_factory: Callable[..., Server]) -> None:
    cluster = found(1, joined=0, keyspace=None)
    plain = server_factory(settings={"wal_level": "replica"})
    with pytest.raises(UnfitServer, match="wal_level is replica") as refused:
        shards.add_shard(cluster.catalog, "s1", plain.dsn())
    assert "ALTER SYSTEM SET wal_level = logical" in refused.value.fix
    assert schemas(plain.dsn()) == 0


def test_a_standby_is_refused_and_then_a_stopped_server(
    found: Callable[..., Found], server_factory: Callable[..., Server]
) -> None:
    cluster = found(1, joined=0, keyspace=None)
    primary = server_factory()
    standby = primary.standby(primary.directory.parent / "standby")
    try:
        with pytest.raises(NotPrimary):
            shards.add_shard(cluster.catalog, "s1", standby.dsn())
    finally:
        standby.stop("immediate")
    with pytest.raises(CannotConnect):
        shards.add_shard(cluster.catalog, "s1", standby.dsn())


def test_passwords_come_from_the_environment(
    found: Callable[..., Found], server_factory: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = found(1, joined=0, keyspace=None)
    locked = server_factory(password="geheim")
    address = f"host=127.0.0.1 port={locked.port} user=postgres dbname=postgres"
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    with pytest.raises(PasswordMissing):
        shards.add_shard(cluster.catalog, "a-b", address)
    monkeypatch.setenv("SHARDWRIGHT_PASSWORD_A_B", "geheim")
    added = shards.add_shard(cluster.catalog, "a-b", address)
    assert "geheim" not in repr(added)


def test_a_newer_schema_is_left_alone(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    cluster.shard("s1").execute("INSERT INTO shardwright.migrations VALUES (9000, 'future')")
    with pytest.raises(CatalogNewer):
        cluster.add("s1")


def test_a_new_shard_has_every_table_and_owns_nothing(found: Callable[..., Found]) -> None:
    cluster = found(2, joined=1)
    for statement in (
        "CREATE TABLE users (user_id bigint PRIMARY KEY, name text)",
        "CREATE TABLE orders (user_id bigint REFERENCES users, id serial, PRIMARY KEY (user_id, id))",
        "CREATE TABLE weather (id int PRIMARY KEY)",
        "INSERT INTO users SELECT g, 'x' FROM generate_series(1, 100) g",
    ):
        cluster.shard("s1").execute(statement.encode())
    cluster.adopt("users", "orders")
    cluster.adopt("weather", kind="global", home="s1")
    # altered since it was registered: the new shard gets it as it is now
    cluster.shard("s1").execute("ALTER TABLE users ADD COLUMN email text")
    cluster.add("s2")
    assert cluster.ask("s2", "SELECT count(*) FROM information_schema.columns WHERE table_name = 'users'") == 3
    assert cluster.ask("s2", "SELECT to_regclass('weather')") is None
    assert (
        cluster.ask("s2", "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'orders'::regclass")
        == 1
    )
    with pytest.raises(psycopg.DatabaseError) as refused:
        cluster.shard("s2").execute("INSERT INTO users VALUES (1, 'x')")
    assert refused.value.sqlstate == "SH001"
    [users] = [table for table in tables.list_tables(cluster.catalog) if table.table_name == "users"]
    assert [column.name for column in users.layout.columns] == ["user_id", "name", "email"]


def test_a_shard_that_owns_points_stays(found: Callable[..., Found]) -> None:
    cluster = found(2)
    with pytest.raises(ClusterInUse, match="owns points"):
        shards.remove_shard(cluster.catalog, "s2")


def test_removing_drops_what_was_made_and_keeps_what_was_there(found: Callable[..., Found]) -> None:
    cluster = found(2, joined=1)
    cluster.shard("s1").execute("CREATE SCHEMA shop")
    cluster.shard("s1").execute("CREATE TYPE public.mood AS ENUM ('sad', 'ok')")
    cluster.shard("s1").execute("CREATE TABLE made (user_id bigint PRIMARY KEY, m mood)")
    for name in ("s1", "s2"):
        cluster.shard(name).execute("CREATE TABLE found (user_id bigint PRIMARY KEY)")
    cluster.adopt("made", "found")
    cluster.add("s2")
    assert cluster.ask("s2", "SELECT to_regclass('made')::text") == "made"
    assert shards.remove_shard(cluster.catalog, "s2") == ["public.made"]
    assert [shard.name for shard in shards.list_shards(cluster.catalog)] == ["s1"]
    assert cluster.ask("s2", "SELECT to_regclass('found')::text") == "found"
    assert cluster.ask("s2", "SELECT count(*) FROM pg_trigger") == 0
    assert cluster.ask("s2", "SELECT count(*) FROM pg_type WHERE typname = 'mood'") == 0
    assert schemas(cluster.dsns.shards["s2"]) == 0
    cluster.add("s2")


def test_a_shard_with_a_prepared_transaction_stays(found: Callable[..., Found]) -> None:
    """Nobody would end it any more, neither on a shard that was removed nor in a cluster that was left."""
    cluster = found(2, joined=1)
    cluster.add("s2")
    id_ = roster.cluster_id(cluster.catalog)
    names = {name: decisions.gid(id_, "7a60c1de-61e3-4d53-9d9c-6f6f0f8f6d0b", name) for name in ("s1", "s2")}
    for name, gid in names.items():
        cluster.shard(name).execute(f"BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'".encode())
    try:
        with pytest.raises(ClusterInUse, match="7a60c1de") as refused:
            shards.remove_shard(cluster.catalog, "s2")
        assert "tx recover" in refused.value.fix
        cluster.shard("s2").execute(f"COMMIT PREPARED '{names['s2']}'".encode())
        assert shards.remove_shard(cluster.catalog, "s2") == []
        with pytest.raises(ClusterInUse, match="7a60c1de"):
            leaving.leave(cluster.catalog)
    finally:
        cluster.shard("s1").execute(f"ROLLBACK PREPARED '{names['s1']}'".encode())
    assert leaving.leave(cluster.catalog).shard == "s1"


def test_a_server_that_is_gone_for_good_is_forgotten(
    found: Callable[..., Found], server_factory: Callable[..., Server]
) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE r (id int PRIMARY KEY)")
    cluster.adopt("r", kind="reference")
    gone = server_factory()
    shards.add_shard(cluster.catalog, "s2", gone.dsn())
    gone.kill()
    with pytest.raises(CannotConnect):
        shards.remove_shard(cluster.catalog, "s2")
    assert shards.remove_shard(cluster.catalog, "s2", forget=True) == []
    assert [shard.name for shard in shards.list_shards(cluster.catalog)] == ["s1"]
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    assert cluster.ask("s1", slots) == 0


def test_a_shard_that_cannot_have_a_table_is_left_as_it_was(found: Callable[..., Found]) -> None:
    cluster = found(2, joined=1)
    cluster.shard("s1").execute(
        "CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE t (user_id bigint PRIMARY KEY, n int)"
    )
    cluster.adopt("r", kind="reference")
    cluster.adopt("t")
    cluster.shard("s2").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    with pytest.raises(UnfitTable, match="column n: integer / absent"):
        cluster.add("s2")
    cluster.shard("s2").execute("ALTER TABLE t ADD n int; INSERT INTO t VALUES (1, 1)")
    with pytest.raises(MisplacedRows):
        cluster.add("s2")
    assert [shard.name for shard in shards.list_shards(cluster.catalog)] == ["s1"]
    for count in (
        "FROM pg_trigger WHERE tgname LIKE '~%'",
        "FROM pg_tables WHERE tablename = 'r'",
        "FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()",
    ):
        assert cluster.ask("s2", f"SELECT count(*) {count}") == 0
    cluster.shard("s2").execute("DELETE FROM t")
    cluster.add("s2")


def test_adding_again_leaves_alone_what_an_operation_works_on(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY)")
    cluster.adopt("t")
    guard = "SELECT prosrc FROM pg_proc WHERE proname = 'guard_insert_1'"
    cluster.shard("s1").execute("UPDATE shardwright.guards SET owned = '{}'")
    cluster.catalog.execute("INSERT INTO shardwright.operations (request) VALUES ('{}')")
    before = cluster.ask("s1", guard)
    cluster.add("s1", region="north")
    assert cluster.ask("s1", guard) == before
    assert cluster.ask("s1", "SELECT owned::text FROM shardwright.guards") == "{}"
    assert shards.get_shard(cluster.catalog, "s1").region == "north"


def test_one_change_of_the_clusters_make_up_at_a_time(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    with (
        engines.connect_catalog(cluster.dsns.catalog, "the other") as other,
        roster.changing(other),
        pytest.raises(LockTimeout, match=r"pid \d+ \(the other\)"),
        roster.changing(cluster.catalog, patience=0.2),
    ):
        pytest.fail("two at once")
    with roster.changing(cluster.catalog, patience=0.2):
        pass
