"""A workload in processes of its own, which record what they did: applications, and a client that knows no library.

Run by `Workload`; a process is ``python -m shardwright.testing.workload SPEC.json ROLE NUMBER``. It says ``ready`` on
stdout, works until its stdin is closed (by `Workload.stop`, or by the death of the process that started it), ends the
transaction it is in, and leaves. Roles:

==========  ========================================================================================================
pinned      sessions bound to a key; the map is refreshed as usual
run         ``cluster.run``; a map that is never refreshed, except when a shard says that a range has moved
routed      sessions that find the shard of each statement; counts over all shards
reader      only reads, with a map that is never refreshed: the client that would see stale rows first
direct      psycopg without the library, connected to one server for good
idle        on command: transactions that stay open between two statements or before COMMIT, with and without the library,
            at both isolation levels
==========  ========================================================================================================
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shardwright import errors
from shardwright.testing import roles
from shardwright.testing.spec import Spec

ROLES = ("pinned", "run", "routed", "reader", "direct", "idle")


class Workload:
    """The processes of one workload, seen from the process that starts them."""

    def __init__(self, spec: Spec, of: Sequence[str] = ROLES) -> None:
        """Name them; nothing runs yet."""
        self._spec = spec
        self._roles = of
        self._directory = Path(spec.directory)
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, timeout: float = 60.0) -> None:
        """Start all processes, and wait until each is connected and works.

        Raises:
            InvariantFailed: one of them ended instead; the message holds its last words.
        """
        path = self._directory / "workload.json"
        self._spec.save(path)
        for number, role in enumerate(self._roles, start=1):
            with (self._directory / f"{role}-{number}.log").open("wb") as log:
                self._processes[f"{role}-{number}"] = subprocess.Popen(
                    [sys.executable, "-m", "shardwright.testing.workload", str(path), role, str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours; they end when we close their stdin
                )
        deadline = time.monotonic() + timeout
        for name, process in self._processes.items():
            self._wait_for_ready(name, process, deadline)

    def _wait_for_ready(self, name: str, process: subprocess.Popen[str], deadline: float) -> None:
        assert process.stdout is not None
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        watchdog.start()
        try:
            if process.stdout.readline() != "ready\n":
                process.wait()
                self._fail(name)
        finally:
            watchdog.cancel()

    def _fail(self, name: str) -> None:
        said = (self._directory / f"{name}.log").read_text(errors="replace").strip().splitlines()
        raise errors.InvariantFailed(f"workload process {name} ended: {said[-1] if said else 'without a word'}")

    def check_alive(self) -> None:
        """See that every process still works.

        Raises:
            InvariantFailed: one has ended.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._fail(name)

    def idle_round(self, shard: str, keys: Sequence[Any], on_open: Callable[[], None] = lambda: None) -> None:
        """One round of idle transactions: opened all at once, left alone between two statements, and ended.

        Args:
            shard: where the clients without the library open theirs.
            keys: keys that live there now; twelve are taken.
            on_open: called when all are open (or were refused). The call returns when all have ended.
        """
        for name, process in self._processes.items():
            if name.startswith("idle-"):
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps({"shard": shard, "keys": list(keys)}) + "\n")
                process.stdin.flush()
                for expected, then in (("open\n", on_open), ("closed\n", None)):
                    if process.stdout.readline() != expected:
                        process.wait()
                        self._fail(name)
                    if then is not None:
                        then()

    def stop(self, timeout: float = 60.0) -> list[Path]:
        """Let every process end its transaction and leave.

        Returns:
            The history files.

        Raises:
            InvariantFailed: one did not leave in time (it was killed), or failed.
        """
        late = []
        for process in self._processes.values():
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        deadline = time.monotonic() + timeout
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late.append(name)
        processes, self._processes = self._processes, {}
        for name, process in processes.items():
            if process.stdout is not None:
                process.stdout.close()
            if process.returncode != 0 and name not in late:
                self._fail(name)
        if late:
            raise errors.InvariantFailed(f"workload process {', '.join(late)} did not end within {timeout:.0f} s")
        return self.histories()

    def histories(self) -> list[Path]:
        """The history files that there are now."""
        return sorted(self._directory.glob("*.history"))

    def kill(self) -> None:
        """End all processes at once, after a failure. Nothing is raised."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._processes = {}


if __name__ == "__main__":
    roles.work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
