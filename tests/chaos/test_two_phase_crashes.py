"""kill -9 at every step of a commit on two shards, and of its recovery: all or nothing, and nothing is left prepared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fix_chaos import is_stopped
from fix_sessions import Shop, until
from shardwright.catalog import recovery
from shardwright.failpoints import FAILPOINTS

HERE = Path(__file__).parent
SECONDS = 60.0

#: Where a session may die, and how much it has moved then.
OF_SESSIONS = {
    "tx.registered": 0,
    "tx.half_prepared": 0,
    "tx.prepared": 0,
    "tx.decided": 10,
    "tx.half_ended": 10,
    "tx.rolled_back": 0,
}
OF_RECOVERY = ["tx.recovering", "tx.half_recovered"]


class Processes:
    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.running: list[subprocess.Popen[str]] = []

    def start(self, failpoint: str, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**os.environ, "SHARDWRIGHT_FAILPOINT": failpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def transfer(self, failpoint: str, one: int, other: int) -> subprocess.Popen[str]:
        return self.start(failpoint, HERE / "drive_transfer.py", self.shop.dsns.catalog, one, other)

    def recover(self, failpoint: str = "") -> subprocess.Popen[str]:
        words = ("tx", "recover", "--older-than", "0s", "--catalog", self.shop.dsns.catalog)
        return self.start(failpoint, "-m", "shardwright", *words)


def end_of(process: subprocess.Popen[str]) -> int:
    out, said = process.communicate(timeout=SECONDS)
    print(out, said)
    return process.returncode


@pytest.fixture
def processes(shop: Shop) -> Iterator[Processes]:
    made = Processes(shop)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def pairs(shop: Shop, count: int) -> list[tuple[int, int]]:
    """Users on both shards, two for each transfer, with 100 points each."""
    found = []
    for nth in range(count):
        keys = shop.key_on("s1", nth), shop.key_on("s2", nth)
        for key, shard in zip(keys, ("s1", "s2"), strict=True):
            shop.shard(shard).execute("INSERT INTO users (id, name, score) VALUES (%s, 'x', 100)", (key,))
        found.append(keys)
    return found


def score(shop: Shop, key: int) -> int:
    found = shop.ask(shop.map.route("users", key).shard, "SELECT score FROM users WHERE id = %s", key)
    assert isinstance(found, int)
    return found


def prepared(shop: Shop) -> int:
    return int(shop.ask("s1", "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'shardwright:%%'"))


def test_every_failpoint_is_tried() -> None:
    assert {*OF_SESSIONS, *OF_RECOVERY} == {name for name in FAILPOINTS if name.startswith("tx.")}


def test_a_session_that_is_killed_leaves_all_or_nothing(shop: Shop, processes: Processes) -> None:
    users = dict(zip(OF_SESSIONS, pairs(shop, len(OF_SESSIONS)), strict=True))
    refused = users["tx.rolled_back"][1]
    shop.shard("s2").execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'not now'; END$$"
    )
    shop.shard("s2").execute(
        f"CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON users DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW WHEN (NEW.id = {refused}) EXECUTE FUNCTION refuse()".encode()
    )
    started = {name: processes.transfer(f"{name}:crash", *keys) for name, keys in users.items()}
    for name, process in started.items():
        assert end_of(process) == -signal.SIGKILL, f"{name} was not reached"
    assert prepared(shop) > 0
    # The locks of what is in doubt are held; whatever is recovered is recovered by anybody, at the same time.
    both = [processes.recover(), processes.recover()]
    assert {end_of(process) for process in both} <= {0, 4}
    assert end_of(processes.recover()) == 0
    assert prepared(shop) == 0
    for name, (one, other) in users.items():
        assert (score(shop, one), score(shop, other)) == (100 - OF_SESSIONS[name], 100 + OF_SESSIONS[name]), name
    assert shop.catalog.execute("SELECT count(*) FROM shardwright.decisions WHERE settled_at IS NULL").fetchone() == (
        0,
    )
    assert recovery.recover(shop.catalog, older_than=0) == ([], {})
    assert end_of(processes.transfer("", *users["tx.prepared"])) == 0
    assert score(shop, users["tx.prepared"][1]) == 110


@pytest.mark.parametrize("failpoint", OF_RECOVERY)
@pytest.mark.parametrize(("died_at", "moved"), [("tx.prepared", 0), ("tx.decided", 10)])
@pytest.mark.slow
def test_a_recovery_that_is_killed_is_recovered(
    shop: Shop, processes: Processes, failpoint: str, died_at: str, moved: int
) -> None:
    ((one, other),) = pairs(shop, 1)
    assert end_of(processes.transfer(f"{died_at}:crash", one, other)) == -signal.SIGKILL
    assert end_of(processes.recover(f"{failpoint}:crash")) == -signal.SIGKILL
    assert end_of(processes.recover()) == 0
    assert prepared(shop) == 0
    assert (score(shop, one), score(shop, other)) == (100 - moved, 100 + moved)


def test_a_session_that_wakes_too_late_changes_nothing(shop: Shop, processes: Processes) -> None:
    """It is stopped before it decides, given up, and woken."""
    ((one, other),) = pairs(shop, 1)
    paused = processes.transfer("tx.prepared:pause", one, other)
    # It is stopped once both shards have prepared it.
    until(lambda: prepared(shop) == 2 and is_stopped(paused.pid), "it does not get there")
    assert end_of(processes.recover()) == 0
    paused.send_signal(signal.SIGCONT)
    assert end_of(paused) == 1
    assert prepared(shop) == 0
    assert (score(shop, one), score(shop, other)) == (100, 100)
