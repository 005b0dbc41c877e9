"""What clients did and what they were answered: one append-only file a process, merged afterwards.

Every operation belongs to a transaction, and a transaction has one outcome for all of its operations:

- ``ok``: COMMIT was acknowledged;
- ``fail``: it certainly did not happen (an error before COMMIT was sent, or a refusal by the server);
- ``info``: nobody knows (the answer to COMMIT was lost, or the process died meanwhile).

A transaction that writes is noted before its first statement leaves, so that the death of a process turns it into
``info`` and never into a write that nobody sent. Times are ``time.monotonic_ns()``: one clock, CLOCK_MONOTONIC, for all
processes of one machine. A history is therefore the work of one machine.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "fail", "info"]
Kind = Literal["append", "read", "add", "look", "insert", "delete", "find", "count"]

#: Kinds that leave something behind. The others are answers only.
WRITES: frozenset[Kind] = frozenset({"append", "add", "insert", "delete"})


@dataclass(frozen=True, slots=True)
class Seen:
    """A list as a client saw it, without its bulk: enough to compare it with a prefix of the final one."""

    length: int
    last: int | None
    digest: int

    @classmethod
    def of(cls, elements: Sequence[int]) -> Seen:
        """The observation of these elements; the digest is a CRC-32 over them in order."""
        return cls(len(elements), elements[-1] if elements else None, zlib.crc32(array("q", elements).tobytes()))


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one transaction, with its own start, and its transaction's end and outcome (ns, monotonic).

    A key is ``table/shard key`` with ``/more`` behind it where the table needs more; of a count it is the table alone.

    ========  =====================  ==========================================  =======================
    kind      key                    value                                       seen
    ========  =====================  ==========================================  =======================
    append    a list                 the element, unique in the whole history    ``Seen`` after it
    read      a list                 None                                        ``Seen``
    add       a counter              None (one is added)                         the count after it
    look      a counter              None                                        the count
    insert    a set of rows          the row's number, used once in the history  None
    delete    a set of rows          the row's number                            None
    find      a set of rows          the row's number                            whether it was there
    count     a table                None                                        the number of its rows
    ========  =====================  ==========================================  =======================
    """

    process: str
    transaction: int
    kind: Kind
    key: str
    value: int | None
    seen: Seen | int | bool | None
    outcome: Outcome
    invoked: int
    returned: int
    #: Of the error that ended the transaction, or the error's class where it has none.
    sqlstate: str | None = None
    shard: str | None = None
    #: True when the client did not try again: for its application the transaction has failed.
    gave_up: bool = False

    @property
    def writes(self) -> bool:
        """Whether the operation leaves something behind."""
        return self.kind in WRITES


@dataclass(frozen=True, slots=True)
class Intent:
    """What an operation is going to do."""

    kind: Kind
    key: str
    value: int | None = None


class Recorder:
    """The history file of one process (or thread): no two may share one.

    A line goes to the operating system with one ``write``, so that nothing is lost when the process is killed. (A
    machine that loses power loses more; histories are not for that.)
    """

    def __init__(self, path: Path, process: str) -> None:
        """Open the file for appending, or make it; ``process`` names the client in the merged history."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = 0
        self._pending: dict[int, tuple[int, Sequence[Intent]]] = {}
        self._write({"process": process})

    def _write(self, line: Any) -> None:
        os.write(self._fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def begin(self, intents: Sequence[Intent]) -> int:
        """Note what a transaction is about to do, just before its first statement; returns its number."""
        self._number += 1
        now = time.monotonic_ns()
        if any(intent.kind in WRITES for intent in intents):
            self._write([self._number, now, [[i.kind, i.key, i.value] for i in intents]])
        self._pending[self._number] = (now, intents)
        return self._number

    def end(
        self,
        number: int,
        outcome: Outcome,
        seen: Sequence[Seen | int | bool | None] = (),
        *,
        started: Sequence[int] = (),
        sqlstate: str | None = None,
        shard: str | None = None,
        gave_up: bool = False,
    ) -> None:
        """Note how a transaction ended.

        Args:
            number: what `begin` returned.
            outcome: of all its operations.
            seen: what each operation saw, in the order of the intents.
            started: when each operation's statement was sent (``time.monotonic_ns()``). A later start makes the check
                of real-time order sharper. Give it under READ COMMITTED only: the other levels answer from the
                snapshot of the transaction's first statement. The transaction's own start where it is missing.
            sqlstate: of the error that ended it, or the error's class.
            shard: where it ran, when it is known.
            gave_up: True when the client does not try again.
        """
        returned = time.monotonic_ns()
        invoked, intents = self._pending.pop(number)
        values = [[s.length, s.last, s.digest] if isinstance(s, Seen) else s for s in seen]
        plain = [[i.kind, i.key, i.value] for i in intents]
        self._write([number, invoked, plain, returned, outcome, values, list(started), sqlstate, shard, gave_up])

    def close(self) -> None:
        """Close the file. Transactions that have begun and not ended stay unknown (``info``)."""
        os.close(self._fd)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read(paths: Iterable[Path]) -> list[Operation]:
    """Merge history files into one list, in the order of invocation.

    Args:
        paths: files written by `Recorder`. A last line that was cut short by the death of its process is ignored.

    Returns:
        Every operation once; those without an end are ``info`` and return at the end of time.

    Raises:
        ValueError: a line that is not the last one cannot be understood.
    """
    merged = [operation for path in paths for operation in _read_one(path)]
    merged.sort(key=lambda operation: operation.invoked)
    return merged


#: The return time of an operation that never returned: after all others.
NEVER = 2**63 - 1


def _read_one(path: Path) -> Iterator[Operation]:
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a line that was cut short
    if not lines:
        return
    process: str = json.loads(lines[0])["process"]
    begun: dict[int, list[Any]] = {}
    for line in lines[1:]:
        entry = json.loads(line)
        if len(entry) == 3:
            begun[entry[0]] = entry
            continue
        begun.pop(entry[0], None)
        yield from _operations(process, *entry)
    for number, invoked, intents in begun.values():
        yield from _operations(process, number, invoked, intents, NEVER, "info", [], [], None, None, False)


def _operations(
    process: str,
    number: int,
    invoked: int,
    intents: list[list[Any]],
    returned: int,
    outcome: Outcome,
    seen: list[Any],
    started: list[int],
    sqlstate: str | None,
    shard: str | None,
    gave_up: bool,
) -> Iterator[Operation]:
    for index, (kind, key, value) in enumerate(intents):
        answer = seen[index] if index < len(seen) else None
        if isinstance(answer, list):
            answer = Seen(*answer)
        start = started[index] if index < len(started) else invoked
        yield Operation(process, number, kind, key, value, answer, outcome, start, returned, sqlstate, shard, gave_up)
