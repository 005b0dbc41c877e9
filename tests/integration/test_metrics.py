"""Measures and spans of real sessions."""

from __future__ import annotations

import sys

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from fix_sessions import Country, Shop, User
from shardwright import Cluster, errors
from shardwright.session import events, prometheus, telemetry

pytestmark = pytest.mark.newest_postgres


def work(cluster: Cluster, one: int, other: int) -> None:
    """A pinned write, a routed read, a scatter, a refusal, a replay."""
    with cluster.sessionmaker()(key=one) as session:
        session.execute(sa.insert(User).values(id=one, name="secret"))
        session.commit()
    with cluster.sessionmaker()() as session:
        session.execute(sa.select(User).where(User.id == other))
        session.execute(sa.select(User))
        session.execute(sa.select(Country))
        with pytest.raises(errors.NoShardKey):
            session.execute(sa.delete(User))
    attempts = iter(["40001", None])

    def replayed(session: sa.orm.Session) -> None:
        failure = next(attempts)
        session.execute(sa.text(f"DO $$ BEGIN RAISE SQLSTATE '{failure}'; END $$" if failure else "SELECT 1"))

    cluster.run(one, replayed)


def test_what_prometheus_and_opentelemetry_get(shop: Shop) -> None:
    cluster = shop.connect()
    registry, reader, spans = CollectorRegistry(), InMemoryMetricReader(), InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    ends = [
        prometheus.export(cluster, registry),
        telemetry.export(cluster, meter_provider=meters, tracer_provider=tracers, statements=True),
    ]
    try:
        with trace.get_tracer("test", tracer_provider=tracers).start_as_current_span("request"):
            work(cluster, shop.key_on("s1"), shop.key_on("s2"))
        with cluster.engine("s2").connect():
            text = generate_latest(registry).decode()
            data = reader.get_metrics_data()
    finally:
        for end in ends:
            end()
    assert events.hook is None

    def sample(name: str, **labels: str) -> float | None:
        return registry_values.get((name, frozenset(labels.items())))

    registry_values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name, _, rest = name.partition("{")
            labels = {part.split("=")[0]: part.split("=")[1].strip('"') for part in rest.rstrip("}").split(",") if part}
            registry_values[name, frozenset(labels.items())] = float(value)
    assert sample("shardwright_statements_total", route="pinned", where="one") == 3
    assert sample("shardwright_statements_total", route="routed", where="one") == 1
    assert sample("shardwright_statements_total", route="routed", where="everywhere") == 1
    assert sample("shardwright_statements_total", route="routed", where="any") == 1
    assert sample("shardwright_statements_total", route="routed", where="refused") == 1
    assert sample("shardwright_refusals_total", code="SW604") == 1
    assert sample("shardwright_scatter_shards_sum") == 2
    assert sample("shardwright_transactions_total", route="pinned", outcome="committed") == 2
    assert sample("shardwright_transactions_total", route="pinned", outcome="rolled_back") == 1
    assert sample("shardwright_transactions_total", route="routed", outcome="rolled_back") == 1
    assert sample("shardwright_replays_total", reason="40001") == 1
    assert sample("shardwright_map_version") == cluster.map.version
    assert sample("shardwright_pool_connections", shard="s2", driver="psycopg", state="in_use") == 1
    assert sample("shardwright_pool_connections", shard="s1", driver="psycopg", state="in_use") == 0
    assert sample("shardwright_pool_limit", shard="s1", driver="psycopg") == 15

    assert data is not None
    otel = {
        (metric.name, frozenset(point.attributes.items())): getattr(point, "value", getattr(point, "sum", None))
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert otel["shardwright.statements", frozenset({("route", "pinned"), ("where", "one")})] == 3
    assert otel["shardwright.map.version", frozenset()] == cluster.map.version
    assert otel["shardwright.scatter.shards", frozenset()] == 2
    in_use = frozenset({("shard", "s2"), ("driver", "psycopg"), ("state", "in_use")})
    assert otel["shardwright.pool.connections", in_use] == 1

    made = spans.get_finished_spans()
    request = next(span for span in made if span.name == "request")
    ours = [span for span in made if span is not request]
    assert {span.name for span in ours} == set(telemetry.SPANS)
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in ours)
    assert all(set(span.attributes or {}) <= set(telemetry.ATTRIBUTES) for span in ours)
    assert all((request.start_time or 0) <= (span.start_time or 0) for span in ours)
    texts = [str((span.attributes or {}).get("db.query.text")) for span in ours]
    assert any(text.startswith("SELECT users.id") for text in texts)
    assert not any("secret" in text for text in texts)
    failed = [(span.attributes or {}).get("error.type") for span in ours if not span.status.is_ok]
    assert [one for one in failed if one] == ["SW604", "OperationalError"]
    # Whoever has ended it may begin anew.
    prometheus.export(cluster, registry)()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    nobody: Cluster = None  # type: ignore[assignment]
    with pytest.raises(errors.MissingExtra, match="prometheus_client"):
        prometheus.export(nobody)
    with pytest.raises(errors.MissingExtra, match="opentelemetry-api"):
        telemetry.export(nobody)
    assert events.hook is None
