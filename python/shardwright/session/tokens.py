"""Where a reader of pages stands, as a text that outlives its process. It is opaque, and means nothing to others."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shardwright import errors
from shardwright.routing.clauses import DIALECT

#: How values are written, by the name of their type.
_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bool": (bool, bool, bool),
    "int": (int, str, int),
    "str": (str, str, str),
    "float": (float, repr, float),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "decimal": (Decimal, str, Decimal),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}


@dataclass(frozen=True)
class Position:
    """Where the next page begins."""

    #: the points that are still to be read, first the ones where the reader is; none where all is read in one order
    segments: tuple[str, ...]
    #: the sort keys of the last row that was given there; None at the beginning
    values: tuple[Any, ...] | None

    def following(self, last: Sequence[Any] | None) -> Position | None:
        """Where the page behind begins.

        Args:
            last: the sort keys of the last row; None where there are no more rows here.

        Returns:
            None where there is nothing behind.
        """
        if last is not None:
            return Position(self.segments, tuple(last))
        rest = self.segments[1:]
        return Position(rest, None) if rest else None

    def token(self, mark: str) -> str:
        """The position as a text.

        Args:
            mark: tells the statement from others.
        """
        values = None if self.values is None else [_written(value) for value in self.values]
        text = json.dumps([1, mark, self.segments, values], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str, mark: str, width: int) -> Position:
        """The position that a text stands for.

        Args:
            token: the text.
            mark: tells the statement from others.
            width: how many sort keys it has.

        Raises:
            BadOption: it is no such text, or one of another statement.
        """
        try:
            version, whose, segments, values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            found = None if values is None else tuple(_TYPES[kind][2](value) for kind, value in values)
        except (ValueError, TypeError, KeyError, binascii.Error):
            raise _unknown("it is no page's") from None
        if version != 1 or whose != mark or (found is not None and len(found) != width):
            raise _unknown("it is a page's of another statement, key or order")
        return cls(tuple(segments), found)


def fingerprint(statement: Any, *more: str) -> str:
    """What tells a statement with its values from others.

    Args:
        statement: the statement.
        more: what else makes a difference.
    """
    compiled = statement.compile(dialect=DIALECT)
    said = "\0".join((str(compiled), repr(sorted(compiled.params.items())), *more))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _written(value: Any) -> tuple[str, Any]:
    for name, (kind, write, _) in _TYPES.items():
        if isinstance(value, kind):
            return name, write(value)
    raise errors.BadOption(
        f"pages cannot go on behind a value of type {type(value).__name__}", fix="order by columns of simple types"
    )


def _unknown(why: str) -> errors.BadOption:
    return errors.BadOption(
        f"nothing is known of the position that was given as after=: {why}",
        fix="give Page.after of a call with the same arguments",
    )
