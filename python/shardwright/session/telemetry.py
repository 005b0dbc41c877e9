"""What is measured of sessions, and spans of their statements and transactions, for OpenTelemetry; needs the extra `otel`.

Only OpenTelemetry's API is used: where nothing is configured to take them, numbers and spans go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from shardwright import errors
from shardwright.session import events, telling
from shardwright.session.measures import MEASURES, Measure, Measuring

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider

    from shardwright.session.cluster import Cluster

#: Spans, each with what it is about.
SPANS = {
    "shardwright.statement": "one statement of a session, on all of its shards",
    "shardwright.transaction": "one transaction of a session, from its first shard to its end",
}
#: Attributes of spans.
ATTRIBUTES = {
    "db.system.name": "`postgresql`",
    "shardwright.route": "`pinned`, `routed`, or `named` where the caller named the shard",
    "shardwright.where": "of a statement: `one`, `any`, `some`, `everywhere` or `refused`",
    "shardwright.shards": "names of the shards",
    "shardwright.map_version": "of a statement: the version of the shard map",
    "shardwright.outcome": "of a transaction: `committed`, `rolled_back` or `unknown`",
    "db.query.text": "of a statement: its text, where that is wished for",
    "error.type": "what went wrong: the number of an error of ours, else its class",
}


def export(
    cluster: Cluster,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    statements: bool = False,
) -> Callable[[], None]:
    """Give this process's measures and spans to OpenTelemetry.

    Spans are made when what they are about has ended, as children of the span that is current then.

    Args:
        cluster: whose pools and shard map are shown.
        meter_provider: takes the numbers; the global one by default.
        tracer_provider: takes the spans; the global one by default.
        statements: put the statements' texts into spans. Values are not in them, except those that stand in the text.

    Returns:
        What ends it.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        raise errors.MissingExtra("opentelemetry-api is not installed", fix='pip install "shardwright[otel]"') from None
    meter = metrics.get_meter("shardwright", meter_provider=meter_provider)
    kept = _Kept()
    measuring = Measuring(kept)
    gone = False

    def observe(measure: Measure, _options: CallbackOptions) -> Iterable[Observation]:
        # OpenTelemetry's callbacks are for ever.
        if gone:
            return []
        found = measuring.readings(cluster)
        return [metrics.Observation(value, labels) for one, value, labels in found if one is measure]

    for one in MEASURES:
        if one.kind == "counter":
            kept.made[one.name] = meter.create_counter(one.name, one.unit, one.says).add
        elif one.kind == "histogram":
            made = meter.create_histogram(
                one.name, one.unit, one.says, explicit_bucket_boundaries_advisory=list(one.buckets)
            )
            kept.made[one.name] = made.record
        else:
            meter.create_observable_gauge(one.name, [partial(observe, one)], one.unit, one.says)
    ends = [
        telling.listen(measuring),
        telling.listen(_Spans(trace.get_tracer("shardwright", tracer_provider=tracer_provider), statements)),
    ]

    def stop() -> None:
        nonlocal gone
        gone = True
        for end in ends:
            end()

    return stop


class _Kept:
    """Counters and histograms: what adds to each."""

    def __init__(self) -> None:
        self.made: dict[str, Callable[[float, Mapping[str, str]], None]] = {}

    def add(self, measure: Measure, amount: float, labels: Mapping[str, str]) -> None:
        """See `measures.Keeper`."""
        self.made[measure.name](amount, labels)


class _Spans:
    """A listener that makes spans."""

    def __init__(self, tracer: Tracer, statements: bool) -> None:
        self._tracer = tracer
        self._statements = statements

    def __call__(self, event: events.Event) -> None:
        """Hear of an event."""
        if isinstance(event, events.StatementEnded):
            told = event.routed.explanation
            about: dict[str, Any] = {
                "shardwright.route": told.route,
                "shardwright.where": told.where,
                "shardwright.shards": told.shards,
                "shardwright.map_version": told.map_version,
            }
            if self._statements:
                about["db.query.text"] = str(event.routed.statement)
            self._span("shardwright.statement", event.began, event.seconds, about, event.error)
        elif isinstance(event, events.TransactionEnded):
            about = {
                "shardwright.route": event.route,
                "shardwright.shards": event.shards,
                "shardwright.outcome": event.outcome,
            }
            self._span("shardwright.transaction", event.began, event.seconds, about, None)

    def _span(self, name: str, began: int, seconds: float, about: dict[str, Any], error: BaseException | None) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = {"db.system.name": "postgresql", **about}
        if error is not None:
            ours = isinstance(error, errors.ShardwrightError) and error.code
            attributes["error.type"] = ours or type(error).__name__
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes, start_time=began)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began + int(seconds * 1e9))
