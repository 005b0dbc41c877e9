"""Sets of points as PostgreSQL's `int8multirange` has them: sorted, disjoint, half-open pieces.

The operators give what the server's own operators give (`tests/agreement` compares the two), so a set can be
computed here and stored there, or the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from shardwright.errors import BadRange

if TYPE_CHECKING:
    from shardwright.routing.shard_map import Keyspace

#: `(lo, hi)`: the points from lo up to and without hi; None is unbounded.
Piece: TypeAlias = tuple[int | None, int | None]

INT8_MIN: Final = -(2**63)
INT8_MAX: Final = 2**63 - 1

_INFINITY: Final = float("inf")
_PIECE: Final = re.compile(r"\s*([\[(])\s*([+-]?\d+)?\s*,\s*([+-]?\d+)?\s*([\])])\s*")


def _low(piece: Piece) -> int | float:
    return -_INFINITY if piece[0] is None else piece[0]


def _high(piece: Piece) -> int | float:
    return _INFINITY if piece[1] is None else piece[1]


def _piece(low: int | float, high: int | float) -> Piece:
    return (low if isinstance(low, int) else None, high if isinstance(high, int) else None)


@dataclass(frozen=True, slots=True)
class Multirange:
    """An immutable set of int8 points: `Multirange(((0, 5), (9, None)))` is `{[0,5),[9,)}`.

    Pieces may come in any order, overlap and touch; they are kept sorted and joined, so equal sets are equal values.

    Args:
        pieces: `(lo, hi)` pairs, each `[lo, hi)`; None is unbounded.

    Raises:
        BadRange: a piece is empty or inverted, or a bound is no int8.
    """

    pieces: tuple[Piece, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", _joined(_checked(piece) for piece in self.pieces))

    @classmethod
    def parse(cls, text: str) -> Multirange:
        """Read PostgreSQL's text form, or one range without the braces: `{[0,5),[9,)}`, `[0,5)`.

        Args:
            text: an int8multirange or an int8range; inclusive upper and exclusive lower bounds are understood.

        Returns:
            The set.

        Raises:
            BadRange: the text is none, or one of its ranges is empty or inverted.
        """
        body = text.strip()
        if body.startswith("{") and body.endswith("}"):
            body = body[1:-1]
            if not body.strip():
                return cls()
        pieces: list[Piece] = []
        position = 0
        while True:
            match = _PIECE.match(body, position)
            if match is None:
                raise BadRange(
                    f"{text!r} is no range of points: expected something like [0,512) or {{[0,5),[9,)}}",
                    fix="write ranges as [lo,hi), without hi itself; leave a bound out where there is none",
                )
            pieces.append(_half_open(*match.groups()))
            position = match.end()
            if position == len(body):
                return cls(tuple(pieces))
            if body[position] != ",":
                raise BadRange(f"{text!r} is no range of points: expected a comma at character {position + 1}")
            position += 1

    def literal(self) -> str:
        """The set in PostgreSQL's own text form, as `int8multirange::text` gives it."""
        return "{" + ",".join(_text(piece) for piece in self.pieces) + "}"

    def count(self) -> int | None:
        """How many points there are; None when a piece is unbounded."""
        total = 0
        for lo, hi in self.pieces:
            if lo is None or hi is None:
                return None
            total += hi - lo
        return total

    def bounds_within(self, keyspace: Keyspace) -> Multirange:
        """The same set with bounds that a keyspace can have: open ends of a hash keyspace become its first and last bucket.

        Args:
            keyspace: where the points are meant.

        Returns:
            The set; for a range keyspace it is unchanged.

        Raises:
            BadRange: the set is empty, or a written bound lies outside the keyspace.
        """
        if not self.pieces:
            raise BadRange("the range is empty", keyspace=keyspace.name)
        whole = keyspace.points()
        for piece in self.pieces:
            written = tuple(bound for bound in piece if bound is not None)
            if keyspace.buckets is not None and any(not 0 <= bound <= keyspace.buckets for bound in written):
                raise BadRange(
                    f"{_text(piece)} is outside keyspace {keyspace.name}, whose points are {whole.literal()}",
                    keyspace=keyspace.name,
                )
        inside = self & whole
        if not inside:
            raise BadRange(
                f"{self.literal()} holds no point of keyspace {keyspace.name}, whose points are {whole.literal()}",
                keyspace=keyspace.name,
            )
        return inside

    def __contains__(self, point: object) -> bool:
        return isinstance(point, int) and any(_low(piece) <= point < _high(piece) for piece in self.pieces)

    def __bool__(self) -> bool:
        return bool(self.pieces)

    def __or__(self, other: Multirange) -> Multirange:
        return Multirange(self.pieces + other.pieces)

    def __and__(self, other: Multirange) -> Multirange:
        found: list[Piece] = []
        mine, theirs = 0, 0
        while mine < len(self.pieces) and theirs < len(other.pieces):
            one, two = self.pieces[mine], other.pieces[theirs]
            low, high = max(_low(one), _low(two)), min(_high(one), _high(two))
            if low < high:
                found.append(_piece(low, high))
            # The piece that ends first can meet nothing more.
            if _high(one) <= _high(two):
                mine += 1
            else:
                theirs += 1
        return Multirange(tuple(found))

    def __sub__(self, other: Multirange) -> Multirange:
        found: list[Piece] = []
        for piece in self.pieces:
            low, high = _low(piece), _high(piece)
            for cut in other.pieces:
                if _high(cut) <= low:
                    continue
                if _low(cut) >= high:
                    break
                if _low(cut) > low:
                    found.append(_piece(low, _low(cut)))
                low = _high(cut)
            if low < high:
                found.append(_piece(low, high))
        return Multirange(tuple(found))

    def __str__(self) -> str:
        return self.literal()


def _checked(piece: Piece) -> Piece:
    lo, hi = piece
    for bound in piece:
        if bound is not None and (type(bound) is not int or not INT8_MIN <= bound <= INT8_MAX):
            raise BadRange(f"{bound!r} is no bound of a range: an integer from -2**63 to 2**63 - 1, or None, is")
    if lo is not None and hi is not None and lo >= hi:
        raise BadRange(f"the range {_text(piece)} is empty: ranges are half-open, [lo,hi) with lo below hi")
    return piece


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    joined: list[Piece] = []
    for piece in sorted(pieces, key=_low):
        if joined and _low(piece) <= _high(joined[-1]):
            joined[-1] = _piece(_low(joined[-1]), max(_high(joined[-1]), _high(piece)))
        else:
            joined.append(piece)
    return tuple(joined)


def _half_open(opening: str, lo: str | None, hi: str | None, closing: str) -> Piece:
    low, high = (None if bound is None else int(bound) for bound in (lo, hi))
    if low is not None and opening == "(":
        low += 1
    if high is not None and closing == "]":
        high += 1
    return low, high


def _text(piece: Piece) -> str:
    lo, hi = piece
    return ("(" if lo is None else f"[{lo}") + "," + ("" if hi is None else str(hi)) + ")"
