"""The main job as people run it: the command, its JSON, its exit code, and nothing left on the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KEYS = {
    "ok": bool,
    "postgres": str,
    "acknowledged_writes": int,
    "acknowledged_reads": int,
    "lost": int,
    "duplicated": int,
    "misrouted": int,
    "stale_reads": int,
    "failed_transactions": int,
    "direct_writes_refused": int,
    "rows_moved": int,
    "copy_rows_per_s": int,
    "write_pause_ms": dict,
    "verified": bool,
    "rolled_back": bool,
    "leftovers": int,
    "seconds": float,
}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, started, with a temporary directory of its own."""
    tmp_path.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwright", "demo", "--json"],
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


@pytest.mark.timeout(600)
def test_the_main_job(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    out, told = demo.communicate()
    assert demo.returncode == 0, told + out
    found = json.loads(out)
    assert {name: type(value) for name, value in found.items()} == KEYS
    harm = ("lost", "duplicated", "misrouted", "stale_reads", "failed_transactions", "leftovers")
    assert {name: found[name] for name in harm} == dict.fromkeys(harm, 0)
    assert found["ok"]
    assert found["verified"]
    assert found["rolled_back"]
    # a third of what belongs to planes, and enough to hold the promises against
    assert 90_000 < found["rows_moved"] < 135_000
    assert found["acknowledged_writes"] > 2000
    assert found["acknowledged_reads"] > 1000
    assert found["direct_writes_refused"] > 50
    # four batches of two moves, forward, back and forward again
    assert found["write_pause_ms"]["batches"] == 24
    assert 0 < found["write_pause_ms"]["median"] <= found["write_pause_ms"]["max"]
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "at", ["starts to work", *(pytest.param(name, marks=pytest.mark.slow) for name in ("loading", "copying"))]
)
def test_ctrl_c_leaves_nothing(demo: subprocess.Popen[str], tmp_path: Path, at: str) -> None:
    assert demo.stderr is not None
    said = []
    for line in demo.stderr:
        said.append(line)
        if at in line:
            break
    else:
        pytest.fail("".join(said))
    # to the whole group, as a terminal does
    os.killpg(demo.pid, signal.SIGINT)
    out, _ = demo.communicate(timeout=120)
    assert demo.returncode == 4
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
