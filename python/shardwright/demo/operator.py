"""The operator of the demo: sets goals, watches the worker reach them, and leaves transactions open on purpose."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import psycopg

from shardwright import errors
from shardwright.reshard import operate, status
from shardwright.reshard.plan import Plan
from shardwright.reshard.status import Status
from shardwright.servers.watchdog import Watchdog
from shardwright.testing.workload import Workload

#: How long one phase may take before the demo gives up.
PATIENCE_S = 120.0
#: Seconds between the first two rounds of idle transactions, in which a fence may find nobody at work: so short that most
#: batches have to wait for a round. Each further pause is longer by as much, so that a slow machine gets on too.
GAP_S = 0.3


class Audience(Protocol):
    """Whoever is told how the demo goes."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def fact(self, text: str) -> None:
        """Something was found out in this stage."""

    def status(self, now: Status) -> None:
        """How the operation does; often."""

    def live(self, text: str, done: int = 0, total: int = 0) -> None:
        """How far a stage has come, often: so much of so much, where `total` is given."""

    def check(self) -> None:
        """Called often: raises to end the demo. (A KeyboardInterrupt alone may be lost in a finaliser.)"""


class Clients(Protocol):
    """Processes that work on the cluster meanwhile."""

    def check_alive(self) -> None:
        """See that every process still works; raises when one has ended."""


class Operator:
    """One operation, worked on by a worker process. As a context manager it ends the worker."""

    def __init__(
        self,
        catalog: psycopg.Connection[Any],
        catalog_dsn: str,
        plan: Plan,
        clients: Clients,
        audience: Audience,
        directory: Path,
    ) -> None:
        """Start the operation and its worker.

        Args:
            catalog: connection to the catalog.
            catalog_dsn: for the worker.
            plan: what to do.
            clients: they must live meanwhile.
            audience: is told.
            directory: for the worker's words.

        Raises:
            PreflightFailed, OperationConflict: the operation cannot be started.
        """
        self._catalog = catalog
        self._clients = clients
        self._audience = audience
        self._log = directory / "worker.log"
        self.operation = operate.start(catalog, plan)
        # A program of its own, as in production.
        with self._log.open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "shardwright", "worker", "--catalog", catalog_dsn],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # A worker waits for a catalog that has gone: it must not wait for one that was ours when we are killed.
        self._watchdog = Watchdog(self._worker.pid)

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._worker.terminate()
        try:
            self._worker.wait(10)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        finally:
            self._watchdog.release()

    def reach(self, goal: str) -> Status:
        """Set a goal and wait until the worker has brought the operation there.

        Raises:
            InvariantFailed: the operation, the worker or a client stopped, or it takes too long.
        """
        operate.set_goal(self._catalog, self.operation, goal)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            now = status.of(self._catalog, self.operation)
            self._audience.check()
            self._audience.status(now)
            if now.phase == goal:
                return now
            if now.error is not None:
                raise errors.InvariantFailed(
                    f"the operation stopped in {now.phase}: {now.error.get('message')}",
                    fix=str(now.error.get("fix", "")),
                )
            if self._worker.poll() is not None:
                said = self._log.read_text(errors="replace").strip().splitlines()
                raise errors.InvariantFailed(f"the worker ended: {said[-1] if said else 'without a word'}")
            self._clients.check_alive()
            if time.monotonic() > deadline:
                raise errors.InvariantFailed(f"the operation is still {now.phase} after {PATIENCE_S:.0f} s")
            time.sleep(0.2)

    @contextlib.contextmanager
    def transactions_left_open(self, workload: Workload, shard: str, keys: Sequence[str]) -> Iterator[None]:
        """Rounds of transactions that stay open between two statements; the body begins while the first ones are open.

        Args:
            workload: whose process opens them.
            shard: where the clients without the library open theirs.
            keys: keys that live there now, and will not for long.
        """
        first, stop = threading.Event(), threading.Event()

        def rounds() -> None:
            try:
                for number in itertools.count(1):
                    workload.idle_round(shard, keys, first.set)
                    if stop.wait(GAP_S * number):
                        return
            finally:
                first.set()

        with ThreadPoolExecutor(max_workers=1) as pool:
            done = pool.submit(rounds)
            try:
                first.wait()
                yield
            finally:
                stop.set()
            done.result()

    def tell_pauses(self, since: int) -> int:
        """Tell how long writes were paused by the hand-overs since the last call.

        Args:
            since: how many hand-overs were told before.

        Returns:
            How many there are now.
        """
        found = status.of(self._catalog, self.operation).handovers
        new = found[since:]
        pauses = ", ".join(f"{one.pause_ms:.0f}" for one in new if one.pause_ms is not None)
        tries = sum(one.attempts for one in new)
        self._audience.fact(f"{len(new)} batches handed over in {tries} tries; writes paused for {pauses} ms")
        return len(found)

    def certificates(self) -> list[tuple[int, str, int, int]]:
        """(move, direction, rows, differing) of every comparison that the operation made."""
        return self._catalog.execute(
            "SELECT c.move, c.direction, c.rows, c.differing FROM shardwright.certificates c "
            "JOIN shardwright.moves m ON m.id = c.move WHERE m.operation = %s ORDER BY c.id",
            (self.operation,),
        ).fetchall()
