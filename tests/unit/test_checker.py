"""Each anomaly, made by hand: the checker must be able to fail, and must say what it found."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from shardwright.testing import checker
from shardwright.testing.checker import Final, check
from shardwright.testing.history import NEVER, Kind, Operation, Outcome, Seen

LIST, COUNTER, ROWS = "logbook/N1/0", "flights/N1/7", "bookings/N1"


def op(
    kind: Kind,
    invoked: int,
    returned: int,
    *,
    key: str | None = None,
    value: int | None = None,
    seen: Any = None,
    outcome: Outcome = "ok",
    transaction: int = 0,
) -> Operation:
    keys = {"append": LIST, "read": LIST, "add": COUNTER, "look": COUNTER, "count": "bookings"}
    if isinstance(seen, list):
        seen = Seen.of(seen)
    return Operation("p", transaction, kind, key or keys.get(kind, ROWS), value, seen, outcome, invoked, returned)


def final(
    elements: list[int] | None = None,
    counter: int | None = None,
    rows: set[int] | None = None,
    **more: Any,
) -> Final:
    return Final(
        owner=lambda key: "s1",
        lists={} if elements is None else {LIST: {"s1": elements}},
        counters={} if counter is None else {COUNTER: {"s1": counter}},
        rows={} if rows is None else {ROWS: {"s1": rows}},
        **more,
    )


def test_a_quiet_history_is_clean() -> None:
    history = [
        op("append", 1, 2, value=10, seen=[10]),
        op("read", 3, 4, seen=[10]),
        op("append", 5, 6, value=11, seen=[10, 11]),
        op("add", 1, 2, seen=1),
        op("look", 3, 4, seen=1),
        op("insert", 1, 2, value=1),
        op("insert", 3, 4, value=2),
        op("delete", 5, 6, value=1),
        op("find", 7, 8, value=1, seen=False),
        op("find", 7, 8, value=2, seen=True),
        op("count", 9, 10, seen=1),
    ]
    verdict = check(history, final([10, 11], 1, {2}))
    assert verdict.ok, verdict.evidence
    assert verdict.acknowledged_writes == 6
    assert verdict.acknowledged_reads == 5


@pytest.mark.parametrize(
    ("kind", "times", "history", "state"),
    [
        pytest.param("lost", 1, [op("append", 1, 2, value=10)], final([]), id="append missing"),
        pytest.param("lost", 1, [op("append", 1, 2, value=10)], final(), id="row of the append missing"),
        pytest.param(
            "lost", 2, [op("add", 1, 2), op("add", 1, 2), op("add", 1, 2)], final(counter=1), id="additions missing"
        ),
        pytest.param("lost", 1, [op("insert", 1, 2, value=1)], final(rows=set()), id="row missing"),
        pytest.param("duplicated", 1, [op("append", 1, 2, value=10)], final([10, 10]), id="append twice"),
        pytest.param("duplicated", 1, [op("add", 1, 2)], final(counter=2), id="addition twice"),
        pytest.param(
            "phantom", 1, [op("append", 1, 2, value=10, outcome="fail")], final([10]), id="failed append there"
        ),
        pytest.param("phantom", 1, [], final([10]), id="append of nobody"),
        pytest.param(
            "phantom", 1, [op("insert", 1, 2, value=1, outcome="fail")], final(rows={1}), id="failed insert there"
        ),
        pytest.param("phantom", 1, [], final(rows={1}), id="row of nobody"),
        pytest.param(
            "phantom",
            1,
            [op("insert", 1, 2, value=1), op("delete", 3, 4, value=1)],
            final(rows={1}),
            id="deleted row there",
        ),
        pytest.param(
            "forked",
            1,
            [op("append", 1, 2, value=10), op("append", 1, 2, value=11), op("read", 3, 4, seen=[11, 10])],
            final([10, 11]),
            id="read of another order",
        ),
        pytest.param(
            "forked",
            1,
            [op("append", 1, 2, value=10), op("read", 3, 4, seen=[10, 12])],
            final([10]),
            id="read past the end",
        ),
        pytest.param(
            "forked", 1, [op("add", 1, 2, seen=1), op("add", 1, 2, seen=1)], final(counter=2), id="same count twice"
        ),
        pytest.param("forked", 1, [op("look", 1, 2, seen=5)], final(counter=0), id="count past the end"),
        pytest.param("forked", 1, [op("find", 1, 2, value=1, seen=True)], final(rows=set()), id="row seen, never sent"),
        pytest.param(
            "stale",
            1,
            [op("append", 1, 2, value=10, seen=[10]), op("read", 3, 4, seen=[])],
            final([10]),
            id="read too old",
        ),
        pytest.param(
            "stale",
            1,
            [op("append", 1, 2, value=10), op("append", 3, 4, value=11)],
            final([11, 10]),
            id="later append placed before an earlier one",
        ),
        pytest.param(
            "stale", 1, [op("add", 1, 2, seen=1), op("look", 3, 4, seen=0)], final(counter=1), id="count too old"
        ),
        pytest.param(
            "stale",
            1,
            [op("insert", 1, 2, value=1), op("find", 3, 4, value=1, seen=False)],
            final(rows={1}),
            id="row unseen",
        ),
        pytest.param(
            "stale",
            1,
            [op("insert", 1, 2, value=1), op("delete", 3, 4, value=1), op("find", 5, 6, value=1, seen=True)],
            final(rows=set()),
            id="deleted row seen",
        ),
        pytest.param(
            "miscounted",
            1,
            [op("insert", 1, 2, value=1), op("count", 3, 4, seen=0)],
            final(rows={1}),
            id="count too small",
        ),
        pytest.param(
            "miscounted",
            1,
            [op("insert", 1, 2, value=1), op("count", 3, 4, seen=2)],
            final(rows={1}),
            id="count too large",
        ),
        pytest.param(
            "miscounted", 1, [op("count", 3, 4, seen=9)], final(bases={"bookings": 10}), id="count without changes"
        ),
        pytest.param(
            "torn",
            1,
            [
                op("append", 1, NEVER, value=10, outcome="info", transaction=1),
                op("append", 1, NEVER, value=11, outcome="info", transaction=1),
            ],
            final([11]),
            id="half a transaction",
        ),
    ],
)
def test_each_anomaly_is_found(kind: str, times: int, history: list[Operation], state: Final) -> None:
    verdict = check(history, state)
    assert verdict.counts == {kind: times}, verdict.evidence
    assert verdict.evidence[0].kind == kind


def test_a_row_on_two_shards_is_duplicated_and_misrouted() -> None:
    history = [op("append", 1, 2, value=10)]
    state = replace(final(), lists={LIST: {"s1": [10], "s3": [10]}})
    assert check(history, state).counts == {"duplicated": 1, "misrouted": 1}


def test_a_row_that_only_a_stranger_holds_is_lost_and_misrouted() -> None:
    history = [op("append", 1, 2, value=10), op("insert", 1, 2, value=1)]
    state = replace(final(), lists={LIST: {"s3": [10]}}, rows={ROWS: {"s3": {1}}})
    assert check(history, state).counts == {"lost": 2, "misrouted": 2}


def test_an_unknown_write_may_be_there_or_not() -> None:
    unknown = [
        op("append", 1, NEVER, value=10, outcome="info"),
        op("add", 1, NEVER, outcome="info"),
        op("insert", 1, NEVER, value=1, outcome="info"),
    ]
    assert check(unknown, final([10], 1, {1})).ok
    assert check(unknown, final([], 0, set())).ok


def test_overlapping_operations_may_be_seen_in_either_order() -> None:
    history = [op("append", 1, 9, value=10), op("read", 2, 5, seen=[10]), op("read", 4, 8, seen=[])]
    assert check(history, final([10])).ok


def test_evidence_is_bounded_and_counts_are_not() -> None:
    history = [op("append", 1, 2, value=n) for n in range(100)]
    verdict = check(history, final([]))
    assert verdict.counts == {"lost": 100}
    assert len(verdict.evidence) == checker.EVIDENCE


def test_a_long_history_is_judged_in_seconds() -> None:
    """Linear: a history ten times as long takes ten times as long."""
    history: list[Operation] = []
    lists: dict[str, dict[str, list[int]]] = {}
    for number in range(200_000):
        key = f"logbook/N{number % 1000}/{number // 100_000}"
        elements = lists.setdefault(key, {"s1": []})["s1"]
        elements.append(number)
        history.append(op("append", 2 * number, 2 * number + 1, key=key, value=number, seen=elements))
    started = time.perf_counter()
    assert check(history, Final(owner=lambda key: "s1", lists=lists)).ok
    assert time.perf_counter() - started < 20
