"""What happens in sessions, told to whoever listens: metrics, spans, the pytest plugin.

There is one hook for all of it, `hook`. It is None where nobody listens, and then no event is made: looking at it is all
that a statement pays. `telling.listen` sets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

from sqlalchemy.engine import Connection

from shardwright import errors
from shardwright.session.explaining import Explanation

Outcome = Literal["committed", "rolled_back", "unknown"]


@dataclass(frozen=True, slots=True)
class StatementRouted:
    """It has been decided where a statement goes; nothing has been sent."""

    statement: Any
    params: Any
    #: without what is said of merging
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class StatementEnded:
    """A statement has been executed, or has failed; a streamed result is still to be read."""

    routed: StatementRouted
    #: when it began: nanoseconds since 1970
    began: int
    seconds: float
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class FlushRefused:
    """Objects could not be written, by a rule of the session's."""

    error: errors.ShardwrightError


@dataclass(frozen=True, slots=True)
class TransactionBegun:
    """A session's transaction has reached a shard. BEGIN itself may still be waiting for the first statement."""

    route: Literal["pinned", "routed"]
    shard: str


@dataclass(frozen=True, slots=True)
class TransactionEnded:
    """A session's transaction is over, on all of its shards."""

    route: Literal["pinned", "routed"]
    shards: tuple[str, ...]
    outcome: Outcome
    #: when it reached its first shard: nanoseconds since 1970
    began: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A shard did not take a transaction in: its range has moved, is being handed over, or the shard was not reached."""

    #: None where no single one did: what the shards serve did not add up
    shard: str | None
    #: what it said: SH001, SH002, SH003, 40001; None where the connection was lost
    sqlstate: str | None


@dataclass(frozen=True, slots=True)
class Waited:
    """A session has waited for a newer map, or for a range to be handed over."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """`Cluster.run` runs its function again from the start."""

    #: "moved", "outdated" (what was prepared is of no use any more), or the SQLSTATE
    reason: str


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """The circuit breaker of a shard has opened, tries once, or has closed."""

    shard: str
    role: str
    state: Literal["closed", "half_open", "open"]


Event = (
    StatementRouted
    | StatementEnded
    | FlushRefused
    | TransactionBegun
    | TransactionEnded
    | TurnedAway
    | Waited
    | Replayed
    | BreakerChanged
)
Listener = Callable[[Event], None]

#: Connections to shards whose transaction may be stored or not: nobody answered.
undecided: WeakSet[Connection] = WeakSet()

#: What is called with each event; None where nobody listens.
hook: Listener | None = None
