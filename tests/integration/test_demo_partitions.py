"""The demo of time partitions: what it finds when all is well, what when something was broken, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shardwright.demo.partitions.promise import midnight
from shardwright.demo.partitions.run import Demo, Options

pytestmark = pytest.mark.newest_postgres

#: Few flights and few days; weeks come to their end, months do not.
SHORT = Options(flights=20_000, days=2, months=False, settle=0.2)
#: What must not be: all of it counted.
HARM = (
    "windows_wrong",
    "rows_lost",
    "rows_doubled",
    "rows_misplaced",
    "dropped_early",
    "dropped_late",
    "incomplete_snapshots",
    "failed_writes",
    "leftovers",
)
STEP = {
    "seconds": float,
    "writes": int,
    "failed_writes": int,
    "snapshots": int,
    "incomplete_snapshots": int,
    "longest_lock_ms": float,
    "longest_bystander_wait_ms": float,
    "longest_bystander_read_ms": float,
}
KEYS: dict[str, Any] = {
    "ok": bool,
    "postgres": str,
    "shards": int,
    "days_simulated": int,
    "simulated_until": str,
    "rows_arrived": int,
    **dict.fromkeys(HARM, int),
    "archived_windows": int,
    "restored_rows": int,
    "restored_equal": bool,
    "flights": int,
    "convert": STEP,
    "split": {"rows": int, "rows_per_s": int, "copied_per_s": int, **STEP},
    "reshard": {**STEP, "longest_pause_ms": float, "hand_overs": int},
    "moved_partitioned_rows": int,
    "seconds": float,
}


class Listener:
    """Hears how a demo goes, and does something when a stage begins."""

    def __init__(self, at: str = "-", then: Callable[[], None] = lambda: None) -> None:
        self.said: list[str] = []
        self._at, self._then = at, then

    def stage(self, text: str) -> None:
        self.said.append(text)
        if self._at in text:
            self._then()

    def fact(self, text: str) -> None:
        self.said.append(text)

    def status(self, now: object) -> None:
        pass

    def live(self, text: str, done: int = 0, total: int = 0) -> None:
        pass

    def check(self) -> None:
        pass


def shape(value: Any) -> Any:
    return {name: shape(one) for name, one in value.items()} if isinstance(value, dict) else type(value)


def do(dsns: Mapping[str, str], shard: str, *statements: str) -> None:
    with psycopg.connect(dsns[shard], autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.timeout(600)
def test_what_is_well_and_what_was_broken() -> None:
    """The same servers judged twice: as the demo leaves them, and after somebody broke a little of everything."""
    with Demo(SHORT, Listener()) as demo:
        demo.perform()
        well = demo.judge()
        found = well.as_json()
        assert shape(found) == KEYS
        assert {name: found[name] for name in HARM} == dict.fromkeys(HARM, 0), "\n".join(well.evidence)
        assert found["ok"]
        assert found["archived_windows"] == 1
        assert found["restored_equal"]
        assert found["restored_rows"] > 10
        assert found["flights"] == 20_000
        assert found["moved_partitioned_rows"] > 5000
        assert max(found[step]["longest_bystander_wait_ms"] for step in ("convert", "split")) > 0
        assert min(found[step]["longest_lock_ms"] for step in ("convert", "split")) > 0

        dsns = demo.cluster.dsns()
        first = "DELETE FROM {0} WHERE ctid = (SELECT min(ctid) FROM {0})"
        do(dsns, "s1", first.format("flights_p2013_05"))
        do(dsns, "s2", first.format("user_activity_p2019w46"))
        late = "UPDATE {0} SET arr_delay = 10000 WHERE ctid = (SELECT min(ctid) FROM {0})"
        do(dsns, "s2", late.format("flights_p2013_06"))
        do(dsns, "s3", "DROP TABLE analytics_events_p2019_11")
        do(
            dsns,
            "s3",
            "CREATE SCHEMA scratch CREATE TABLE stray (n int)",
            "CREATE TABLE shardwright.touched_1 (n int)",
            "CREATE FUNCTION shardwright.touch_1() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            'CREATE TRIGGER "~shardwright_touch" AFTER INSERT ON flights_p2013_01 FOR EACH ROW '
            "EXECUTE FUNCTION shardwright.touch_1()",
            "CREATE ROLE visitor",
            "CREATE PUBLICATION everything",
            "SELECT pg_create_physical_replication_slot('forgotten')",
        )
        broken = demo.judge()
    found, evidence = broken.as_json(), "\n".join(broken.evidence)
    assert not found["ok"]
    assert not found["restored_equal"]
    assert found["dropped_early"] == 1, evidence
    # a flight that is gone, one that is another now, a row of a week; and what the dropped month had
    assert found["rows_lost"] > 3, evidence
    assert found["rows_doubled"] == 1, evidence  # the one that is another now
    # beside the eight that were made: the mark of the month that was dropped
    assert found["leftovers"] == 9, evidence
    assert {name: found[name] for name in ("windows_wrong", "dropped_late", "incomplete_snapshots")} == {
        "windows_wrong": 0,
        "dropped_late": 0,
        "incomplete_snapshots": 0,
    }, evidence


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_clients_see_is_found_out() -> None:
    """While the table is cut: a row goes that nobody else writes, and with it one that a writer knows."""

    def break_it() -> None:
        dsns = demo.cluster.dsns()
        spec = json.loads((demo.cluster.directory / "records" / "traffic.json").read_text())
        for shard in ("s1", "s2"):
            with psycopg.connect(dsns[shard], autocommit=True) as connection:
                for planes in ([spec["planes"][0][0]], [key for name, key, _ in spec["looked_at"] if name == shard]):
                    connection.execute(
                        "DELETE FROM flights WHERE tailnum = ANY (%s) AND time_hour < '2013-07-01'", (planes,)
                    )

    with Demo(SHORT, Listener("splitting", break_it)) as demo:
        demo.perform()
        made = demo.judge()
    found, evidence = made.as_json(), "\n".join(made.evidence)
    assert not found["ok"]
    assert found["split"]["incomplete_snapshots"] > 0, evidence
    assert found["convert"]["incomplete_snapshots"] == found["convert"]["failed_writes"] == 0, evidence
    assert found["failed_writes"] > 0, evidence
    assert found["rows_lost"] > 1, evidence
    assert found["leftovers"] == 0, evidence


@pytest.fixture
def partitions(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, started, with a temporary directory of its own."""
    tmp_path.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwright", "demo", "partitions", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in words:
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo(partitions: subprocess.Popen[str], tmp_path: Path) -> None:
    out, told = partitions.communicate()
    assert partitions.returncode == 0, told + out
    found = json.loads(out)
    assert shape(found) == KEYS
    assert {name: found[name] for name in HARM} == dict.fromkeys(HARM, 0)
    assert found["ok"]
    assert found["shards"] == 3
    assert found["flights"] == 336_776
    # a third of them
    assert 90_000 < found["moved_partitioned_rows"] < 135_000
    assert found["days_simulated"] > 20
    # weeks come to their end from the fourth month on
    assert found["archived_windows"] > 10
    assert found["simulated_until"] == f"{midnight(2020, 12, 4):%Y-%m-%d}"
    assert found["split"]["writes"] > 50
    assert found["split"]["snapshots"] > 10
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("at", ["converting", "adding shard", "days go by"])
def test_ctrl_c_leaves_nothing(partitions: subprocess.Popen[str], tmp_path: Path, at: str) -> None:
    assert partitions.stderr is not None
    said = []
    for line in partitions.stderr:
        said.append(line)
        if at in line:
            break
    else:
        pytest.fail("".join(said))
    # to the whole group, as a terminal does
    os.killpg(partitions.pid, signal.SIGINT)
    out, _ = partitions.communicate(timeout=120)
    assert partitions.returncode == 4
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
