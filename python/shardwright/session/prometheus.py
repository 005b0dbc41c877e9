"""What is measured of sessions, for Prometheus; needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shardwright import errors
from shardwright.session import telling
from shardwright.session.measures import MEASURES, Measure, Measuring

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from shardwright.session.cluster import Cluster


def export(cluster: Cluster, registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Keep the measures of this process's sessions in a registry of prometheus_client.

    Events are counted for the whole process; gauges are those of one cluster.

    Args:
        cluster: whose pools and shard map are shown.
        registry: where; prometheus_client's own by default.

    Returns:
        What ends it.

    Raises:
        MissingExtra: prometheus_client is not installed.
        ValueError: the registry has these measures already.
    """
    try:
        import prometheus_client
    except ImportError:
        raise errors.MissingExtra(
            "prometheus_client is not installed", fix='pip install "shardwright[metrics]"'
        ) from None
    where = registry if registry is not None else prometheus_client.REGISTRY
    kept = _Kept(where)
    measuring = Measuring(kept)
    gauges = _Gauges(cluster, measuring)
    where.register(gauges)
    stop_listening = telling.listen(measuring)

    def stop() -> None:
        stop_listening()
        where.unregister(gauges)
        kept.forget()

    return stop


class _Kept:
    """Counters and histograms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        self._registry = registry
        self._made: dict[str, Any] = {}
        for one in MEASURES:
            if one.kind == "counter":
                self._made[one.name] = Counter(one.prometheus, one.says, one.labels, registry=registry)
            elif one.kind == "histogram":
                self._made[one.name] = Histogram(
                    one.prometheus, one.says, one.labels, registry=registry, buckets=one.buckets
                )

    def add(self, measure: Measure, amount: float, labels: Mapping[str, str]) -> None:
        """See `measures.Keeper`."""
        found = self._made[measure.name]
        found = found.labels(**labels) if measure.labels else found
        if measure.kind == "counter":
            found.inc(amount)
        else:
            found.observe(amount)

    def forget(self) -> None:
        """Take them off the registry."""
        for one in self._made.values():
            self._registry.unregister(one)


class _Gauges:
    """What is looked at when it is asked for."""

    def __init__(self, cluster: Cluster, measuring: Measuring) -> None:
        self._cluster = cluster
        self._measuring = measuring

    def describe(self) -> Iterator[Metric]:
        """The names, for the registry."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The values as they stand now."""
        families = self._families()
        for measure, value, labels in self._measuring.readings(self._cluster):
            families[measure.name].add_metric([labels[name] for name in measure.labels], value)
        yield from families.values()

    def _families(self) -> dict[str, Any]:
        from prometheus_client.core import GaugeMetricFamily

        return {
            one.name: GaugeMetricFamily(one.prometheus, one.says, labels=one.labels)
            for one in MEASURES
            if one.kind == "gauge"
        }
