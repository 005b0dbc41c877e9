"""Ids that any shard and any process can make for itself: 63 bits, ordered by time, none made twice.

41 bits are milliseconds since 2025-01-01 UTC (until 2094), 10 bits the generator that made it, 12 bits a count within the
millisecond. A shard's generator is its own for good (`shardwright.next_id()` in SQL); a process is granted one together
with a span of time (`shardwright.next_id()` in Python). The migrations say the same in SQL; tests hold the two together.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: Unix milliseconds of 2025-01-01 UTC; as `snowflake_epoch` it makes the ids a key of time partitions.
EPOCH_MS = 1735689600000
COUNT_BITS, GENERATOR_BITS = 12, 10
GENERATORS = 1 << GENERATOR_BITS

_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Id:
    """What an id is made of."""

    #: Milliseconds since 2025-01-01 UTC.
    stamp: int
    generator: int
    count: int

    def __int__(self) -> int:
        return self.stamp << (GENERATOR_BITS + COUNT_BITS) | self.generator << COUNT_BITS | self.count

    @property
    def made_at(self) -> datetime:
        """When it was made, by the clock of its generator."""
        return _EPOCH + timedelta(milliseconds=self.stamp)

    @classmethod
    def read(cls, number: int) -> Id:
        """Take an id apart.

        Args:
            number: the id.
        """
        return cls(
            number >> (GENERATOR_BITS + COUNT_BITS),
            number >> COUNT_BITS & (GENERATORS - 1),
            number & ((1 << COUNT_BITS) - 1),
        )


class Uuids:
    """Makes UUIDs of version 7 that grow, whatever the clock does; may be used from many threads.

    Args:
        clock: nanoseconds since 1970.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._last = 0
        self._taking = threading.Lock()

    def make(self) -> uuid.UUID:
        """One that is greater than all before it."""
        milliseconds, rest = divmod(self._clock(), 1_000_000)
        # 48 bits of milliseconds, and their fraction in 12 bits, as PostgreSQL 18 does.
        now = milliseconds << 12 | rest * 4096 // 1_000_000
        with self._taking:
            now = self._last = max(now, self._last + 1)
        high = now >> 12 << 16 | 7 << 12 | now & 4095
        low = 2 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
        return uuid.UUID(int=high << 64 | low)


_UUIDS = Uuids()


def uuid7() -> uuid.UUID:
    """A UUID of version 7: ordered by time, unique by 62 random bits. `shardwright.uuid7()` in SQL makes such ones too."""
    return _UUIDS.make()
