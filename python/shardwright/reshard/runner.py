"""The runner: takes an operation's lease and brings it towards its goal, phase by phase.

A phase that ends in -ing is entered by an event of its own and left when its work is done, so a crash anywhere leaves an
operation in the phase whose work is then done again. Every step can be.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg

from shardwright import engines, errors, failpoints
from shardwright.catalog import operations
from shardwright.catalog.operations import Operation
from shardwright.reshard.phases import TRANSITIONS, Event, Goal, Phase, next_event
from shardwright.reshard.steps import abort, catch_up, clean_up, copy, prepare, roll_back, switch, verify
from shardwright.reshard.world import World, log

#: A lease lasts this long unless renewed; renewed three times in that span.
LEASE_SECONDS = 9.0

#: The work to be done in a phase before the event may happen. What is not listed needs none.
_WORK: dict[tuple[Phase, Event], tuple[Callable[[World], None], ...]] = {
    (Phase.PLANNED, Event.PREPARE): (prepare.run,),
    (Phase.COPYING, Event.CATCH_UP): (copy.run,),
    (Phase.CATCHING_UP, Event.VERIFY): (catch_up.run, verify.run),
    (Phase.REVERTED, Event.VERIFY): (verify.run,),
    (Phase.VERIFIED, Event.VERIFY): (verify.run,),
    (Phase.VERIFIED, Event.SWITCH): (switch.check,),
    (Phase.SWITCHED, Event.VERIFY): (verify.run,),
    (Phase.SWITCHING, Event.SWITCH): (switch.run,),
    (Phase.REVERTING, Event.ROLL_BACK): (roll_back.run,),
    (Phase.CLEANING, Event.FINISH): (clean_up.run,),
    (Phase.ABORTING, Event.ABORT): (abort.run,),
}


def run(
    catalog_dsn: str,
    operation: int,
    *,
    take_over: bool = False,
    on_progress: Callable[[], None] = lambda: None,
    once: Event | None = None,
) -> Operation:
    """Take an operation over and work until its goal is reached.

    Args:
        catalog_dsn: where the catalog is.
        operation: its number.
        take_over: do not wait for another worker's lease to end.
        on_progress: called now and then; it may raise to stop the work.
        once: bring about this one event instead of going towards the goal.

    Returns:
        The operation as it stands at the end.

    Raises:
        LeaseHeld: another worker has it, and is no dead process of this host.
        ShardwrightError: whatever stopped a step; it is kept with the operation.
    """
    failpoints.check_setting()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    with engines.connect_catalog(catalog_dsn, "shardwright worker") as catalog:
        before = operations.get(catalog, operation).lease_holder
        taken = operations.take_over(
            catalog, operation, holder, LEASE_SECONDS, force=take_over, gone=before if is_gone(before) else None
        )
    with World(catalog_dsn, taken, on_progress) as world, _Lease(catalog_dsn, taken):
        try:
            world.claim_shards()
            return _work(world, once)
        except (errors.Superseded, errors.Interrupted):
            raise  # no failure of the operation
        except errors.ShardwrightError as error:
            _keep_error(world, error.as_json())
            raise
        except psycopg.Error as error:
            said = engines.redact(" ".join(str(error).split()))
            wrapped = errors.StreamStalled(
                f"a server said: {said}", fix=f"mend the cause, then: shardwright reshard resume {operation}"
            )
            _keep_error(world, wrapped.as_json())
            raise wrapped from error


def is_gone(holder: str | None) -> bool:
    """Whether a lease's holder was a process of this host that has ended without giving the lease back."""
    host, _, pid = (holder or "").rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there and another user's
    return False


def _work(world: World, once: Event | None) -> Operation:
    while True:
        operation = world.refresh()
        phase = Phase(operation.phase)
        event = once or next_event(phase, Goal(operation.goal))
        if event is None:
            return operation
        started = time.monotonic()
        for step in _WORK.get((phase, event), ()):
            log.info("operation %d in %s: %s", operation.id, phase, step.__module__.rpartition(".")[2])
            try:
                step(world)
            except errors.StreamStalled as error:
                if error.facts.get("state") != "lost" or (phase, Event.COPY) not in TRANSITIONS:
                    raise
                # what a lost slot did not send cannot be had from a new one
                event = Event.COPY
                break
        reached = operations.advance(
            world.catalog,
            operation.id,
            operation.op_epoch,
            phase,
            event,
            {"seconds": round(time.monotonic() - started, 3)},
        )
        log.info("operation %d: %s", operation.id, reached)
        world.refresh()
        world.on_progress()
        if once is not None:
            return world.operation


def _keep_error(world: World, error: dict[str, Any]) -> None:
    try:
        operations.record_error(world.catalog, world.operation.id, world.operation.op_epoch, error)
    except psycopg.Error:
        # the error itself is raised to the caller; keeping it in a catalog that is down is not possible
        log.warning("the error could not be kept in the catalog: %s", error["message"])


class _Lease:
    """Renews the lease from a thread of its own while the work goes on; gives it back at the end."""

    def __init__(self, catalog_dsn: str, operation: Operation) -> None:
        self._dsn = catalog_dsn
        self._operation = operation
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        # a catalog that does not answer keeps nobody here: the lease ends by itself
        self._thread.join(LEASE_SECONDS)

    def _renew(self) -> None:
        catalog: psycopg.Connection | None = None
        while not self._stop.wait(LEASE_SECONDS / 3):
            try:
                if catalog is None or catalog.closed:
                    catalog = engines.connect_catalog(self._dsn, "shardwright lease")
                operations.renew(catalog, self._operation.id, self._operation.op_epoch, LEASE_SECONDS)
            except errors.Superseded:
                return  # the worker finds out at its next change: its token is void
            except (psycopg.Error, errors.PreconditionError):
                log.warning("operation %d: the lease could not be renewed", self._operation.id)
        try:
            if catalog is None or catalog.closed:
                catalog = engines.connect_catalog(self._dsn, "shardwright lease")
            operations.release(catalog, self._operation.id, self._operation.op_epoch)
        except (psycopg.Error, errors.PreconditionError):
            log.warning("operation %d: the lease ends by itself in %.0f s", self._operation.id, LEASE_SECONDS)
        finally:
            if catalog is not None:
                catalog.close()
