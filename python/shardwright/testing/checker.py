"""Judges a history of acknowledged operations against what the servers hold at the end. Pure, and linear in both.

The workload is made so that a final state tells the order of all writes to a key: lists that are only appended to, with
every element used once; counters that only grow; rows that are inserted once and deleted at most once. So nothing has
to be searched: a read must have seen a prefix of the final list, and per key every operation must have seen at least
what was complete when it began.

What can be found (`Anomaly.kind`):

=============  =====================================================================================================
lost           an acknowledged write is not there
duplicated     a write is there twice, or one row lies on two shards
phantom        a write that was reported as failed, or that nobody sent, is there
torn           a transaction of unknown outcome left one of its writes and not another
forked         an answer that is no state the key ever had on its way to the final one
stale          an answer older than what was complete before the question (real-time order, per key)
miscounted     a count over all shards that no state in its time span had
misrouted      a row lies on a shard that does not own its key
=============  =====================================================================================================
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from shardwright.testing.history import Operation, Seen

T = TypeVar("T")

#: Evidence kept for each kind; the counts go on.
EVIDENCE = 20


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that must not be."""

    kind: str
    key: str
    message: str
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Final:
    """What the servers hold after the workload, row by row with the shard where it lies, owned or not.

    Attributes:
        lists: key -> shard -> elements.
        counters: key -> shard -> value. Every counter began at 0.
        rows: key -> shard -> row numbers.
        bases: table -> number of its rows at the start, for counts; the inserts and deletes of the history come on top.
        owner: the shard that owns a key, by the final shard map.
    """

    owner: Callable[[str], str]
    lists: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Iterable[int]]] = field(default_factory=dict)
    bases: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """The outcome: what was acknowledged, and what is wrong with it."""

    acknowledged_writes: int = 0
    acknowledged_reads: int = 0
    failed: int = 0
    unknown: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    evidence: list[Anomaly] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts.total()

    def report(self, kind: str, key: str, message: str, *operations: Operation, times: int = 1) -> None:
        """Count an anomaly and keep it as evidence while there is room."""
        if self.counts[kind] < EVIDENCE:
            self.evidence.append(Anomaly(kind, key, message, operations))
        self.counts[kind] += times


def check(operations: Iterable[Operation], final: Final) -> Verdict:
    """Judge a history.

    Args:
        operations: of all processes, in any order (`history.read`).
        final: what the servers hold when all processes have ended.

    Returns:
        The verdict; a verdict of a correct system is ``ok`` whatever the timing was.
    """
    verdict = Verdict()
    by_object: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    unknown: dict[tuple[str, int], list[Operation]] = defaultdict(list)
    for operation in operations:
        by_object[_OBJECT[operation.kind], operation.key].append(operation)
        if operation.outcome == "ok":
            if operation.writes:
                verdict.acknowledged_writes += 1
            else:
                verdict.acknowledged_reads += 1
        elif operation.outcome == "fail":
            verdict.failed += 1
        else:
            verdict.unknown += 1
            if operation.writes:
                unknown[operation.process, operation.transaction].append(operation)
    # What lies there is judged too where nobody is known to have touched it.
    for kind, found in (("list", final.lists), ("counter", final.counters), ("rows", final.rows)):
        for key in found:
            by_object.setdefault((kind, key), [])
    for key, shards in [*final.lists.items(), *final.counters.items()]:
        _check_places(verdict, key, list(shards), final.owner(key))
    for (kind, key), touched in by_object.items():
        if kind == "list":
            _check_list(verdict, key, touched, _owned(final.lists, key, final.owner, ()))
        elif kind == "counter":
            _check_counter(verdict, key, touched, _owned(final.counters, key, final.owner, 0))
        elif kind == "rows":
            _check_rows(verdict, key, touched, final.rows.get(key, {}), final.owner(key))
    _check_counts(verdict, by_object, final.bases)
    for transaction in unknown.values():
        _check_atomic(verdict, transaction, final)
    return verdict


_OBJECT = {
    "append": "list",
    "read": "list",
    "add": "counter",
    "look": "counter",
    "insert": "rows",
    "delete": "rows",
    "find": "rows",
    "count": "table",
}


def _owned(found: Mapping[str, Mapping[str, T]], key: str, owner: Callable[[str], str], missing: T) -> T:
    """What the owner holds. What lies elsewhere is not what a client would be answered, and counts as absent."""
    return found.get(key, {}).get(owner(key), missing)


def _check_places(verdict: Verdict, key: str, shards: Sequence[str], owner: str) -> None:
    for shard in shards:
        if shard != owner:
            verdict.report("misrouted", key, f"lies on {shard}, {owner} owns it")
    if len(shards) > 1:
        verdict.report("duplicated", key, f"lies on {', '.join(sorted(shards))}", times=len(shards) - 1)


def _check_order(verdict: Verdict, key: str, positions: list[tuple[Operation, int]]) -> None:
    """Real-time order: nobody may see less than what was complete when the question was put."""
    completed = sorted(
        ((op.returned, position) for op, position in positions if op.outcome == "ok"), key=lambda pair: pair[0]
    )
    floor, index = 0, 0
    for op, position in sorted(positions, key=lambda pair: pair[0].invoked):
        while index < len(completed) and completed[index][0] < op.invoked:
            floor = max(floor, completed[index][1])
            index += 1
        if position < floor or (op.writes and position == floor):
            verdict.report("stale", key, f"position {position} where {floor} was complete before", op)


def _check_list(verdict: Verdict, key: str, touched: list[Operation], elements: Sequence[int]) -> None:
    position: dict[int, int] = {}
    digests = [0]
    for index, element in enumerate(elements, start=1):
        if element in position:
            verdict.report("duplicated", key, f"element {element} at {position[element]} and at {index}")
        else:
            position[element] = index
        digests.append(zlib.crc32(array("q", (element,)).tobytes(), digests[-1]))
    foreign = set(position)
    positions: list[tuple[Operation, int]] = []
    for op in touched:
        if op.kind == "append":
            assert op.value is not None
            foreign.discard(op.value)
            at = position.get(op.value)
            if op.outcome == "ok" and at is None:
                verdict.report("lost", key, f"element {op.value} was acknowledged and is not there", op)
            elif op.outcome == "fail" and at is not None:
                verdict.report("phantom", key, f"element {op.value} was reported as failed and is there", op)
            elif at is not None:
                positions.append((op, at))
            if op.outcome == "ok" and isinstance(op.seen, Seen) and op.seen.last != op.value:
                verdict.report("forked", key, f"element {op.value} was not the last one after its own append", op)
        if op.outcome != "ok" or not isinstance(op.seen, Seen):
            continue
        if op.seen.length >= len(digests) or op.seen.digest != digests[op.seen.length]:
            verdict.report("forked", key, f"{op.seen.length} elements that are no prefix of the final list", op)
        elif op.kind == "read":
            positions.append((op, op.seen.length))
        elif op.value in position and position[op.value] != op.seen.length:
            verdict.report("forked", key, f"element {op.value} moved from {op.seen.length} to {position[op.value]}", op)
    for element in sorted(foreign):
        verdict.report("phantom", key, f"element {element} was never sent by anybody")
    _check_order(verdict, key, positions)


def _check_counter(verdict: Verdict, key: str, touched: list[Operation], value: int) -> None:
    adds = [op for op in touched if op.kind == "add"]
    acknowledged = sum(op.outcome == "ok" for op in adds)
    possible = acknowledged + sum(op.outcome == "info" for op in adds)
    if value < acknowledged:
        missing = acknowledged - value
        verdict.report("lost", key, f"counts {value} after {acknowledged} acknowledged additions", times=missing)
    elif value > possible:
        surplus = value - possible
        verdict.report("duplicated", key, f"counts {value}, at most {possible} were sent", times=surplus)
    first: dict[int, Operation] = {}
    positions: list[tuple[Operation, int]] = []
    for op in touched:
        if op.outcome != "ok" or op.seen is None:
            continue
        assert isinstance(op.seen, int)
        if op.seen > value:
            verdict.report("forked", key, f"was answered {op.seen}, ended at {value}", op)
            continue
        if op.kind == "add" and first.setdefault(op.seen, op) is not op:
            verdict.report("forked", key, f"two additions both made it {op.seen}", first[op.seen], op)
        positions.append((op, op.seen))
    _check_order(verdict, key, positions)


def _check_rows(
    verdict: Verdict, key: str, touched: list[Operation], found: Mapping[str, Iterable[int]], owner: str
) -> None:
    places: dict[int, list[str]] = defaultdict(list)
    for shard, numbers in found.items():
        for number in numbers:
            places[number].append(shard)
    inserts: dict[int, Operation] = {}
    deletes: dict[int, Operation] = {}
    for op in touched:
        assert op.value is not None
        if op.kind == "insert":
            inserts[op.value] = op
        elif op.kind == "delete" and op.outcome != "fail":
            deletes[op.value] = op
    for number, shards in places.items():
        _check_places(verdict, f"{key}/{number}", shards, owner)
        insert, delete = inserts.get(number), deletes.get(number)
        if insert is None:
            verdict.report("phantom", key, f"row {number} was never sent by anybody")
        elif insert.outcome == "fail":
            verdict.report("phantom", key, f"row {number} was reported as failed and is there", insert)
        elif delete is not None and delete.outcome == "ok":
            verdict.report("phantom", key, f"row {number} was deleted and is there", insert, delete)
    for number, insert in inserts.items():
        if insert.outcome == "ok" and number not in deletes and owner not in places.get(number, ()):
            verdict.report("lost", key, f"row {number} was acknowledged and is not there", insert)
    for op in touched:
        if op.kind == "find" and op.outcome == "ok" and op.value is not None:
            _check_find(verdict, key, op, inserts.get(op.value), deletes.get(op.value))


def _check_find(
    verdict: Verdict, key: str, find: Operation, insert: Operation | None, delete: Operation | None
) -> None:
    if find.seen:
        if insert is None or insert.outcome == "fail" or insert.invoked > find.returned:
            verdict.report("forked", key, f"row {find.value} was seen before anybody sent it", find)
        elif delete is not None and delete.outcome == "ok" and delete.returned < find.invoked:
            verdict.report("stale", key, f"row {find.value} was seen after it was deleted", delete, find)
    elif (
        insert is not None
        and (insert.outcome == "ok" and insert.returned < find.invoked)
        and (delete is None or delete.invoked > find.returned)
    ):
        verdict.report("stale", key, f"row {find.value} was not seen after it was inserted", insert, find)


def _check_counts(
    verdict: Verdict, by_object: Mapping[tuple[str, str], list[Operation]], bases: Mapping[str, int]
) -> None:
    """A count over all shards lies between what was certainly there and what can have been there in its time span."""
    for (kind, table), counts in by_object.items():
        if kind != "table":
            continue
        changes = [
            op
            for (what, key), touched in by_object.items()
            if what == "rows" and key.split("/", 1)[0] == table
            for op in touched
            if op.writes and op.outcome != "fail"
        ]
        begun = {k: sorted(op.invoked for op in changes if op.kind == k) for k in ("insert", "delete")}
        certain = {
            k: sorted(op.returned for op in changes if op.kind == k and op.outcome == "ok")
            for k in ("insert", "delete")
        }
        base = bases.get(table, 0)
        for op in counts:
            if op.outcome != "ok" or op.seen is None:
                continue
            assert isinstance(op.seen, int)
            least = base + bisect_left(certain["insert"], op.invoked) - bisect_right(begun["delete"], op.returned)
            most = base + bisect_right(begun["insert"], op.returned) - bisect_left(certain["delete"], op.invoked)
            if not least <= op.seen <= most:
                verdict.report("miscounted", table, f"counted {op.seen}, possible were {least} to {most}", op)


def _check_atomic(verdict: Verdict, transaction: list[Operation], final: Final) -> None:
    """All or nothing, where the outcome is unknown and presence can be told (appends)."""
    appends = [op for op in transaction if op.kind == "append"]
    there = [op.value in _owned(final.lists, op.key, final.owner, ()) for op in appends]
    if any(there) and not all(there):
        missing = appends[there.index(False)]
        verdict.report(
            "torn", missing.key, f"element {missing.value} is missing from a half-done transaction", *appends
        )
