"""What a test's statements do: forbidden things fail it where they are done, and everything can be recorded for `lint`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy.dialects import postgresql

import shardwright
from shardwright.session import events
from shardwright.session.explaining import Explanation

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
#: Code that is never the place where a statement was made.
_OURS = str(Path(shardwright.__file__).parent)
_THEIRS = ("sqlalchemy", "greenlet", "concurrent", "contextlib", "threading", "asyncio", "_pytest", "pluggy")


class Watch:
    """Listens while one test runs.

    Args:
        no_scatter: statements may go to one shard only.
        not_on: shards that may not be touched.
        fail: raises the test's failure.
    """

    def __init__(self, *, no_scatter: bool, not_on: Collection[str], fail: Callable[[str], Any]) -> None:
        self._no_scatter = no_scatter
        self._not_on = frozenset(not_on)
        self._fail = fail
        #: what was forbidden and done all the same
        self.found: list[str] = []
        self._anywhere = 0

    def __call__(self, event: events.Event) -> None:
        """Hear of an event."""
        if isinstance(event, events.StatementRouted):
            told = event.explanation
            self._anywhere += told.where == "any"
            if self._no_scatter and told.where in ("some", "everywhere"):
                why = f": {told.without_key}" if told.without_key else ""
                self._refuse(f"it scatters to shards {', '.join(told.shards)}{why}", text_of(event.statement))
            if told.where in ("one", "some", "everywhere") and (touched := self._not_on.intersection(told.shards)):
                self._refuse(f"it touches shard {', '.join(sorted(touched))}", text_of(event.statement))
        elif isinstance(event, events.StatementEnded):
            self._anywhere -= event.routed.explanation.where == "any"
        elif isinstance(event, events.TransactionBegun) and event.shard in self._not_on and not self._anywhere:
            # Objects that are flushed, and connections that are asked for, are no statements of the session's.
            self._refuse(f"it touches shard {event.shard}", "a transaction that begins there")

    def _refuse(self, why: str, what: str) -> None:
        place = place_of(sys._getframe(2))
        said = f"{why}, and the test is marked that it may not\n  statement: {what}\n  made at:   {place}"
        self.found.append(said)
        self._fail(said)


class Record:
    """Counts statements by text, fate and place, and writes them down for `shardwright lint --statements`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        #: the test that is running
        self.test = ""

    def __call__(self, event: events.Event) -> None:
        """Hear of an event."""
        if isinstance(event, events.StatementRouted):
            self.count(event.statement, event.explanation)
        elif isinstance(event, events.FlushRefused):
            refusal = {"code": event.error.code, "kind": event.error.kind, "reason": event.error.message}
            self._add({"statement": "objects of the unit of work", "where": "refused", "refusal": refusal})

    def count(self, statement: Any, told: Explanation) -> None:
        """Count a statement.

        Args:
            statement: what was executed.
            told: where it went, or would have gone.
        """
        refusal = told.refusal
        self._add(
            {
                "statement": text_of(statement),
                "where": told.where,
                "route": told.route,
                "writes": told.writes,
                "without_key": told.without_key,
                "refusal": refusal
                and {
                    "code": refusal.code,
                    "kind": refusal.kind,
                    "reason": refusal.reason,
                    "way_out": refusal.way_out,
                },
            }
        )

    def _add(self, line: dict[str, Any]) -> None:
        self._counts[json.dumps({**line, "at": place_of(sys._getframe(3)), "test": self.test})] += 1

    def write(self, path: Path) -> None:
        """Append what was counted, a line of JSON each; several processes may append to one file.

        Args:
            path: the file.
        """
        text = "".join(f"{line[:-1]}, {json.dumps('count')}: {count}}}\n" for line, count in self._counts.items())
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        self._counts.clear()


def text_of(statement: Any) -> str:
    """A statement in one line, with placeholders in place of values.

    Args:
        statement: what was executed.
    """
    try:
        text = str(statement.compile(dialect=_DIALECT)) if hasattr(statement, "compile") else str(statement)
    except Exception as error:  # noqa: BLE001 - a statement that cannot be compiled is about to fail by itself
        return f"{type(statement).__name__} that cannot be compiled: {error}"
    return " ".join(text.split())


def place_of(frame: FrameType | None) -> str:
    """The nearest place in the application's or the test's own code: file:line, and the function.

    Args:
        frame: where to begin.
    """
    for one in _frames(frame):
        name = str(one.f_globals.get("__name__", ""))
        file = one.f_code.co_filename
        if file.startswith(_OURS) or name.partition(".")[0] in _THEIRS:
            continue
        with contextlib.suppress(ValueError):
            file = str(Path(file).relative_to(Path.cwd()))
        return f"{file}:{one.f_lineno} in {one.f_code.co_name}"
    return "an unknown place"


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames below one, also those of a task that waits for SQLAlchemy's greenlet."""
    greenlet = sys.modules.get("greenlet")
    parent: Any = greenlet.getcurrent().parent if greenlet is not None else None
    while frame is not None or parent is not None:
        while frame is not None:
            yield frame
            frame = frame.f_back
        if parent is not None:
            frame, parent = parent.gr_frame, parent.parent
