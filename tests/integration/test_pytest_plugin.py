"""The pytest plugin, as an application's tests use it: pytest inside of pytest, on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from shardwright.servers import Endpoint

pytestmark = pytest.mark.newest_postgres

pytest_plugins = ["pytester"]

MODELS = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from shardwright import reference, sharded_by

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    __table_args__ = {"info": sharded_by("id")}
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]

class Country(Base):
    __tablename__ = "countries"
    __table_args__ = {"info": reference()}
    code: Mapped[str] = mapped_column(primary_key=True)
"""
INI = """
[pytest]
shardwright_models = models:Base
pythonpath = .
addopts = --strict-markers -p no:cacheprovider
filterwarnings = error
"""
HEAD = """
import pytest, sqlalchemy as sa
from models import Base, Country, User
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, server: Endpoint) -> Run:
    pytester.makeini(INI)
    pytester.makepyfile(models=MODELS)

    def go(tests: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_app=HEAD + tests)
        return pytester.runpytest_subprocess(f"--shardwright-server={server.dsn()}", *options, timeout=120)

    return go


EVERYTHING = """
def helper(session, key):
    return session.execute(sa.select(User).where(User.id == key))  # helper

@pytest.fixture
def keys(shardwright_databases):
    return [shardwright_databases.key_on("s1"), shardwright_databases.key_on("s2")]

@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_begins_empty(n, shardwright_databases, shardwright_session, keys):
    session = shardwright_session
    for shard in ("s1", "s2"):
        assert session.scalars(sa.select(Country.code), bind_arguments={"shard": shard}).all() == []
    assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 0
    session.rollback()
    with session.begin():
        session.add(Country(code="xx"))
    for key in keys:
        with session.begin():
            session.add(User(id=key, name="x"))
    if n == 1:  # more than are deleted one by one
        near = [k for k in range(10_000, 20_000) if session.cluster.map.route("users", k).shard == "s1"][:1500]
        with session.cluster.sessionmaker()(key=near[0]) as pinned, pinned.begin():
            pinned.execute(sa.insert(User), [{"id": key, "name": "y"} for key in near])
    shardwright_databases.wait_for_references()
    for shard in ("s1", "s2"):
        assert session.scalars(sa.select(Country.code), bind_arguments={"shard": shard}).all() == ["xx"]

@pytest.mark.no_scatter
def test_one_shard(shardwright_session, keys):
    for key in keys:
        helper(shardwright_session, key)
    shardwright_session.execute(sa.select(Country))

@pytest.mark.no_scatter
def test_scatters(shardwright_session):
    shardwright_session.execute(sa.select(User))  # scatters

@pytest.mark.no_scatter
def test_some(shardwright_session, keys):
    shardwright_session.execute(sa.select(User).where(User.id.in_(keys)))

@pytest.mark.no_scatter
def test_swallows_it(shardwright_session):
    try:
        shardwright_session.execute(sa.select(User))  # swallows
    except BaseException:
        pass

@pytest.mark.not_on_shard("s2")
def test_stays_away(shardwright_session, keys):
    helper(shardwright_session, keys[0])
    for _ in range(20):
        shardwright_session.execute(sa.select(Country))
        shardwright_session.rollback()

@pytest.mark.not_on_shard("s1", "s2")
def test_reads_there(shardwright_session, keys):
    helper(shardwright_session, keys[1])

@pytest.mark.not_on_shard("s2")
def test_flushes_there(shardwright_session, keys):
    shardwright_session.add(User(id=keys[1], name="x"))
    shardwright_session.commit()  # flushes

@pytest.mark.not_on_shard("s2")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_in_a_thread(shardwright_cluster, keys):
    import threading
    def work():
        with shardwright_cluster.sessionmaker()(key=keys[1]) as session:
            session.execute(sa.text("SELECT 1"))  # thread
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

@pytest.mark.no_scatter
def test_in_a_task(shardwright_async_sessions):
    import asyncio
    async def page(session):
        return (await session.execute(sa.select(User))).all()  # task
    async def main():
        async with shardwright_async_sessions() as session:
            await page(session)
    asyncio.run(main())

def test_is_recorded(shardwright_session, keys):
    for _ in range(3):
        helper(shardwright_session, keys[0])
    shardwright_session.execute(sa.select(User))  # everywhere
    with pytest.raises(Exception):
        shardwright_session.execute(sa.delete(User))  # refused
    shardwright_session.add(User(name="secret"))
    with pytest.raises(Exception):
        shardwright_session.flush()  # flush
"""


def test_clean_clusters_marks_and_records(run: Run, pytester: pytest.Pytester, server: Endpoint) -> None:
    result = run(EVERYTHING, "--shardwright-record=found.jsonl")
    result.assert_outcomes(passed=6, failed=7)
    out = result.stdout.str()

    def made_at(comment: str) -> str:
        lines = (HEAD + EVERYTHING).strip().splitlines()
        return f"test_app.py:{next(at for at, line in enumerate(lines, 1) if line.endswith(f'# {comment}'))} in "

    scatters = "it scatters to shards s1, s2: nothing ties users.id to a value, and the test is marked that it may not"
    assert scatters in out
    assert "statement: SELECT users.id, users.name FROM users\n" in out
    assert "it touches shard s2, and the test is marked that it may not" in out
    for comment in ("scatters", "swallows", "helper", "flushes", "thread", "task"):
        assert f"made at:   {made_at(comment)}" in out, comment
    assert databases(server) == []

    text = (pytester.path / "found.jsonl").read_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in lines if line["test"] == "test_app.py::test_is_recorded"]
    assert [(line["where"], line["count"], line["at"]) for line in lines] == [
        ("one", 3, f"{made_at('helper')}helper"),
        ("everywhere", 1, f"{made_at('everywhere')}test_is_recorded"),
        ("refused", 1, f"{made_at('refused')}test_is_recorded"),
        ("refused", 1, f"{made_at('flush')}test_is_recorded"),
    ]
    assert lines[0]["statement"].startswith("SELECT users.id, users.name FROM users WHERE users.id = %(")
    assert [line["refusal"]["kind"] for line in lines[2:]] == ["no-shard-key"] * 2


@pytest.mark.slow
def test_shards_by_mark_moved_ranges_and_forgotten_sessions(run: Run, server: Endpoint) -> None:
    run(
        """
@pytest.mark.shardwright(shards=3)
def test_of_three(shardwright_cluster, shardwright_databases):
    assert shardwright_cluster.map.shards() == ("s1", "s2", "s3")
    assert len({shardwright_databases.key_on(f"s{n}") for n in (1, 2, 3)}) == 3
    assert shardwright_databases.key_on("s2", 1) > shardwright_databases.key_on("s2")

def test_ranges_that_moved_cost_a_new_cluster(shardwright_databases):
    import psycopg
    from shardwright.catalog import maps
    with psycopg.connect(shardwright_databases.catalog) as catalog:
        catalog.execute("UPDATE shardwright.ranges SET shard = 's2'")
        maps.write_version(catalog, "test")
    assert shardwright_databases.clean() is False

def test_behind_that(shardwright_cluster):
    assert shardwright_cluster.map.shards() == ("s1", "s2")

forgotten = []

def test_that_leaves_a_session_open(shardwright_cluster, shardwright_databases):
    session = shardwright_cluster.sessionmaker()(key=shardwright_databases.key_on("s1"))
    session.execute(sa.text("LOCK TABLE users"))
    session.execute(sa.text("SELECT 'forgotten'"))
    forgotten.append(session)

def test_that_is_told_of_it(request):
    with pytest.raises(Exception, match="pid .* .shardwright tests, idle in transaction.*forgotten"):
        request.getfixturevalue("shardwright_cluster")
    forgotten[0].close()
"""
    ).assert_outcomes(passed=5)
    assert databases(server) == []


@pytest.mark.slow
def test_it_starts_a_server_of_its_own_and_each_worker_does(pytester: pytest.Pytester, postgres: Any) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(models=MODELS)
    pytester.makepyfile(
        test_app=HEAD
        + """
@pytest.mark.parametrize("n", range(4))
def test_anything(n, shardwright_session):
    assert shardwright_session.scalar(sa.select(sa.func.count()).select_from(User)) == 0
    shardwright_session.execute(sa.insert(User).values(id=n + 1, name="x"))
    shardwright_session.commit()
"""
    )
    options = (f"--shardwright-pg-bin={postgres.bin_dir}", "-n2", "--shardwright-record=found.jsonl")
    pytester.runpytest_subprocess(*options, timeout=200).assert_outcomes(passed=4)
    lines = [json.loads(line) for line in (pytester.path / "found.jsonl").read_text().splitlines()]
    assert sum(line["count"] for line in lines if line["where"] == "everywhere") == 4


def test_nothing_is_imported_until_it_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import sys

def test_nothing():
    assert "shardwright.testing.plugin" in sys.modules
    assert not {"sqlalchemy", "psycopg"} & set(sys.modules)
"""
    )
    pytester.runpytest_subprocess(timeout=60).assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("--markers", timeout=60)
    result.stdout.fnmatch_lines(["@pytest.mark.no_scatter: *"])


def databases(server: Endpoint) -> list[Any]:
    return server.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%' ORDER BY 1")
