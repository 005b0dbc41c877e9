"""kill -9 at every failpoint of detach, archive, drop and restore: run again, it converges, and no row is lost."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fix_partitions import Timed, by_month
from fix_retention import fine, rows_of
from shardwright.catalog import archives, windows
from shardwright.partition.restore import restore

DETACH = ("detached", "detach_marked")
ARCHIVE = (
    "archive_half_written",
    "archive_written",
    "archive_verified",
    "archive_manifest_written",
    "archive_recorded",
)
DROP = ("drop_prepared", "dropped")
RESTORE = ("restore_made", "restore_half_loaded", "restore_loaded", "restore_declared", "restore_attached")

#: Those that `make test` tries.
QUICK = (
    "detached",
    "archive_half_written",
    "archive_manifest_written",
    "dropped",
    "restore_half_loaded",
    "restore_declared",
)


def some(*names: str) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def crash(start: Callable[..., subprocess.Popen[str]], cluster: Timed, failpoint: str, *words: str) -> None:
    process = start(
        "partition", *words,
        env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog, "SHARDWRIGHT_FAILPOINT": f"partition.{failpoint}:crash"},
    )  # fmt: skip
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached: {said}"


def aged(timed: Callable[..., Timed], place: Path) -> tuple[Timed, str, dict[str, list[str]]]:
    """Two shards on which one window with rows is over by their own clocks; its name, and its rows by shard."""
    cluster = timed(2, by_month(every="1 week", keep="1 week", ahead=3, grace=None, archive=str(place)))
    now = datetime.now(UTC)
    fine(cluster.tick(now - timedelta(days=14)))
    names = [
        one.name for one in windows.list_windows(cluster.catalog) if one.role == "window" and one.lower is not None
    ]
    oldest = names[0]
    for shard in ("s1", "s2"):
        cluster.shard(shard).execute(
            "INSERT INTO events (at, note) SELECT %s::timestamptz + n * interval '1 minute', n::text "
            "FROM generate_series(0, 999) n",
            (now - timedelta(days=14),),
        )
    rows = {shard: rows_of(cluster.shard(shard), "events") for shard in ("s1", "s2")}
    return cluster, oldest, rows


def converge(cluster: Timed) -> None:
    now = datetime.now(UTC)
    for _ in range(4):
        fine(cluster.tick(now))
    assert cluster.plan(now).is_empty


@pytest.mark.parametrize("failpoint", some(*DETACH, *ARCHIVE, *DROP))
def test_a_window_goes_in_spite_of_a_crash(
    timed: Callable[..., Timed], cli_start: Callable[..., subprocess.Popen[str]], workdir: Path, failpoint: str
) -> None:
    place = workdir / "archives"
    place.mkdir()
    cluster, oldest, rows = aged(timed, place)
    if failpoint not in DETACH:
        fine(cluster.tick(datetime.now(UTC)))
    crash(cli_start, cluster, failpoint, "tick")
    converge(cluster)
    for shard in ("s1", "s2"):
        assert cluster.ask(shard, "SELECT to_regclass(%s) IS NULL", f"public.{oldest}")
        assert cluster.ask(shard, "SELECT count(*) FROM shardwright.partitions WHERE state <> 'attached'") == 0
    assert [path.name for path in place.rglob("*.part")] == []
    table_id = windows.list_windows(cluster.catalog)[0].table_id
    assert [one.shard for one in archives.list_archives(cluster.catalog, table_id) if one.name == oldest] == [
        "s1",
        "s2",
    ]
    restore(cluster.dsns.catalog, "public", "events")
    assert {shard: rows_of(cluster.shard(shard), "events") for shard in ("s1", "s2")} == rows


@pytest.mark.parametrize("failpoint", some(*RESTORE))
def test_a_window_comes_back_in_spite_of_a_crash(
    timed: Callable[..., Timed], cli_start: Callable[..., subprocess.Popen[str]], workdir: Path, failpoint: str
) -> None:
    place = workdir / "archives"
    place.mkdir()
    cluster, oldest, rows = aged(timed, place)
    converge(cluster)
    assert rows_of(cluster.shard("s1"), "events") != rows["s1"]
    crash(cli_start, cluster, failpoint, "restore", "events", "--all")
    fine(cluster.tick(datetime.now(UTC)))  # a tick in between neither loses nor doubles anything
    restore(cluster.dsns.catalog, "public", "events", [oldest])
    restore(cluster.dsns.catalog, "public", "events")
    assert {shard: rows_of(cluster.shard(shard), "events") for shard in ("s1", "s2")} == rows
    assert cluster.plan(datetime.now(UTC)).is_empty
    assert cluster.ask("s1", "SELECT count(*) FROM shardwright.partitions WHERE state <> 'attached'") == 0
