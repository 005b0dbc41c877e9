"""The verbs that found, fill, show and end a cluster, as a person or a program calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from fix_cli import Ran
from fix_servers import Dsns
from shardwright.cli import main
from shardwright.routing.shard_map import Keyspace, Range, ShardMap
from shardwright.servers import Endpoint
from shardwright.testing.clusters import make_ready

MODELS = """
from sqlalchemy import BigInteger, ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from shardwright import global_on, reference, sharded_by

print("an import may print")

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    __table_args__ = {"info": sharded_by("user_id", keyspace="users")}
    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    country: Mapped[str] = mapped_column(ForeignKey("countries.code"))

class Country(Base):
    __tablename__ = "countries"
    __table_args__ = {"info": reference()}
    code: Mapped[str] = mapped_column(primary_key=True)

class Weather(Base):
    __tablename__ = "weather"
    __table_args__ = {"info": global_on("s2")}
    id: Mapped[int] = mapped_column(primary_key=True)

class Secret(Base):
    __tablename__ = "secret"
    id: Mapped[int] = mapped_column(primary_key=True)

nothing = 7
empty = MetaData()
"""

Cli = Callable[..., Ran]


@pytest.fixture
def sw(cli: Cli, cluster_dsns: Callable[..., Dsns], workdir: Path) -> Callable[..., Ran]:
    """`shardwright` in a directory with models.py, with databases for a catalog and three shards as {s1} .. {s3}."""
    dsns = cluster_dsns(3)
    (workdir / "models.py").write_text(MODELS)

    def run(*words: object, **options: Any) -> Ran:
        given = [str(word).format(**dsns.shards) if "{s" in str(word) else word for word in words]
        environment = {"SHARDWRIGHT_CATALOG": dsns.catalog, **options.pop("env", {})}
        return cli(*given, cwd=workdir, env=environment, **options)

    run.dsns = dsns  # type: ignore[attr-defined]
    return run


def test_a_cluster_from_founding_to_leaving(sw: Callable[..., Ran], workdir: Path) -> None:
    assert sw("init", "--json").ok().json["next_steps"] == ["shardwright shard add s1 DSN"]
    assert sw("init").ok().out == "all is up to date\nnext: shardwright shard add s1 DSN\n"
    for name in ("s1", "s2"):
        added = sw("shard", "add", name, "{%s}" % name, "--region", "north", "--json").ok().json  # noqa: UP031
        assert (added["shard"], added["owns_points"]) == (name, False)
    made = sw("keyspace", "create", "users", "--type", "int8", "--json").ok().json
    assert [(one["lo"], one["hi"], one["shard"]) for one in made["ranges"]] == [(0, 2048, "s1"), (2048, 4096, "s2")]
    done = sw("table", "register", "models:Base", "--json").ok()
    assert done.json["created"] == ["public.countries", "public.users", "public.weather"]
    assert done.json["undeclared"] == ["secret"]
    assert "an import may print" in done.err
    assert "public.users" in sw("table", "list").ok().out

    seen = sw("status", "--json").ok().json
    assert [shard["state"] for shard in seen["shards"]] == ["ok", "ok"]
    assert seen["references"][0]["home"] == "s1"
    assert seen["operations"] == []
    assert sw("shard", "add", "s3", "{s3}", "--json").ok().json["next_steps"] == ["shardwright reshard plan --add s3"]
    shown = sw("status").ok().out
    for word in ("cluster ", "map version 1", "users (2048)", "nothing", "no live operation", "public.countries"):
        assert word in shown

    [route] = sw("route", "users", "1", "--json", "--save", "map.json").ok().json["routes"]
    assert route == {"keyspace": "users", "key": 1, "point": 4024, "range": 2, "shard": "s2", "map_version": 1}
    offline = sw("route", "users", "1", "--map", "map.json", "--json", env={"SHARDWRIGHT_CATALOG": ""}).ok()
    assert offline.json["routes"] == [route]

    assert sw("shard", "remove", "s2").code == 3
    removed = sw("shard", "remove", "s3", "--json").ok().json
    assert set(removed["dropped_tables"]) == {"public.countries", "public.users"}
    left = sw("leave")
    assert left.code == 3
    assert "error[SW213]" in left.err
    assert len(sw("shard", "list", "--json").ok().json["shards"]) == 2


def test_the_last_shard_is_left(sw: Callable[..., Ran]) -> None:
    sw("init").ok()
    sw("shard", "add", "s1", "{s1}").ok()
    sw("keyspace", "create", "users", "--type", "int8").ok()
    with psycopg.connect(sw.dsns.shards["s1"], autocommit=True) as connection:  # type: ignore[attr-defined]
        connection.execute("CREATE TABLE users (id bigint PRIMARY KEY)")
        connection.execute("CREATE TABLE orders (user_id bigint REFERENCES users, n int, PRIMARY KEY (user_id, n))")
        connection.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    sw("table", "add", "users", "orders", "--key", "id,user_id").ok()
    sw("table", "add", "a", "--reference").ok()
    sw("table", "add", "public.b", "--global", "s1").ok()
    kinds = {table["table"]: table["kind"] for table in sw("table", "list", "--json").ok().json["tables"]}
    assert kinds == {"a": "reference", "b": "global", "orders": "sharded", "users": "sharded"}
    left = sw("leave", "--json").ok().json
    assert left["left"] == "s1"
    again = sw("leave")
    assert again.code == 3
    assert "shardwright init" in again.err


def test_range_keyspaces(sw: Callable[..., Ran]) -> None:
    sw("init").ok()
    for name in ("s1", "s2"):
        sw("shard", "add", name, "{%s}" % name).ok()  # noqa: UP031
    made = (
        sw("keyspace", "create", "r", "--type", "int4", "--range", "--split=-5,1000", "--on", "s2,s1", "--json")
        .ok()
        .json
    )
    assert [(one["lo"], one["hi"], one["shard"]) for one in made["ranges"]] == [
        (None, -5, "s2"),
        (-5, 1000, "s1"),
        (1000, None, "s2"),
    ]
    routes = sw("route", "r", "--json", "--", "-6", "-5", "1000").ok().json["routes"]
    assert [(one["point"], one["shard"]) for one in routes] == [(-6, "s2"), (-5, "s1"), (1000, "s2")]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("shard", "add", "s9", "{s1} password=geheim"), 2, "SW109"),  # a URI: no key=value may follow
        (("shard", "add", "s9", "host=127.0.0.1 password=geheim"), 2, "SW110"),
        (("shard", "add", "s9", "postgresql://u:geheim@127.0.0.1/x"), 2, "SW110"),
        (("shard", "add", "S9", "{s3}"), 2, "SW109"),
        (("shard", "add", "s9", "nonsense"), 2, "SW109"),
        (("shard", "add", "s9", "{s1}"), 3, "SW202"),
        (("shard", "add", "s1", "{s3}"), 2, "SW109"),
        (("shard", "add", "s9", "host=127.0.0.1 port=1"), 3, "SW206"),
        (("shard", "add", "s9", "{s3}", "--weight", "-1"), 2, "SW109"),
        (("shard", "add", "s9", "{s3}", "--weight", "many"), 2, "SW109"),
        (("shard", "remove", "nobody"), 2, "SW101"),
        (("keyspace", "create", "users", "--type", "text"), 2, "SW109"),
        (("keyspace", "create", "k", "--type", "date"), 2, "SW107"),
        (("keyspace", "create", "k", "--type", "int8", "--buckets", "100"), 2, "SW109"),
        (("keyspace", "create", "k", "--type", "int8", "--on", "nobody"), 2, "SW101"),
        (("keyspace", "create", "k", "--type", "int8", "--on", "s1,,s2"), 2, "SW109"),
        (("keyspace", "create", "k", "--type", "int8", "--range", "--split", "5,1"), 2, "SW105"),
        (("keyspace", "create", "k", "--type", "int8", "--range", "--split", "1,x"), 2, "SW109"),
        (("table", "register", "models"), 2, "SW109"),
        (("table", "register", "nomodule:Base"), 2, "SW109"),
        (("table", "register", "models:nobody"), 2, "SW109"),
        (("table", "register", "models:nothing"), 2, "SW109"),
        (("table", "register", "models:empty"), 2, "SW108"),
        (("table", "add", "t"), 2, "SW109"),
        (("table", "add", "t", "--key", "a", "--reference"), 2, "SW109"),
        (("table", "add", "t", "--global", "s1", "--home", "s1"), 2, "SW109"),
        (("table", "add", "t", "u", "--key", "a,b,c"), 2, "SW109"),
        (("table", "add", "--key", "a"), 2, "SW109"),
        (("table", "add", "a.b.c", "--key", "a"), 2, "SW109"),
        (("table", "add", "nothing", "--key", "a"), 2, "SW103"),
        (("table", "add", "t", "--key", "a", "--keyspace", "nothing"), 2, "SW102"),
        (("table", "forget"), 2, "SW109"),
        (("table", "forget", "nothing"), 2, "SW103"),
        (("route", "nothing", "1"), 2, "SW102"),
        (("route", "users"), 2, "SW109"),
        (("route", "users", "x"), 2, "SW106"),
        (("route", "users", "9223372036854775808"), 2, "SW106"),
        (("route", "users", "1", "--map", "nofile"), 2, "SW109"),
        (("route", "users", "1", "--map", "models.py"), 2, "SW109"),
        (("route", "users", "1", "--save", "no/such/place"), 2, "SW109"),
        (("route", "users", "1", "--stdin"), 2, "SW109"),
    ],
    ids=lambda value: " ".join(value).replace("{", "").replace("}", "") if isinstance(value, tuple) else None,
)
def test_bad_input_is_answered_with_cause_fix_and_code(
    ready: Callable[..., Ran], words: tuple[str, ...], code: int, said: str
) -> None:
    ran, as_json = ready(*words), ready(*words, "--json")
    assert (ran.code, ran.out) == (code, "")
    lines = ran.err.splitlines()
    assert [line for line in lines if line.startswith(f"error[{said}] ")]
    assert [line for line in lines if line.startswith("fix: ") and len(line) > 8]
    assert as_json.code == code
    assert as_json.json["error"]["code"] == said
    for text in (ran.err, as_json.err, as_json.out):
        assert "Traceback" not in text
        assert "geheim" not in text


@pytest.fixture(scope="module")
def two_of_three(server: Endpoint) -> Iterator[Dsns]:
    """Two shards in the cluster, a third database, keyspace users; for tests that change nothing."""
    names = {name: f"{name}_verbs_{os.getpid()}" for name in ("catalog", "s1", "s2", "s3")}
    made = {name: server.create_database(database) for name, database in names.items()}
    dsns = Dsns(made.pop("catalog"), made)
    make_ready(dsns.catalog, {name: made[name] for name in ("s1", "s2")})
    yield dsns
    for database in names.values():
        server.drop_database(database)


@pytest.fixture
def ready(
    two_of_three: Dsns, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """`shardwright` inside this process, which is quicker."""
    (workdir / "models.py").write_text(MODELS)
    monkeypatch.chdir(workdir)
    monkeypatch.setenv("SHARDWRIGHT_CATALOG", two_of_three.catalog)
    monkeypatch.setattr(sys, "path", [str(workdir), *sys.path])

    def run(*words: str) -> Ran:
        code = main([word.format(**two_of_three.shards) if "{s" in word else word for word in words])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    "verb", ["status", "shard list", "keyspace list", "table list", "route users 1", "leave", "shard remove s1"]
)
def test_a_database_that_is_no_catalog(cli: Cli, database: str, verb: str) -> None:
    ran = cli(*verb.split(), "--catalog", database)
    assert ran.code == 3
    assert ran.err == "error[SW205] the catalog database has no shardwright schema\nfix: shardwright init\n"


def test_a_catalog_that_is_newer(found: Callable[..., Found], cli: Cli) -> None:
    cluster = found(1, keyspace=None)
    cluster.catalog.execute("INSERT INTO shardwright.migrations VALUES (9000, 'future')")
    for verb in ("status", "init", "shard list"):
        ran = cli(*verb.split(), "--catalog", cluster.dsns.catalog)
        assert ran.code == 3
        assert "error[SW204]" in ran.err


def test_a_stream_is_answered_as_it_comes(cli_start: Callable[..., subprocess.Popen[str]], workdir: Path) -> None:
    made = ShardMap(
        7,
        (Keyspace(1, "k", "range", "int8", None),),
        (Range(1, "k", None, 10, "s1"), Range(2, "k", 10, None, "s2")),
    )
    (workdir / "map").write_text(json.dumps(made.to_json()))
    process = cli_start("route", "k", "--stdin", "--json", "--map", "map", cwd=workdir, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for key, shard in ((5, "s1"), (-(2**63), "s1"), (2**63 - 1, "s2")):
        process.stdin.write(f"{key}\r\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())  # before the stream has ended
        assert (answer["key"], answer["shard"], answer["map_version"]) == (key, shard, 7)
    out, _ = process.communicate("".join(f"{key}\n" for key in range(100_000)) + "9", timeout=60)
    answers = out.splitlines()
    assert len(answers) == 100_001
    assert json.loads(answers[-1])["key"] == 9
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("key_type", "sent", "wanted"),
    [
        ("text", b"a\n\xc3\xa4 b\n\n", ["a", "ä b", ""]),
        ("bytea", b"\\x00ff\n\\x\n", ["\\x00ff", "\\x"]),
        ("uuid", b"6f1e9bb6-6c2b-4c6d-8d4f-2e8c3c4f1a2b", ["6f1e9bb6-6c2b-4c6d-8d4f-2e8c3c4f1a2b"]),
        ("int4", b"1\n2147483648\n", "line 2"),
        ("int8", b"1\nnull\n", "line 2"),
        ("text", b"a\n\xff\n", "line 2: not UTF-8"),
    ],
)
def test_keys_of_every_type_come_on_standard_input(
    cli_start: Callable[..., subprocess.Popen[str]], workdir: Path, key_type: str, sent: bytes, wanted: Any
) -> None:
    made = ShardMap(1, (Keyspace(1, "k", "hash", key_type, 8),), (Range(1, "k", 0, 8, "s1"),))
    (workdir / "map").write_text(json.dumps(made.to_json()))
    (workdir / "keys").write_bytes(sent)
    with (workdir / "keys").open("rb") as keys:
        process = cli_start("route", "k", "--stdin", "--map", "map", cwd=workdir, stdin=keys)
        out, err = process.communicate(timeout=60)
    if isinstance(wanted, str):
        assert process.returncode == 2
        assert f"error[SW106] {wanted}" in err
        return
    assert process.returncode == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()] == wanted
