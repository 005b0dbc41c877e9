"""The command line as its users run it.

Fixtures:
    cli         (*words, env={}, cwd=None, timeout=120) -> Ran: a finished `shardwright` process
    cli_start   (*words, env={}, cwd=None, stdin=DEVNULL) -> subprocess.Popen of one that is still running; killed after the test
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest


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
def cli(cli_start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Ran]:
    def run(*words: object, timeout: float = 120, **options: Any) -> Ran:
        process = cli_start(*words, **options)
        out, err = process.communicate(timeout=timeout)
        return Ran(process.returncode, out, err)

    return run
