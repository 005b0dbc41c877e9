"""How long somebody who has nothing to do with it waits while a manager changes a table that a reader has open."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

#: How long the idle transaction stays open, beginning with the manager's run.
HELD_S = 1.5


@dataclass(frozen=True)
class Delay:
    """What one run did to the bystander."""

    #: The longest that one of its queries took.
    longest_ms: float
    #: How long the manager's run took, the wait for the idle transaction included.
    run_ms: float
    #: What the run said where it failed; a manager that gives up and says so may be run again.
    failed: str = ""


class _Probe(threading.Thread):
    """A reader that comes anew every few milliseconds."""

    def __init__(self, dsn: str, query: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.query = dsn, query
        self.longest, self.running, self.stop = 0.0, threading.Event(), threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(self.query.encode())  # fills the caches: a plan's first time is not the manager's doing
            while not self.stop.is_set():
                begin = time.perf_counter()
                connection.execute(self.query.encode())
                self.longest = max(self.longest, time.perf_counter() - begin)
                self.running.set()
                self.stop.wait(0.005)


def measure(dsn: str, table: str, run: Callable[[], None]) -> Delay:
    """Run a manager once while a transaction that read the whole table idles, and a new reader keeps coming.

    Args:
        dsn: the database.
        table: the partitioned table.
        run: the manager's run.
    """
    holder = psycopg.connect(dsn)
    holder.execute(f"SELECT count(*) FROM {table}".encode())  # ACCESS SHARE on the parent and on every partition
    probe = _Probe(dsn, f"SELECT count(*) FROM {table} WHERE created_at >= date_trunc('month', now())")
    probe.start()
    if not probe.running.wait(10):
        raise TimeoutError("the bystander did not begin to read")
    failed: list[str] = []
    took: list[float] = []

    def work() -> None:
        begin = time.perf_counter()
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever a manager raises is its result here
            failed.append(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
        took.append(time.perf_counter() - begin)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(HELD_S)
    holder.rollback()
    worker.join(60)
    probe.stop.set()
    probe.join()
    with contextlib.suppress(psycopg.Error):
        holder.close()
    return Delay(1000 * probe.longest, 1000 * took[0], failed[0] if failed else "")
