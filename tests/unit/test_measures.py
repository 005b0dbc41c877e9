"""The page of metrics and the code say the same names."""

from __future__ import annotations

import re
from pathlib import Path

from shardwright.session import telemetry
from shardwright.session.measures import MEASURES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")


def test_every_measure_is_documented_as_it_is() -> None:
    rows = re.findall(r"^\| `(shardwright\.[\w.]+)` \| `(\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", PAGE, re.MULTILINE)
    documented = [(name, prometheus, kind, labels.strip(), says) for name, prometheus, kind, labels, says in rows]
    assert documented == [
        (one.name, one.prometheus, one.kind, ", ".join(f"`{label}`" for label in one.labels), one.says)
        for one in MEASURES
    ]


def test_every_span_and_attribute_is_documented() -> None:
    _, _, spans = PAGE.partition("\n## Spans\n")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", spans, re.MULTILINE))
    assert rows == {**telemetry.SPANS, **telemetry.ATTRIBUTES}


def test_names_are_what_prometheus_wants() -> None:
    assert len({one.prometheus for one in MEASURES}) == len(MEASURES)
    for one in MEASURES:
        assert re.fullmatch(r"shardwright(_[a-z]+)+", one.prometheus)
        assert one.prometheus.endswith("_total") == (one.kind == "counter")
        assert bool(one.buckets) == (one.kind == "histogram")
