"""Transactions that wait for a second pool while they hold a connection of a first one, so that none wait in a circle.

A transaction on several shards holds a connection to one while it waits for another's pool. If all who hold that pool's
connections wait in their turn, and so on, nobody ever goes on. A database finds such a circle and ends one of the
waiters; so is it done here, at the moment when the circle would close.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager

from shardwright import errors


def are_stuck(waits: Mapping[Hashable, tuple[Hashable, Collection[Hashable]]], capacity: int) -> bool:
    """Whether some of those who wait can never go on.

    Args:
        waits: for each who waits, the pool that it waits for, and those that it holds a connection of.
        capacity: connections of each pool.
    """
    dead = {wanted for wanted, _ in waits.values()}
    while dead:
        # A pool is dead if every connection is held by somebody who waits for a dead pool.
        held = Counter(pool for wanted, holding in waits.values() if wanted in dead for pool in holding)
        alive = {pool for pool in dead if held[pool] < capacity}
        if not alive:
            return True
        dead -= alive
    return False


class Crossings:
    """Who waits for a further pool in this process. May be used from many threads.

    Args:
        capacity: connections of each pool; None: without a limit, so that nobody waits.
    """

    def __init__(self, capacity: int | None) -> None:
        self._capacity = capacity
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know of nobody; also in the child of a fork."""
        self._lock = threading.Lock()
        self._waits: dict[Hashable, tuple[Hashable, Collection[Hashable]]] = {}

    @contextmanager
    def waiting(self, who: Hashable, shard: str, pool: Hashable, holding: Collection[Hashable]) -> Iterator[None]:
        """While a transaction takes a connection.

        Args:
            who: the transaction.
            shard: whose pool it is, for the error.
            pool: the pool.
            holding: pools that it holds a connection of already.

        Raises:
            PoolDeadlock: it would wait for transactions that wait for it.
        """
        if not holding or self._capacity is None:
            yield
            return
        with self._lock:
            self._waits[who] = (pool, holding)
            if are_stuck(self._waits, self._capacity):
                del self._waits[who]
                raise errors.PoolDeadlock(
                    f"every connection to shard {shard} is held by a transaction that waits, in the end, for one of this one's",
                    fix="roll back and run it again; fewer at a time, or larger pools, make it rare",
                    shard=shard,
                )
        try:
            yield
        finally:
            with self._lock:
                self._waits.pop(who, None)
