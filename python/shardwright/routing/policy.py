"""What a table says about time: its column, the windows that its rows are put into, and how long they are kept. Pure.

A policy is a value that travels: from ``Table.info`` or a TOML file into the catalog, and from there to whoever plans.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from shardwright import errors

#: Units of a span, from short to long.
UNITS: Final = ("hour", "day", "week", "month", "quarter", "year")

#: What the column's values are. None in a policy: as the column's type says (timestamptz, timestamp, date; uuid is
#: uuid7). Integers must say which.
KEYS: Final = ("timestamptz", "timestamp", "date", "epoch_s", "epoch_ms", "epoch_us", "uuid7", "snowflake")

_SPAN = re.compile(r"\s*(\d{1,6})\s+(hour|day|week|month|quarter|year)s?\s*", re.IGNORECASE)


@dataclass(frozen=True, order=False)
class Span:
    """A length of calendar time, such as 2 weeks. A month is a calendar month, a day a day of the policy's zone."""

    count: int
    #: One of `UNITS`.
    unit: str

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read ``"1 month"``, ``"12 months"``, ``"6 hours"``.

        Args:
            text: a number from 1 and a unit of `UNITS`, singular or plural.

        Raises:
            BadDeclaration: it is no such text.
        """
        found = _SPAN.fullmatch(text) if isinstance(text, str) else None
        if found is None or int(found[1]) == 0:
            raise errors.BadDeclaration(
                f"not a span of time: {text!r}",
                fix=f'a number and a unit, such as "1 month"; units: {", ".join(UNITS)}',
            )
        return cls(int(found[1]), found[2].lower())

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Policy:
    """The windows of one table. Made by `shardwright.time_partitioned` or read from a TOML file.

    Spans are kept as text, as they were given; the properties give them as values.
    """

    #: Name of the column in the database.
    column: str
    #: Length of a window: ``"1 month"``.
    every: str
    #: How long rows are kept after their window has ended: ``"12 months"``. None: for ever.
    keep: str | None = None
    #: How many whole windows exist ahead of the one of now.
    ahead: int = 3
    #: One of `KEYS`; None where the column's type says it.
    key: str | None = None
    #: IANA zone in which days, weeks, months, quarters and years begin.
    zone: str = "UTC"
    #: A moment at which some window begins, as ISO 8601 without offset, in `zone`; None: the unit's own beginning
    #: (1970-01-01, for weeks Monday 1970-01-05).
    anchor: str | None = None
    #: Between the detaching of a window and its dropping: ``"7 days"``. ``None``: dropped in the next run.
    grace: str | None = "7 days"
    #: Directory or URI that a window is archived to before it is dropped; None: not archived.
    archive: str | None = None
    #: Guard partitions at both ends, for rows that no window takes. Without them such rows are refused.
    guards: bool = True
    #: Of a snowflake key: Unix milliseconds of its year zero, and the bits below the milliseconds.
    snowflake_epoch: int = 0
    snowflake_bits: int = 22

    def __post_init__(self) -> None:
        spans = [self.every, *(text for text in (self.keep, self.grace) if text is not None)]
        for text in spans:
            Span.parse(text)

        def refuse(what: str, fix: str) -> errors.BadDeclaration:
            return errors.BadDeclaration(f"the policy of column {self.column} {what}", fix=fix)

        if not isinstance(self.column, str) or not self.column:
            raise errors.BadDeclaration(
                "a policy names no column", fix='time_partitioned("created_at", every="1 month")'
            )
        if isinstance(self.ahead, bool) or not isinstance(self.ahead, int) or not 1 <= self.ahead <= 1000:
            raise refuse(f"has ahead={self.ahead!r}", "a number of windows from 1 to 1000")
        if self.key is not None and self.key not in KEYS:
            raise refuse(f"has key={self.key!r}", f"one of {', '.join(KEYS)}")
        try:
            zoneinfo.ZoneInfo(self.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise refuse(f"has zone={self.zone!r}", 'an IANA name such as "UTC" or "Europe/Berlin"') from error
        if self.anchor is not None:
            try:
                aware = datetime.fromisoformat(self.anchor).tzinfo is not None
            except (TypeError, ValueError):
                aware = True
            if aware:
                raise refuse(f"has anchor={self.anchor!r}", "ISO 8601 without an offset, such as 2026-01-05T00:00")
        if not 1 <= self.snowflake_bits <= 41 or self.snowflake_epoch < 0:
            raise refuse("describes no snowflake", "epoch in milliseconds from 0, and 1 to 41 bits below them")

    @cached_property
    def window(self) -> Span:
        """Length of a window."""
        return Span.parse(self.every)

    @cached_property
    def kept(self) -> Span | None:
        """How long a window is kept after its end; None: for ever."""
        return Span.parse(self.keep) if self.keep is not None else None

    @cached_property
    def grace_span(self) -> Span | None:
        """Between detaching and dropping; None: none."""
        return Span.parse(self.grace) if self.grace is not None else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value without what is the default; `from_json` reads it back."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Policy:
        """The policy that `to_json`, or a person in a TOML file, wrote.

        Args:
            value: its fields by name.

        Raises:
            BadDeclaration: a field is unknown, missing or wrong.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise errors.BadDeclaration(
                f"a policy has no {', '.join(unknown)}", fix=f"its fields are {', '.join(sorted(known))}"
            )
        if missing := sorted({"column", "every"} - set(value)):
            raise errors.BadDeclaration(
                f"a policy lacks {' and '.join(missing)}", fix='such as column = "created_at", every = "1 month"'
            )
        return cls(**value)
