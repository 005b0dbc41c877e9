"""Correct histories of any timing must pass, and one fault put into such a history must be found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shardwright.testing.checker import Final, check
from shardwright.testing.history import NEVER, Kind, Operation, Outcome, Seen

KEYS = ("N1", "N2")
KINDS: tuple[Kind, ...] = ("append", "read", "add", "look", "insert", "delete", "find", "count")


@dataclass
class World:
    """A correct system on one clock: each operation takes effect at one moment between its call and its answer."""

    lists: dict[str, list[int]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    rows: dict[str, set[int]] = field(default_factory=dict)

    def apply(self, kind: Kind, key: str, value: int | None) -> Any:
        if kind in ("append", "read"):
            elements = self.lists.setdefault(key, [])
            if kind == "append":
                assert value is not None
                elements.append(value)
            return Seen.of(elements)
        if kind in ("add", "look"):
            self.counters[key] = self.counters.get(key, 0) + (kind == "add")
            return self.counters[key]
        if kind == "count":
            return 100 + sum(len(rows) for rows in self.rows.values())
        assert value is not None
        rows = self.rows.setdefault(key, set())
        if kind == "insert":
            rows.add(value)
        elif kind == "delete":
            rows.discard(value)
        else:
            return value in rows
        return None

    def final(self) -> Final:
        return Final(
            owner=lambda key: "s1",
            lists={key: {"s1": list(elements)} for key, elements in self.lists.items()},
            counters={key: {"s1": value} for key, value in self.counters.items()},
            rows={key: {"s1": set(numbers)} for key, numbers in self.rows.items()},
            bases={"bookings": 100},
        )


@dataclass
class Open:
    """An operation that has been called and not answered yet."""

    kind: Kind
    key: str
    value: int | None
    invoked: int
    applied: bool = False
    seen: Any = None


@st.composite
def correct_histories(draw: st.DrawFn) -> tuple[list[Operation], Final]:
    """Up to four clients whose operations overlap as hypothesis likes it."""
    world, history = World(), []
    open_operations: dict[int, Open] = {}
    inserted: list[tuple[str, int]] = []
    deleted: set[int] = set()
    number = 0

    def answer(client: int, outcome: Outcome, now: int) -> None:
        one = open_operations.pop(client)
        seen = one.seen if outcome == "ok" else None
        history.append(Operation(str(client), number, one.kind, one.key, one.value, seen, outcome, one.invoked, now))

    for now in range(draw(st.integers(0, 60))):
        client = draw(st.integers(0, 3))
        one = open_operations.get(client)
        if one is None:
            number += 1
            kind = draw(st.sampled_from(KINDS))
            key, value = draw(st.sampled_from(KEYS)), number
            if kind in ("delete", "find"):
                # A row is deleted once, and not before it is there: else the final state would not tell the order.
                candidates = [
                    (path, row)
                    for path, row in inserted
                    if kind == "find" or (row not in deleted and row in world.rows.get(f"bookings/{path}", ()))
                ]
                if not candidates:
                    continue
                key, value = draw(st.sampled_from(candidates))
            if kind == "delete":
                deleted.add(value)
            if kind == "insert":
                inserted.append((key, value))
            path = {"append": f"logbook/{key}/0", "read": f"logbook/{key}/0", "count": "bookings"}.get(
                kind, f"flights/{key}/1" if kind in ("add", "look") else f"bookings/{key}"
            )
            carried = value if kind in ("append", "insert", "delete", "find") else None
            open_operations[client] = Open(kind, path, carried, now)
        elif not one.applied and draw(st.booleans()):
            one.seen, one.applied = world.apply(one.kind, one.key, one.value), True
        elif one.applied:
            answer(client, draw(st.sampled_from(("ok", "ok", "ok", "info"))), now)
        elif draw(st.booleans()):
            answer(client, draw(st.sampled_from(("fail", "info"))), now)
    for client in list(open_operations):
        answer(client, "info", NEVER)
    history.sort(key=lambda operation: operation.invoked)
    return history, world.final()


# a history without the operation that is to be tampered with says nothing; many are so
SOME_DO_NOT_SERVE = settings(suppress_health_check=[HealthCheck.filter_too_much])


@settings(max_examples=500)
@given(correct_histories())
def test_correct_histories_pass(case: tuple[list[Operation], Final]) -> None:
    verdict = check(*case)
    assert verdict.ok, verdict.evidence


@SOME_DO_NOT_SERVE
@given(correct_histories(), st.data())
def test_a_dropped_append_is_found(case: tuple[list[Operation], Final], data: st.DataObject) -> None:
    history, final = case
    victims = [o for o in history if o.kind == "append" and o.outcome == "ok"]
    assume(victims)
    victim = data.draw(st.sampled_from(victims))
    lists = {k: {s: [e for e in v if e != victim.value] for s, v in found.items()} for k, found in final.lists.items()}
    assert check(history, replace(final, lists=lists)).counts["lost"] == 1


@SOME_DO_NOT_SERVE
@given(correct_histories(), st.data())
def test_a_dropped_row_is_found(case: tuple[list[Operation], Final], data: st.DataObject) -> None:
    history, final = case
    gone = {o.value for o in history if o.kind == "delete" and o.outcome != "fail"}
    victims = [o for o in history if o.kind == "insert" and o.outcome == "ok" and o.value not in gone]
    assume(victims)
    victim = data.draw(st.sampled_from(victims))
    rows = {k: {s: set(v) - {victim.value} for s, v in found.items()} for k, found in final.rows.items()}
    assert check(history, replace(final, rows=rows)).counts["lost"] == 1


@SOME_DO_NOT_SERVE
@given(correct_histories(), st.data())
def test_an_answer_from_the_past_is_found(case: tuple[list[Operation], Final], data: st.DataObject) -> None:
    """A reader that is kept on the old shard: it goes on seeing what was there before the last acknowledged append."""
    history, final = case
    appends = [o for o in history if o.kind == "append" and o.outcome == "ok"]
    assume(appends)
    last = data.draw(st.sampled_from(appends))
    elements = final.lists[last.key]["s1"]
    assert last.value is not None
    before = Seen.of(elements[: elements.index(last.value)])
    stale = Operation("late", 1, "read", last.key, None, before, "ok", NEVER - 2, NEVER - 1)
    assert check([*history, stale], final).counts["stale"] == 1


@SOME_DO_NOT_SERVE
@given(correct_histories(), st.data())
def test_a_write_that_was_sent_twice_is_found(case: tuple[list[Operation], Final], data: st.DataObject) -> None:
    history, final = case
    filled = [key for key, found in final.lists.items() if found["s1"]]
    assume(filled)
    key = data.draw(st.sampled_from(filled))
    elements = [*final.lists[key]["s1"]]
    elements.append(data.draw(st.sampled_from(elements)))
    doubled = replace(final, lists={**final.lists, key: {"s1": elements}})
    assert check(history, doubled).counts["duplicated"] == 1
