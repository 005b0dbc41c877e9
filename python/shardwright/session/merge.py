"""Rows of several shards become one result, in the order and with the values that one database would give."""

from __future__ import annotations

import datetime
import decimal
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

from shardwright.routing.merging import Aggregate, Merging, OrderKey, refusal

Row = tuple[Any, ...]

_INTEGERS = frozenset({20, 21, 23, 26})
_FLOATS = frozenset({700, 701})
_NUMERIC = 1700
_TEXTS = frozenset({19, 25, 1043})
_TIMESTAMPTZ = 1184
#: bool, bytea, date, time, timestamp, uuid: Python orders their values as PostgreSQL does.
_PLAIN = frozenset({16, 17, 1082, 1083, 1114, 2950})

#: Collations that order texts by code point, as Python does (the databases are UTF8).
_BY_CODE_POINT = frozenset({'"C"', '"POSIX"', '"C.utf8"', '"C.UTF-8"', "ucs_basic", "pg_c_utf8", "pg_unicode_fast"})

#: PostgreSQL adds numerics exactly.
_EXACT = decimal.Context(prec=200_000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])


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
    """Puts rows together.

    Args:
        plan: how.
        types: the type oid of each column that the shards send.
        default_by_code_point: whether the databases' default collation orders texts by code point.
    """

    def __init__(self, plan: Merging, types: Sequence[int], default_by_code_point: bool) -> None:
        self._plan = plan
        self._types = types
        self._default_by_code_point = default_by_code_point

    def merge(self, parts: Sequence[Sequence[Row]], offset: int, limit: int | None) -> list[Row]:
        """Merge the shards' rows, and cut the result.

        Args:
            parts: the rows of each shard, in the order that the statement asks for.
            offset: how many rows of the result to leave out.
            limit: how many to give at most; None: all.

        Raises:
            NotMergeable: a type's order or an aggregate's sum cannot be reproduced here.
        """
        if self._plan.grouped:
            rows: Iterable[Row] = self._grouped(parts)
            if self._plan.order:
                rows = sorted(rows, key=self._sort_key(parts))
        elif self._plan.order:
            rows = self._in_order(parts)
        else:
            rows = (row for part in parts for row in part)
        end = None if limit is None else offset + limit
        return [row for at, row in zip(range(end) if end is not None else iter(int, 1), rows, strict=False)][offset:]

    # ------------------------------------------------------------------ order

    def _in_order(self, parts: Sequence[Sequence[Row]]) -> Iterator[Row]:
        key = self._sort_key(parts)
        keyed = [[(key(row), row) for row in part] for part in parts]
        for part in keyed:
            # What a shard calls sorted must be sorted here: else its order is not the one that we can continue.
            if any(later[0] < earlier[0] for earlier, later in pairwise(part)):
                raise refusal("the shards' order is another one than here", 'order texts by .collate("C")')
        return (row for _, row in heapq.merge(*keyed, key=lambda pair: pair[0]))

    def _sort_key(self, parts: Sequence[Sequence[Row]]) -> Callable[[Row], tuple[Any, ...]]:
        made = [(one, self._comparable(one.at, one.collation, parts)) for one in self._plan.order]

        def key(row: Row) -> tuple[Any, ...]:
            found: list[Any] = []
            for one, comparable in made:
                value = row[one.at]
                if value is None:
                    found += [0 if one.nulls_first else 1, 0]
                else:
                    value = comparable(value)
                    found += [1 if one.nulls_first else 0, _Descending(value) if one.descending else value]
            return tuple(found)

        return key

    def _comparable(self, at: int, collation: int | None, parts: Sequence[Sequence[Row]]) -> Callable[[Any], Any]:
        """What makes a column's values comparable as PostgreSQL compares them."""
        oid = self._types[at]
        if oid in _INTEGERS or oid in _PLAIN:
            return lambda value: value
        if oid in _FLOATS or oid == _NUMERIC:
            # NaN equals itself and is greater than everything.
            return lambda value: (1, 0) if value != value else (0, value)
        if oid == _TIMESTAMPTZ:
            # Two times of one zone are compared by the clock on its wall, which is wrong in one hour of the year.
            return lambda value: value.astimezone(datetime.UTC)
        if oid in _TEXTS:
            self._check_collation(at, collation, parts)
            return lambda value: value
        raise refusal(f"the order of a value of type oid {oid} cannot be reproduced outside of the database")

    def _check_collation(self, at: int, collation: int | None, parts: Sequence[Sequence[Row]]) -> None:
        names = {row[collation] for part in parts for row in part if collation is not None}
        for name in names if collation is not None else {None}:
            if name in _BY_CODE_POINT or (name == '"default"' and self._default_by_code_point):
                continue
            said = "unknown" if name is None else str(name)
            raise refusal(
                f"texts are ordered by collation {said}, which cannot be reproduced outside of the database",
                'order them by .collate("C")',
            )

    # ------------------------------------------------------------------ groups

    def _grouped(self, parts: Sequence[Sequence[Row]]) -> Iterator[Row]:
        plan = self._plan
        keys = [(one.at, self._groupable(one, parts)) for one in plan.groups]
        combine = {
            **{
                aggregate.at: self._combiner(aggregate, parts)
                for aggregate in plan.aggregates
                if aggregate.kind != "avg"
            },
            **{
                at: _sum
                for aggregate in plan.aggregates
                if aggregate.kind == "avg"
                for at in (aggregate.sums, aggregate.counts)
            },
        }
        averages = [(aggregate, self._divide(aggregate)) for aggregate in plan.aggregates if aggregate.kind == "avg"]
        found: dict[tuple[Any, ...], list[Any]] = {}
        for part in parts:
            for row in part:
                group = tuple(None if row[at] is None else (groupable(row[at]),) for at, groupable in keys)
                held = found.get(group)
                if held is None:
                    found[group] = list(row)
                    continue
                for at, combined in combine.items():
                    if held[at] is None or row[at] is None:
                        held[at] = row[at] if held[at] is None else held[at]
                    else:
                        held[at] = combined(held[at], row[at])
        for held in found.values():
            for aggregate, divide in averages:
                total, count = held[aggregate.sums], held[aggregate.counts]
                held[aggregate.at] = None if total is None or not count else divide(total, count)
            yield tuple(held)

    def _groupable(self, one: OrderKey, parts: Sequence[Sequence[Row]]) -> Callable[[Any], Any]:
        """What makes a column's values equal where PostgreSQL calls them equal."""
        oid = self._types[one.at]
        if oid in _INTEGERS or oid in _PLAIN or oid == _TIMESTAMPTZ:
            return lambda value: value
        if oid in _FLOATS or oid == _NUMERIC:
            return lambda value: "NaN" if value != value else value
        if oid in _TEXTS:
            # The default collation of a database is deterministic: equal means equal bytes.
            names = {row[one.collation] for part in parts for row in part} if one.collation is not None else {None}
            if not names <= {*_BY_CODE_POINT, '"default"'}:
                raise refusal(
                    "texts are grouped by a collation that may call different texts equal", 'use .collate("C")'
                )
            return lambda value: value
        raise refusal(f"values of type oid {oid} cannot be grouped outside of the database")

    def _combiner(self, aggregate: Aggregate, parts: Sequence[Sequence[Row]]) -> Callable[[Any, Any], Any]:
        oid = self._types[aggregate.at]
        if aggregate.kind in ("min", "max"):
            collation = dict(self._plan.compared).get(aggregate.at)
            comparable = self._comparable(aggregate.at, collation, parts)
            if aggregate.kind == "min":
                return lambda one, other: other if comparable(other) < comparable(one) else one
            return lambda one, other: other if comparable(one) < comparable(other) else one
        if oid in (20, _NUMERIC, 701):
            return _sum
        raise refusal(
            f"a sum of type oid {oid} cannot be continued outside of the database", "cast to double precision"
        )

    def _divide(self, aggregate: Aggregate) -> Callable[[Any, int], Any]:
        result, total = self._types[aggregate.at], self._types[aggregate.sums]
        if result == _NUMERIC and total in (20, _NUMERIC):
            return divide_numeric
        if result == 701 and total == 701:
            return lambda sums, count: sums / count
        raise refusal(
            f"an average of type oid {result} cannot be computed outside of the database", "cast to double precision"
        )


def _sum(one: Any, other: Any) -> Any:
    return _EXACT.add(one, other) if isinstance(one, Decimal) else one + other


def divide_numeric(total: Any, count: int) -> Decimal:
    """Divide as PostgreSQL's numeric does: at least 16 significant digits, and no less scale than the dividend has.

    Args:
        total: an int or a Decimal.
        count: an int above 0.
    """
    dividend, divisor = Decimal(total), Decimal(count)
    if not dividend.is_finite():
        return dividend
    dividend_scale = max(0, -int(dividend.as_tuple().exponent))
    # Weights count groups of four digits (select_div_scale in src/backend/utils/adt/numeric.c).
    weight, first = _leading_group(dividend)
    divisor_weight, divisor_first = _leading_group(divisor)
    quotient_weight = weight - divisor_weight - (1 if first <= divisor_first else 0)
    scale = min(1000, max(16 - quotient_weight * 4, dividend_scale))
    # All in integers, rounding half away from zero.
    numerator = int(_EXACT.scaleb(abs(dividend), dividend_scale)) * 10**scale
    denominator = 10**dividend_scale * count
    quotient = Decimal((2 * numerator + denominator) // (2 * denominator))
    return _EXACT.scaleb(quotient.copy_negate() if dividend < 0 and quotient else quotient, -scale)


def _leading_group(value: Decimal) -> tuple[int, int]:
    """Weight and value of the first group of four decimal digits that is not 0."""
    if not value:
        return 0, 0
    weight = value.adjusted() // 4
    return weight, int(abs(value).scaleb(-4 * weight, decimal.Context(prec=200_000)))
