"""`shardwright dev`: a local cluster comes up ready, goes down, and leaves nothing when it fails or is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from fix_cli import Ran
from fix_servers import Postgres
from shardwright.servers import LocalCluster

Cli = Callable[..., Ran]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def place(workdir: Path) -> Iterator[Path]:
    """A directory for a cluster, which is stopped after the test."""
    directory = workdir / "cluster"
    yield directory
    if (directory / "cluster.json").exists():
        LocalCluster.open(directory).purge()


@pytest.fixture
def pg_bin(postgres: Postgres) -> list[str]:
    if postgres.bin_dir is None:
        pytest.skip("needs programs on this machine")
    return ["--pg-bin", str(postgres.bin_dir)]


def servers_of(directory: Path) -> list[str]:
    """Command lines of the processes that work in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(directory)) for word in words) and b"shardwright" not in words:
            found.append(b" ".join(words).decode())
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


def test_up_status_down(cli: Cli, place: Path, pg_bin: list[str], postgres: Postgres) -> None:
    up = cli("dev", "up", "--shards", 2, "--dir", place, *pg_bin, "--json").ok().json
    assert list(up) == ["catalog", "shards"]
    assert list(up["shards"]) == ["s1", "s2"]
    with psycopg.connect(up["catalog"]) as catalog:
        assert catalog.info.server_version // 10000 == postgres.version
        ranges = "SELECT k.name, k.strategy, k.key_type, k.buckets, r.shard, r.points::text FROM shardwright.ranges r"
        ranges += " JOIN shardwright.keyspaces k ON k.id = r.keyspace ORDER BY r.shard"
        assert catalog.execute(ranges).fetchall() == [
            ("users", "hash", "int8", 4096, "s1", "[0,2048)"),
            ("users", "hash", "int8", 4096, "s2", "[2048,4096)"),
        ]
    with psycopg.connect(up["shards"]["s2"], autocommit=True) as shard:
        shard.execute("CREATE TABLE kept AS SELECT 1 AS one")

    again = cli("dev", "up", "--dir", place, "--json").ok().json
    assert again == up
    status = cli("dev", "status", "--dir", place, "--json").ok().json
    assert {name: server["running"] for name, server in status["servers"].items()} == {
        "catalog": True,
        "s1": True,
        "s2": True,
    }
    assert cli("dev", "up", "--shards", 3, "--dir", place).code == 2

    assert cli("dev", "down", "--dir", place, "--json").ok().json["stopped"] == ["catalog", "s1", "s2"]
    assert servers_of(place) == []
    assert "stopped" in cli("dev", "status", "--dir", place).ok().out
    assert cli("dev", "down", "--dir", place, "--json").ok().json["stopped"] == []

    assert cli("dev", "up", "--dir", place, "--json").ok().json == up
    with psycopg.connect(up["shards"]["s2"]) as shard:
        assert shard.execute("SELECT one FROM kept").fetchone() == (1,)

    more = cli("dev", "add-shard", "--dir", place, "--json").ok().json
    assert (more["server"], more["catalog"]) == ("s3", up["catalog"])
    assert more["next_steps"][0] == f"shardwright shard add s3 {more['dsn']}"
    cli("shard", "add", "s3", more["dsn"], "--catalog", up["catalog"]).ok()
    assert list(cli("dev", "up", "--dir", place, "--json").ok().json["shards"]) == ["s1", "s2", "s3"]

    cli("dev", "down", "--dir", place, "--purge").ok()
    assert not place.exists()
    assert servers_of(place) == []
    assert cli("dev", "status", "--dir", place).code == 2


def test_two_clusters_side_by_side(cli_start: Start, workdir: Path) -> None:
    places = [workdir / "one", workdir / "two"]
    runs = [cli_start("dev", "up", "--shards", 1, "--dir", place, "--no-fsync", "--json") for place in places]
    try:
        said = [run.communicate(timeout=120)[0] for run in runs]
        assert [run.returncode for run in runs] == [0, 0]
        assert said[0] != said[1]
    finally:
        for place in places:
            LocalCluster.open(place).purge()


def test_a_directory_with_something_else_is_left_alone(cli: Cli, workdir: Path) -> None:
    (workdir / "precious").write_text("mine")
    ran = cli("dev", "up", "--dir", workdir)
    assert ran.code == 2
    assert "not empty" in ran.err
    assert [path.name for path in workdir.iterdir()] == ["precious"]
    assert cli("dev", "down", "--purge", "--dir", workdir).code == 2
    assert (workdir / "precious").read_text() == "mine"


def test_a_directory_without_postgresql(cli: Cli, workdir: Path) -> None:
    ran = cli("dev", "up", "--dir", workdir / "c", "--pg-bin", workdir)
    assert ran.code == 2
    assert "initdb" in ran.err
    assert not (workdir / "c").exists()


def _moments(place: Path) -> dict[str, Callable[[], object]]:
    return {
        "claimed": lambda: (place / ".shardwright-local").exists(),
        "initdb": lambda: (place / "s2" / "data" / "PG_VERSION").exists(),
        "starting": lambda: list(place.glob("*/data/postmaster.pid")),
        "started": lambda: len(list(place.glob("*/data/postmaster.pid"))) == 3,
    }


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="SIGINT"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("moment", ["claimed", "initdb", "starting", "started"])
def test_an_interrupted_start_leaves_nothing(
    cli_start: Start, place: Path, moment: str, number: signal.Signals
) -> None:
    run = cli_start("dev", "up", "--shards", 2, "--dir", place, "--no-fsync", "--json")
    wait_until(_moments(place)[moment], moment)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    if run.returncode == 0:  # it was through already
        assert moment == "started"
        return
    assert run.returncode == 4, err
    assert err.startswith("error[SW306] interrupted")
    assert "Traceback" not in err
    assert '"SW306"' in out
    assert not place.exists()
    assert servers_of(place) == []


def test_a_directory_that_was_there_is_there_after_an_interrupted_start(cli_start: Start, place: Path) -> None:
    place.mkdir()
    run = cli_start("dev", "up", "--shards", 2, "--dir", place, "--no-fsync")
    wait_until(_moments(place)["initdb"], "initdb")
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 4
    assert list(place.iterdir()) == []


def test_a_killed_start_leaves_no_process_and_can_be_repeated(cli: Cli, cli_start: Start, place: Path) -> None:
    run = cli_start("dev", "up", "--shards", 1, "--dir", place, "--no-fsync")
    wait_until(_moments(place)["starting"], "starting")
    run.kill()
    run.wait()
    wait_until(lambda: not servers_of(place), "the servers end with their owner")
    if not (place / "cluster.json").exists():
        cli("dev", "up", "--shards", 1, "--dir", place, "--no-fsync").ok()


def test_one_at_a_time_in_a_directory(cli: Cli, cli_start: Start, place: Path) -> None:
    run = cli_start("dev", "up", "--shards", 2, "--dir", place, "--no-fsync")
    wait_until(_moments(place)["initdb"], "initdb")
    run.send_signal(signal.SIGSTOP)
    try:
        ran = cli("dev", "up", "--dir", place, "--json")
        assert ran.code == 4
        assert ran.json["error"]["code"] == "SW308"
    finally:
        run.send_signal(signal.SIGCONT)
    assert run.wait(60) == 0
