"""Clients of the table of flights, in processes of their own, which record what they did and saw.

A process is ``python -m shardwright.demo.partitions.traffic SPEC.json ROLE NUMBER``. It says ``ready`` on stdout, works
until its stdin is closed, writes its record, and leaves. Roles:

==========  ========================================================================================================
writer      pinned sessions that insert, update and delete rows of their own planes, in every month; how many rows there
            are, and what is checked in altogether, is the same after each transaction; the odd ones at READ COMMITTED,
            the even ones at REPEATABLE READ
reader      counts and sums the whole table over all shards, again and again
bystander   reads one row on one server, without the library; PostgreSQL tells it how long it waited for a lock
lockwatch   looks who holds a lock that stops writers or readers of the table or of a partition, on every server
==========  ========================================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shardwright import errors
from shardwright.demo.partitions import clients

#: Seconds that a process may take to begin, and to leave.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Spec:
    """What the processes are to do.

    Attributes:
        catalog: its DSN.
        shards: the servers' DSNs by name; the lock watch looks at all of them.
        directory: where the records go.
        planes: each writer's own; it alone writes them.
        looked_at: (shard, tail number, id) of rows that bystanders read and nobody writes.
        rate: transactions a second that each writer tries to reach.
        seed: of the writers' choices.
    """

    catalog: str
    shards: dict[str, str]
    directory: str
    planes: list[list[str]]
    looked_at: list[tuple[str, str, int]]
    rate: float = 20.0
    seed: int = 1

    @property
    def processes(self) -> list[tuple[str, int]]:
        """Roles and numbers, numbered from 1."""
        writers = [("writer", number) for number in range(1, len(self.planes) + 1)]
        bystanders = [("bystander", number) for number in range(1, len(self.looked_at) + 1)]
        return [*writers, ("reader", 1), *bystanders, ("lockwatch", 1)]


@dataclass
class Records:
    """What the processes wrote down. Moments are of the machine's monotonic clock, in seconds."""

    #: Of the writers: acknowledged transactions (moment, milliseconds); what failed (moment, words), the reader's too.
    writes: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    #: The rows of writers' planes as they must be: [tail number, id at first, id now, time_hour, checked in].
    rows: list[tuple[str, int, int, str, int]] = field(default_factory=list)
    #: Of the reader: (moment, milliseconds, rows, miles, checked in).
    snapshots: list[tuple[float, float, int, int, int]] = field(default_factory=list)
    #: Of the bystanders: reads (moment, milliseconds), the long ones alone; waits for a lock (moment, milliseconds).
    reads: list[tuple[float, float]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    #: Of the lock watch: locks (moment, milliseconds, who).
    locks: list[tuple[float, float, str]] = field(default_factory=list)


class Traffic:
    """The processes, seen from the one that starts them."""

    def __init__(self, spec: Spec) -> None:
        """Name them; nothing runs yet."""
        self._spec = spec
        self._directory = Path(spec.directory)
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Start all processes, and wait until each works.

        Raises:
            InvariantFailed: one of them ended instead.
        """
        path = self._directory / "traffic.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(dataclasses.asdict(self._spec)))
        for role, number in self._spec.processes:
            with (self._directory / f"{role}-{number}.log").open("wb") as log:
                self._processes[f"{role}-{number}"] = subprocess.Popen(
                    [sys.executable, "-m", "shardwright.demo.partitions.traffic", str(path), role, str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours; they end when we close their stdin
                )
        for name, process in self._processes.items():
            assert process.stdout is not None
            watchdog = threading.Timer(_PATIENCE_S, process.kill)
            watchdog.start()
            try:
                if process.stdout.readline() != "ready\n":
                    process.wait()
                    self._fail(name)
            finally:
                watchdog.cancel()

    def check_alive(self) -> None:
        """See that every process still works.

        Raises:
            InvariantFailed: one has ended.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._fail(name)

    def _fail(self, name: str) -> None:
        said = (self._directory / f"{name}.log").read_text(errors="replace").strip().splitlines()
        raise errors.InvariantFailed(f"{name} ended: {said[-1] if said else 'without a word'}")

    def stop(self) -> Records:
        """Let every process end what it is doing and leave.

        Returns:
            What they recorded.

        Raises:
            InvariantFailed: one failed, or did not leave in time.
        """
        for process in self._processes.values():
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        deadline = time.monotonic() + _PATIENCE_S
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise errors.InvariantFailed(f"{name} did not end within {_PATIENCE_S:.0f} s") from None
            if process.returncode != 0:
                self._fail(name)
        names = list(self._processes)
        self.kill()
        return _read(self._directory, names)

    def kill(self) -> None:
        """End all processes at once. Nothing is raised."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._processes = {}


def _read(directory: Path, names: Iterable[str]) -> Records:
    found = Records()
    for name in names:
        for what, values in json.loads((directory / f"{name}.json").read_text()).items():
            getattr(found, what).extend(tuple(value) for value in values)
    return found


def _main(path: Path, role: str, number: int) -> None:
    spec = Spec(**json.loads(path.read_text()))
    told = clients.work(spec, role, number)
    (Path(spec.directory) / f"{role}-{number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
