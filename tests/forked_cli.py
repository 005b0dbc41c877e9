"""What a process that was forked for it does to be the command `shardwright`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from shardwright.cli import main

_TESTS = str(Path(__file__).parent)


class Descriptor:
    """A file descriptor that another process gets: there it is a number of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(sent: Any) -> int:
    return int(sent.detach())


def run_forked(words: Sequence[str], env: Mapping[str, str], cwd: str, standard: Sequence[int]) -> None:
    """Run one command line and exit with its code.

    Args:
        words: the arguments.
        env: all of its environment.
        cwd: where it runs.
        standard: its input, output and error.
    """
    for number, given in enumerate(standard):
        os.dup2(given, number)
        os.close(given)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    time.tzset()
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, mode in enumerate(("r", "w", "w"))
    )
    sys.path[:] = [cwd, *(one for one in sys.path if one != _TESTS)]
    sys.argv[:] = ["shardwright", *words]
    sys.exit(main())
