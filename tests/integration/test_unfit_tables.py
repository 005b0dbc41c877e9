"""Tables that cannot be what they are declared to be: each is refused with its reason and a fix, and left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from fix_catalog import Found
from fix_servers import Dsns
from shardwright.catalog import keyspaces, migrations, tables
from shardwright.errors import UnfitTable
from shardwright.servers import Endpoint

pytestmark = pytest.mark.newest_postgres

SHARDED = [
    ("CREATE TABLE t (user_id bigint NOT NULL)", "has no primary key"),
    ("CREATE TABLE t (user_id bigint)", "allows NULL in the key column user_id"),
    ("CREATE TABLE t (user_id bigint NOT NULL, id int PRIMARY KEY)", "has a primary key without user_id"),
    ("CREATE TABLE t (id int PRIMARY KEY)", "has no column user_id"),
    ("CREATE TABLE t (user_id bigint PRIMARY KEY DEFERRABLE)", "has a deferrable primary key"),
    ("CREATE TABLE t (user_id numeric PRIMARY KEY)", "key column user_id of type numeric"),
    ("CREATE TABLE t (user_id text PRIMARY KEY)", "key column user_id of type text"),
    ("CREATE TABLE t (user_id char(3) PRIMARY KEY)", r"key column user_id of type character\(3\)"),
    ("CREATE TABLE t (user_id bigint[] PRIMARY KEY)", r"key column user_id of type bigint\[\]"),
    (
        "CREATE DOMAIN d AS bigint; CREATE TABLE t (user_id d PRIMARY KEY)",
        "key column user_id of the user-defined type public.d",
    ),
    (
        "CREATE TYPE e AS ENUM ('a'); CREATE TABLE t (user_id e PRIMARY KEY)",
        "key column user_id of the user-defined type public.e",
    ),
    (
        "CREATE TABLE t (a bigint, user_id bigint GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY)",
        "computes the key column user_id",
    ),
    ("CREATE TABLE t (user_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)", "key column user_id GENERATED ALWAYS"),
    ("CREATE TABLE t (user_id bigint PRIMARY KEY, e text UNIQUE)", "the unique constraint t_e_key without user_id"),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY, e text); CREATE UNIQUE INDEX u ON t (e)",
        "the unique index u without",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY, e text); CREATE UNIQUE INDEX u ON t (lower(e), (user_id + 1))",
        "the unique index u without",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY, e text); CREATE UNIQUE INDEX u ON t (e) INCLUDE (user_id)",
        "the unique index u without",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))",
        "the exclusion constraint t_r_excl without",
    ),
    ("CREATE UNLOGGED TABLE t (user_id bigint PRIMARY KEY)", "is unlogged"),
    ("CREATE TABLE t (user_id bigint PRIMARY KEY) PARTITION BY HASH (user_id)", "is partitioned by HASH"),
    ("CREATE VIEW t AS SELECT 1::bigint AS user_id", "is a view"),
    ("CREATE MATERIALIZED VIEW t AS SELECT 1::bigint AS user_id", "is a materialized view"),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; "
        "CREATE FOREIGN TABLE t (user_id bigint NOT NULL) SERVER far",
        "is a foreign table",
    ),
    (
        "CREATE TABLE p (user_id bigint); CREATE TABLE t (PRIMARY KEY (user_id)) INHERITS (p)",
        "takes part in inheritance",
    ),
    ("CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE TABLE c () INHERITS (t)", "takes part in inheritance"),
    ("CREATE TYPE y AS (user_id bigint); CREATE TABLE t OF y (PRIMARY KEY (user_id))", "is a typed table"),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "has row-level security",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING",
        r"has rules \(r\)",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'; "
        "CREATE TRIGGER a BEFORE UPDATE ON t EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER a",
        r"has triggers that fire in replication too \(a\)",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'; "
        "CREATE TRIGGER a BEFORE UPDATE ON t EXECUTE FUNCTION f(); ALTER TABLE t ENABLE REPLICA TRIGGER a",
        r"has triggers that fire in replication too \(a\)",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
        "has REPLICA IDENTITY NOTHING",
    ),
    (
        "CREATE TABLE o (id int PRIMARY KEY); CREATE TABLE t (user_id bigint PRIMARY KEY, o int REFERENCES o)",
        "a table that is not registered",
    ),
    (
        "CREATE TABLE t (user_id bigint PRIMARY KEY); CREATE TABLE o (id int PRIMARY KEY, u bigint REFERENCES t)",
        "foreign key o_u_fkey of public.o on shard s1 points to public.t",
    ),
    (
        "CREATE TABLE t (user_id bigint, n bigint, m bigint, PRIMARY KEY (user_id, n), "
        "FOREIGN KEY (n, user_id) REFERENCES t (user_id, n))",
        "does not tie user_id to user_id",
    ),
]


@pytest.fixture(scope="module")
def lasting(server: Endpoint) -> Iterator[Found]:
    """A cluster of one shard for the whole module."""
    names = [f"{name}_unfit_{os.getpid()}" for name in ("catalog", "s1")]
    dsns = [server.create_database(name) for name in names]
    with ExitStack() as stack:
        made = Found(Dsns(dsns[0], {"s1": dsns[1]}), stack)
        migrations.apply(made.catalog, "catalog")
        made.add("s1")
        keyspaces.create_keyspace(made.catalog, "users")
        yield made
    for name in names:
        server.drop_database(name)


@pytest.fixture
def clean(lasting: Found) -> Iterator[Found]:
    """The same, and what a test makes in its schema public is dropped again."""
    yield lasting
    lasting.shard("s1").execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    lasting.shard("s1").execute("DROP FOREIGN DATA WRAPPER IF EXISTS w CASCADE")


@pytest.mark.parametrize(("ddl", "said"), SHARDED, ids=[said.strip() for _, said in SHARDED])
def test_a_table_that_cannot_be_sharded(clean: Found, ddl: str, said: str) -> None:
    clean.shard("s1").execute(ddl.encode())
    with pytest.raises(UnfitTable, match=said) as refused:
        clean.adopt("t")
    assert refused.value.fix
    assert refused.value.facts["table"] == "public.t"
    assert clean.ask("s1", "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '~%'") == 0
    assert tables.list_tables(clean.catalog) == []


def test_a_text_key_needs_a_deterministic_collation(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    keyspaces.create_keyspace(cluster.catalog, "users", key_type="text")
    shard = cluster.shard("s1")
    try:
        shard.execute("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this PostgreSQL has no ICU")
    shard.execute("CREATE TABLE t (user_id text COLLATE ci PRIMARY KEY)")
    with pytest.raises(UnfitTable, match="non-deterministic collation"):
        cluster.adopt("t")
    shard.execute("CREATE TABLE fine (user_id varchar(10) PRIMARY KEY)")
    cluster.adopt("fine")


@pytest.mark.parametrize("kind", ["int2", "int4", "int8"])
def test_narrower_integers_fit_into_a_keyspace_of_wide_ones(found: Callable[..., Found], kind: str) -> None:
    cluster = found(2)
    cluster.shard("s1").execute(f"CREATE TABLE t (user_id {kind} PRIMARY KEY)".encode())
    cluster.adopt("t")


def test_wider_integers_do_not_fit(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    keyspaces.create_keyspace(cluster.catalog, "users", key_type="int2")
    cluster.shard("s1").execute("CREATE TABLE t (user_id int PRIMARY KEY)")
    with pytest.raises(UnfitTable, match="keys of type int2"):
        cluster.adopt("t")


@pytest.mark.parametrize(
    ("ddl", "said"),
    [
        ("CREATE TABLE t (id int)", "has no primary key"),
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "is unlogged"),
        (
            "CREATE TABLE o (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, o int REFERENCES o)",
            "not registered",
        ),
        ("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", "REPLICA IDENTITY NOTHING"),
    ],
)
def test_a_table_that_cannot_be_a_reference(found: Callable[..., Found], ddl: str, said: str) -> None:
    cluster = found(2, keyspace=None)
    cluster.shard("s1").execute(ddl.encode())
    with pytest.raises(UnfitTable, match=said):
        cluster.adopt("t", kind="reference")
    for shard in ("s1", "s2"):
        assert cluster.ask(shard, "SELECT count(*) FROM pg_publication") == 0
        assert cluster.ask(shard, "SELECT count(*) FROM shardwright.guards") == 0


def test_foreign_keys_that_cross_shards(found: Callable[..., Found]) -> None:
    cluster = found(2)
    for statement in (
        "CREATE TABLE users (user_id bigint PRIMARY KEY)",
        "CREATE TABLE weather (id int PRIMARY KEY)",
        "CREATE TABLE countries (code text PRIMARY KEY)",
    ):
        cluster.shard("s1").execute(statement.encode())
    cluster.adopt("users")
    cluster.adopt("weather", kind="global", home="s1")
    cluster.adopt("countries", kind="reference")
    keyspaces.create_keyspace(cluster.catalog, "others")
    for ddl, declared, said in (
        ("user_id bigint PRIMARY KEY, w int REFERENCES weather", {}, "a table that is on shard s1 only"),
        (
            "user_id bigint PRIMARY KEY REFERENCES users",
            {"kind": "sharded", "key_column": "user_id", "keyspace": "others"},
            "a sharded table of which a shard has only its part",
        ),
        ("id int PRIMARY KEY, u bigint REFERENCES users", {"kind": "reference"}, "only its part"),
        ("id int PRIMARY KEY, w int REFERENCES weather", {"kind": "reference"}, "on shard s1 only"),
        ("id int PRIMARY KEY, u bigint REFERENCES users", {"kind": "global", "home": "s1"}, "only its part"),
    ):
        cluster.shard("s1").execute(f"CREATE TABLE t ({ddl})".encode())
        with pytest.raises(UnfitTable, match=said):
            cluster.adopt("t", **declared)
        cluster.shard("s1").execute("DROP TABLE t")
    for ddl, declared in (
        ("user_id bigint PRIMARY KEY REFERENCES users, c text REFERENCES countries", {}),
        ("id int PRIMARY KEY, c text REFERENCES countries", {"kind": "reference"}),
        ("id int PRIMARY KEY, c text REFERENCES countries, w int REFERENCES weather", {"kind": "global", "home": "s1"}),
    ):
        name = f"fine_{len(tables.list_tables(cluster.catalog))}"
        cluster.shard("s1").execute(f"CREATE TABLE {name} ({ddl})".encode())
        cluster.adopt(name, **declared)


def test_a_table_that_differs_between_shards(found: Callable[..., Found]) -> None:
    cluster = found(2)
    cluster.shard("s1").execute("CREATE TABLE t (user_id bigint PRIMARY KEY, a int)")
    cluster.shard("s2").execute("CREATE TABLE t (user_id bigint PRIMARY KEY, a bigint)")
    with pytest.raises(UnfitTable, match="on shard s2: column a: integer / bigint"):
        cluster.adopt("t")
