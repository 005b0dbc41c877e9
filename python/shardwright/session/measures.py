"""What is measured of sessions: every name, and how events become numbers. Who keeps them is for `prometheus` or `telemetry`.

Labels have few values each: shards, routes, codes; never keys, statements or users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from shardwright.session import events

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class Measure:
    """One thing that is measured."""

    #: OpenTelemetry's name
    name: str
    kind: Literal["counter", "histogram", "gauge"]
    #: OpenTelemetry's: s for seconds, {things} for numbers of things
    unit: str
    labels: tuple[str, ...]
    says: str
    buckets: tuple[float, ...] = ()

    @property
    def prometheus(self) -> str:
        """The name as Prometheus wants names: with the unit, and _total for what only grows."""
        name = self.name.replace(".", "_") + ("_seconds" if self.unit == "s" else "")
        return f"{name}_total" if self.kind == "counter" else name


def _counter(name: str, unit: str, labels: tuple[str, ...], says: str) -> Measure:
    return Measure(f"shardwright.{name}", "counter", unit, labels, says)


def _seconds(name: str, labels: tuple[str, ...], says: str) -> Measure:
    return Measure(f"shardwright.{name}", "histogram", "s", labels, says, _SECONDS)


def _gauge(name: str, unit: str, labels: tuple[str, ...], says: str) -> Measure:
    return Measure(f"shardwright.{name}", "gauge", unit, labels, says)


STATEMENTS = _counter(
    "statements", "{statement}", ("route", "where"), "statements that sessions executed, refused or failed to execute"
)
STATEMENT_DURATION = _seconds("statement.duration", ("route", "where"), "until a statement was answered")
SCATTER_SHARDS = Measure(
    "shardwright.scatter.shards", "histogram", "{shard}", (), "how many shards a statement was asked of", _SHARDS
)
REFUSALS = _counter("refusals", "{statement}", ("code",), "statements and flushes that a rule of the sessions refused")
TRANSACTIONS = _counter(
    "transactions",
    "{transaction}",
    ("route", "outcome"),
    "transactions that have ended: committed, rolled_back, unknown",
)
TRANSACTION_DURATION = _seconds(
    "transaction.duration", ("route", "outcome"), "from a transaction's first shard to its end"
)
TURNED_AWAY = _counter(
    "turned_away", "{transaction}", ("shard", "reason"), "transactions that a shard did not take in: SQLSTATE, or lost"
)
WAIT_DURATION = _seconds("wait.duration", (), "waits for a newer map or for a range that was handed over")
REPLAYS = _counter(
    "replays", "{transaction}", ("reason",), "functions that Cluster.run ran again: moved, or the SQLSTATE"
)
BREAKER_CHANGES = _counter(
    "breaker.changes", "{change}", ("shard", "role", "state"), "circuit breakers that went to a state"
)
BREAKER_OPEN = _gauge(
    "breaker.open", "{breaker}", ("shard", "role"), "1 while a shard is not called, 0.5 while it is tried"
)
POOL_CONNECTIONS = _gauge(
    "pool.connections", "{connection}", ("shard", "driver", "state"), "connections of a pool: in_use, idle"
)
POOL_LIMIT = _gauge("pool.limit", "{connection}", ("shard", "driver"), "connections that a pool may have at most")
MAP_VERSION = _gauge("map.version", "{version}", (), "the version of the shard map that this process knows")

MEASURES = (
    STATEMENTS,
    STATEMENT_DURATION,
    SCATTER_SHARDS,
    REFUSALS,
    TRANSACTIONS,
    TRANSACTION_DURATION,
    TURNED_AWAY,
    WAIT_DURATION,
    REPLAYS,
    BREAKER_CHANGES,
    BREAKER_OPEN,
    POOL_CONNECTIONS,
    POOL_LIMIT,
    MAP_VERSION,
)


class Keeper(Protocol):
    """Who keeps the numbers."""

    def add(self, measure: Measure, amount: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, or put a value into a histogram.

        Args:
            measure: which.
            amount: what.
            labels: a value for each of its labels.
        """
        ...


class Measuring:
    """A listener that turns events into numbers.

    Args:
        keeper: who keeps them.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._breakers: dict[tuple[str, str], float] = {}

    def __call__(self, event: events.Event) -> None:
        """Hear of an event."""
        add = self._keeper.add
        if isinstance(event, events.StatementEnded):
            told = event.routed.explanation
            labels: dict[str, str] = {"route": told.route, "where": told.where}
            add(STATEMENTS, 1, labels)
            add(STATEMENT_DURATION, event.seconds, labels)
            if told.where in ("some", "everywhere"):
                add(SCATTER_SHARDS, len(told.shards), {})
            if told.refusal is not None:
                add(REFUSALS, 1, {"code": told.refusal.code})
        elif isinstance(event, events.FlushRefused):
            add(REFUSALS, 1, {"code": event.error.code})
        elif isinstance(event, events.TransactionEnded):
            labels = {"route": event.route, "outcome": event.outcome}
            add(TRANSACTIONS, 1, labels)
            add(TRANSACTION_DURATION, event.seconds, labels)
        elif isinstance(event, events.TurnedAway):
            add(TURNED_AWAY, 1, {"shard": event.shard or "several", "reason": event.sqlstate or "lost"})
        elif isinstance(event, events.Waited):
            add(WAIT_DURATION, event.seconds, {})
        elif isinstance(event, events.Replayed):
            add(REPLAYS, 1, {"reason": event.reason})
        elif isinstance(event, events.BreakerChanged):
            add(BREAKER_CHANGES, 1, {"shard": event.shard, "role": event.role, "state": event.state})
            self._breakers[event.shard, event.role] = {"open": 1.0, "closed": 0.0}.get(event.state, 0.5)

    def readings(self, cluster: Cluster) -> Iterator[tuple[Measure, float, dict[str, str]]]:
        """The gauges as they stand now.

        Args:
            cluster: whose.
        """
        yield MAP_VERSION, cluster.map.version, {}
        for (shard, role), value in list(self._breakers.items()):
            yield BREAKER_OPEN, value, {"shard": shard, "role": role}
        for pool in cluster.pool_usage():
            labels = {"shard": pool.shard, "driver": pool.driver}
            yield POOL_CONNECTIONS, pool.in_use, {**labels, "state": "in_use"}
            yield POOL_CONNECTIONS, pool.idle, {**labels, "state": "idle"}
            if pool.limit is not None:
                yield POOL_LIMIT, pool.limit, labels
