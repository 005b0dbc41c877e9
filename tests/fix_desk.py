"""An operator at the command line of a small cluster.

Fixtures:
    desk (function)       Desk: runs commands, and lets no secret and no traceback pass
    started (function)    int, an operation that is recorded and that nobody works on
    verified (function)   int, an operation that is ready to switch
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from fix_chaos import is_stopped
from fix_cli import Ran
from fix_resharding import Small
from shardwright.catalog import operations

SECRET = "tops3cret"
#: An operation with one move has all its slots before it fences: another one would wait for the tests' blockers.
ONE_MOVE = ("--move", "users:[0,64)", "--to", "s3")
#: A statement that makes its transaction one that writes.
WRITE = "UPDATE orders SET note = note WHERE user_id = (SELECT min(user_id) FROM orders)"


class Desk:
    """An operator's terminal: runs commands on the small cluster, and lets no secret and no traceback pass."""

    def __init__(self, small: Small, run: Callable[..., Ran], start: Callable[..., subprocess.Popen[str]]) -> None:
        self.small = small
        self._run, self._start = run, start
        # the servers trust everybody, so a password is taken and not looked at
        self.catalog = make_conninfo(small.catalog_dsn, password=SECRET)

    def ask(self, *words: object, failpoint: str = "", timeout: float = 120) -> Ran:
        return self._checked(self._run(*words, env=self._env(failpoint), timeout=timeout))

    def reshard(self, *words: object, code: int = 0, **options: Any) -> Any:
        """Run a verb with --json; its one JSON value."""
        ran = self.ask("reshard", *words, "--json", **options)
        assert ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
        found = json.loads(ran.out)
        for step in found["next_steps"]:
            assert step.startswith("shardwright "), step
        return found

    def refused(self, *words: object, code: int, error: str, said: str = "", **options: Any) -> dict[str, Any]:
        """Run a verb that must fail, both ways; the error."""
        found = self.reshard(*words, code=code, **options)["error"]
        assert found["code"] == error, found
        assert said in found["message"], found
        return dict(found)

    def begin(self, *words: object, failpoint: str = "") -> subprocess.Popen[str]:
        return self._start(*words, env=self._env(failpoint))

    def pause(self, *words: object, failpoint: str) -> subprocess.Popen[str]:
        """Begin a command and wait until it stops itself at a failpoint."""
        process = self.begin(*words, failpoint=f"{failpoint}:pause")
        self.until(lambda: is_stopped(process.pid) or process.poll() is not None, f"{failpoint} is reached")
        assert process.poll() is None, f"{failpoint} was not reached: {process.communicate()}"
        return process

    def end(self, process: subprocess.Popen[str], *signals: signal.Signals, timeout: float = 60) -> Ran:
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=timeout)
        return self._checked(Ran(process.returncode, out, err))

    def operation(self, number: int) -> operations.Operation:
        with self.small.catalog() as catalog:
            return operations.get(catalog, number)

    def phase(self, number: int) -> str:
        return self.operation(number).phase

    @staticmethod
    def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
            time.sleep(0.01)

    def _env(self, failpoint: str) -> dict[str, str]:
        return {"SHARDWRIGHT_CATALOG": self.catalog, **({"SHARDWRIGHT_FAILPOINT": failpoint} if failpoint else {})}

    @staticmethod
    def _checked(ran: Ran) -> Ran:
        assert SECRET not in ran.out + ran.err
        assert "Traceback" not in ran.out + ran.err
        return ran


@pytest.fixture
def desk(small: Small, cli: Callable[..., Ran], cli_start: Callable[..., subprocess.Popen[str]]) -> Desk:
    return Desk(small, cli, cli_start)


@pytest.fixture
def started(desk: Desk) -> int:
    """An operation that is recorded, and that nobody works on."""
    return int(desk.reshard("start", "--add", "s3", "--batches", "0.5,1", "--detach")["operation"])


@pytest.fixture
def verified(desk: Desk) -> int:
    """An operation that is ready to switch."""
    return int(desk.reshard("start", "--add", "s3", "--batches", "0.5,1")["operation"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The command line is tried on one version in `make test`, but for its main road; on all in `make test-all`."""
    for item in items:
        if "desk" in getattr(item, "fixturenames", ()) and "pg18" not in item.name and "whole_life" not in item.name:
            item.add_marker(pytest.mark.slow)
