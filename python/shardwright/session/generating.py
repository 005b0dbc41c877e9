"""Ids made in this process: from a number and a span of time that the catalog has granted to nobody else."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

from shardwright import errors
from shardwright.catalog import generators
from shardwright.catalog.generators import Grant
from shardwright.ids import COUNT_BITS, Id
from shardwright.session.catalog_calls import CatalogCalls

_log = logging.getLogger(__name__)

#: Milliseconds of a grant. In use, it is renewed after half of it: so long may the catalog be away.
SPAN_MS = 120_000

_COUNT = (1 << COUNT_BITS) - 1

_generators: weakref.WeakSet[Generator] = weakref.WeakSet()


def next_id() -> int:
    """An id from the cluster that this process is connected to; see `Cluster.next_id`. Good as a column's default.

    Raises:
        BadOption: it is connected to none, or to several.
        CannotConnect, PasswordMissing, NotPrimary, UnfitServer, OperationConflict: as `Cluster.next_id`.
    """
    found = list(_generators)
    if len(found) != 1:
        raise errors.BadOption(
            f"this process has {len(found)} open clusters, so it is not known who makes the id",
            fix="call next_id() of the cluster that is meant" if found else "Cluster.connect(...) first",
        )
    return found[0].next()


def ask_for_grant(calls: CatalogCalls, before: Grant | None) -> Grant:
    """Get a grant from the catalog.

    Args:
        calls: to the catalog.
        before: the grant before.
    """
    holder = f"{calls.application} on {socket.gethostname()}, pid {os.getpid()}"
    return calls.ask(lambda catalog: generators.grant(catalog, holder, SPAN_MS, before))


class Generator:
    """Makes ids; may be used from many threads.

    The clock is the catalog's at the grant, and this machine's monotonic one since: a clock that steps changes nothing,
    and a process that slept through its grant still makes ids that are its own.

    Args:
        ask: gets a grant from the catalog; takes the one before.
        monotonic: seconds, from any moment on.
    """

    def __init__(self, ask: Callable[[Grant | None], Grant], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self.begin_anew()
        _generators.add(self)

    def begin_anew(self) -> None:
        """In the child of a fork, where what was granted is the parent's; and at first."""
        self._taking = threading.Lock()
        self._renewing = threading.Lock()
        self._renewer: threading.Thread | None = None
        self._grant: Grant | None = None
        self._granted_at = 0.0
        #: milliseconds and count that were given out last, in one number
        self._last = -1

    def close(self) -> None:
        """Make ids no longer the process's own; see `next_id`."""
        _generators.discard(self)

    def next(self) -> int:
        """The next id: greater than all that were made here before, unless another number had to be taken.

        Raises:
            CannotConnect, PasswordMissing, NotPrimary: nothing is granted, and the catalog cannot be reached.
            OperationConflict: all numbers are in use.
        """
        while True:
            grant = self._grant
            if grant is not None:
                made, is_half_over = self._take(grant)
                if is_half_over:
                    self._renew_aside(grant)
                if made is not None:
                    return made
            self._renew(grant)

    def _take(self, grant: Grant) -> tuple[int | None, bool]:
        """An id of a grant, or None where it is used up; and whether the next one is due."""
        now = grant.now + int((self._monotonic() - self._granted_at) * 1000)
        with self._taking:
            if grant is not self._grant:
                return None, False
            value = max(self._last + 1, max(now, grant.first) << COUNT_BITS)
            stamp = value >> COUNT_BITS
            if stamp >= grant.end:
                return None, False
            self._last = value
        return int(Id(stamp, grant.number, value & _COUNT)), grant.end - stamp < SPAN_MS // 2

    def _renew(self, old: Grant | None) -> None:
        with self._renewing:
            if self._grant is not old:
                return
            asked_at = self._monotonic()
            new = self._ask(old)
            if old is not None and (old.number, old.end) == (new.number, new.first):
                # The same number, and no time in between: what is left of the old grant comes first.
                new = replace(new, first=old.first)
            with self._taking:
                self._granted_at, self._grant = asked_at, new

    def _renew_aside(self, grant: Grant) -> None:
        if self._renewer is None or not self._renewer.is_alive():
            self._renewer = threading.Thread(
                target=self._try_to_renew, args=(grant,), name="shardwright-ids", daemon=True
            )
            self._renewer.start()

    def _try_to_renew(self, grant: Grant) -> None:
        try:
            self._renew(grant)
        except errors.ShardwrightError as error:
            # Tried again with one of the next ids, and raised when nothing is left.
            _log.warning("ids could not be granted anew, which is tried again: %s", error)
            time.sleep(1)
