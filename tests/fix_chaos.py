"""Worker processes that crash, pause or fail at a named point.

Fixtures:
    worker (function)   Worker.start(catalog_dsn, operation, goal, failpoint) -> subprocess; ended with the test
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent / "chaos" / "drive_worker.py"
SECONDS = 60.0


class Workers:
    """Starts worker processes and ends them with the test."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, catalog_dsn: str, operation: int, goal: str, failpoint: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), catalog_dsn, str(operation), goal],
            env={**os.environ, "SHARDWRIGHT_FAILPOINT": failpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def crash_at(self, catalog_dsn: str, operation: int, goal: str, failpoint: str) -> None:
        """Run a worker until it kills itself at the failpoint; fails when it ended otherwise."""
        process = self.start(catalog_dsn, operation, goal, f"{failpoint}:crash")
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL, f"{failpoint} was not reached: exit {process.returncode}\n{said}"

    def pause_at(self, catalog_dsn: str, operation: int, goal: str, failpoint: str) -> subprocess.Popen[str]:
        """Run a worker until it stops itself at the failpoint."""
        process = self.start(catalog_dsn, operation, goal, f"{failpoint}:pause")
        deadline = time.monotonic() + SECONDS
        while not is_stopped(process.pid):
            assert process.poll() is None, f"{failpoint} was not reached: {process.communicate()[1]}"
            assert time.monotonic() < deadline, f"{failpoint} was not reached in {SECONDS} s"
            time.sleep(0.01)
        return process

    @staticmethod
    def wake(process: subprocess.Popen[str]) -> tuple[int, str]:
        """Let a paused worker go on, and wait for its end."""
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=SECONDS)
        return process.returncode, said


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (state T in /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chaos is tried on one version in `make test`, and on all in `make test-all`."""
    for item in items:
        if item.path.parent.name == "chaos" and "[pg18" not in item.name and "-pg18" not in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
            process.send_signal(signal.SIGCONT)
        process.communicate()
