"""Sorted rows of several shards become one sequence, in the order that one database would give."""

from __future__ import annotations

import datetime
import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from shardwright.routing.merging import OrderKey, refusal

Row = tuple[Any, ...]
#: Gives the place of each text, read as a value of a type under a collation, in a database's order.
Ranks = Callable[[Sequence[str], str, "str | None"], list[int]]

_INTEGERS = frozenset({20, 21, 23, 26})
_FLOATS = frozenset({700, 701, 1700})
_TIMESTAMPTZ = 1184
#: bool, bytea, date, time, timestamp, uuid: Python orders their values as PostgreSQL does.
_PLAIN = frozenset({16, 17, 1082, 1083, 1114, 2950})

#: Types whose values are ordered by their texts, under a collation.
_TEXTS = frozenset({"name", "text", "character varying"})
#: Collations that order texts by code point, as Python does (the databases are UTF8).
_BY_CODE_POINT = frozenset({'"C"', '"POSIX"', '"C.utf8"', '"C.UTF-8"', "ucs_basic", "pg_c_utf8", "pg_unicode_fast"})


class _Descending:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(other.value == self.value)

    __hash__ = None  # type: ignore[assignment]


class Merger:
    """Puts sorted rows together.

    Args:
        order: the keys by which they are sorted.
        types: the type oid of each column that the shards send.
        default_by_code_point: whether the databases' default collation orders texts by code point.
        ranks: asks a database for the order of values that Python cannot compare as it does.
    """

    def __init__(
        self, order: Sequence[OrderKey], types: Sequence[int], default_by_code_point: bool, ranks: Ranks
    ) -> None:
        self._order = order
        self._types = types
        self._default_by_code_point = default_by_code_point
        self._ranks = ranks

    @property
    def has_order(self) -> bool:
        """Whether the rows have an order at all."""
        return bool(self._order)

    def in_order(self, parts: Sequence[Sequence[Row]]) -> Iterator[Row]:
        """The rows of all shards, in order.

        Args:
            parts: the rows of each shard, in the order that the statement asks for.

        Raises:
            NotMergeable: the order of a type cannot be reproduced here.
        """
        if not self._order or len(parts) == 1:
            return (row for part in parts for row in part)
        keyed = [list(zip(keys, part, strict=True)) for keys, part in zip(self.keys(parts), parts, strict=True)]
        return (row for _, row in heapq.merge(*keyed, key=lambda pair: pair[0]))

    def keys(self, parts: Sequence[Sequence[Row]]) -> list[list[Any]]:
        """A key for each row, by which rows of these parts compare with each other as the database compares them.

        Args:
            parts: rows of each shard, sorted.

        Raises:
            NotMergeable: the order of a type cannot be reproduced here.
        """
        made = [(one, *self._comparable(one, parts)) for one in self._order]

        def key(row: Row) -> tuple[Any, ...]:
            found: list[Any] = []
            for one, pick, comparable in made:
                value = pick(row)
                if value is None:
                    found += [0 if one.nulls_first else 1, 0]
                else:
                    value = comparable(value)
                    found += [1 if one.nulls_first else 0, _Descending(value) if one.descending else value]
            return tuple(found)

        keyed = [[key(row) for row in part] for part in parts]
        for part in keyed:
            # What a shard calls sorted must be sorted here: else its order is not the one that we can continue.
            if any(later < earlier for earlier, later in pairwise(part)):
                raise refusal("a shard orders its rows in another way", 'order texts by .collate("C")')
        return keyed

    def _comparable(
        self, one: OrderKey, parts: Sequence[Sequence[Row]]
    ) -> tuple[Callable[[Row], Any], Callable[[Any], Any]]:
        """How to pick a key's value out of a row, and what makes it comparable as PostgreSQL compares it."""
        at, shape, oid = one.at, one.shape, self._types[one.at]
        if oid in _INTEGERS or oid in _PLAIN:
            return lambda row: row[at], lambda value: value
        if oid in _FLOATS:
            # NaN equals itself and is greater than everything.
            return lambda row: row[at], lambda value: (1, 0) if value != value else (0, value)
        if oid == _TIMESTAMPTZ:
            # Two times of one zone are compared by the clock on its wall, which is wrong in one hour of the year.
            return lambda row: row[at], lambda value: value.astimezone(datetime.UTC)
        if shape is None:
            raise refusal(f"the order of a value of type oid {oid} cannot be reproduced outside of the database")
        return lambda row: row[shape][0], self._by_rank(shape, parts)

    def _by_rank(self, shape: int, parts: Sequence[Sequence[Row]]) -> Callable[[Any], Any]:
        kinds = {(row[shape][1], row[shape][2] if len(row[shape]) > 2 else None) for part in parts for row in part}
        if all(
            kind in _TEXTS and (name in _BY_CODE_POINT or (name == '"default"' and self._default_by_code_point))
            for kind, name in kinds
        ):
            return lambda value: value
        if len(kinds) > 1:
            raise refusal(f"it is ordered in other ways on other shards: {sorted(map(str, kinds))}")
        values = list(dict.fromkeys(row[shape][0] for part in parts for row in part if row[shape][0] is not None))
        places = dict(zip(values, self._ranks(values, *kinds.pop()), strict=True))
        return places.__getitem__
