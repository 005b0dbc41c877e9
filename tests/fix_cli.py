"""The command line as its users run it.

Fixtures:
    cli         (*words, env={}, cwd=None, stdin=DEVNULL, timeout=120) -> Ran: a finished `shardwright` process. It is forked
                from one that has imported the command already, since a new interpreter takes half a second of processor
    cli_start   (*words, env={}, cwd=None, stdin=DEVNULL) -> subprocess.Popen of one that is still running; killed after the test
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import pytest

import shardwright.cli
from forked_cli import Descriptor, run_forked

#: What has imported everything that the verbs import when they are called.
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["alembic.command", "sqlalchemy.orm"]
    + [f"shardwright.cli.{one.name}" for one in pkgutil.iter_modules(shardwright.cli.__path__)]
)


@dataclass(frozen=True)
class Ran:
    """What a command line left: its exit code and its words."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> Ran:
        """Fail the test, with all that was said, unless the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # What the developer's shell happens to hold must not decide a test.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDWRIGHT_", "PG"))}
    return {**kept, **more}


@pytest.fixture
def cli_start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(
        *words: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shardwright", *map(str, words)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(env or {}),
            cwd=cwd,
            # A shell that runs us in the background makes its children deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def cli() -> Callable[..., Ran]:
    def run(
        *words: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        timeout: float = 120,
    ) -> Ran:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
            given = nothing if stdin == subprocess.DEVNULL else stdin
            fds = [Descriptor(one if isinstance(one, int) else one.fileno()) for one in (given, out, err)]
            process = _FORKS.Process(
                target=run_forked,
                args=([str(word) for word in words], _environment(env or {}), str(cwd or Path.cwd()), fds),
            )
            process.start()
            process.join(timeout)
            late = process.exitcode is None
            if late:
                process.kill()
                process.join()
            said = []
            for one in (out, err):
                one.seek(0)
                said.append(one.read().decode())
            assert not late, f"it goes on after {timeout:g} s\n{said[0]}\n{said[1]}"
            return Ran(process.exitcode or 0, *said)

    return run
