"""Random parts of statements over the tables of `fix_answers`: values, conditions and directions."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from fix_answers import LANDS, NAMES, PEOPLE

f = sa.func
Column = sa.ColumnElement[Any]


class Clauses:
    """Makes them.

    Args:
        rng: where chance comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _some(self, *values: Any) -> Any:
        return self._rng.choice(values)

    def _key(self) -> int:
        return self._rng.randrange(1, PEOPLE + 3)

    def _value(self, p: Any) -> Column:
        """Something of a person that can be ordered and grouped."""
        columns = [p.name, p.code, p.country, p.score, p.small, p.weight, p.ratio, p.price, p.active, p.born, p.seen,
                   p.local, p.tag, p.blob, p.doc, p.pause, p.id]  # fmt: skip
        made: list[Callable[[], Column]] = [
            lambda: p.score % 5,
            lambda: f.coalesce(p.score, 0),
            lambda: f.length(p.name),
            lambda: f.upper(p.name),
            lambda: p.name.collate("C"),
            lambda: p.name + "x",
            lambda: f.abs(p.price),
            lambda: sa.case((p.score > 5, "much"), else_=p.country),
            lambda: sa.cast(p.score, sa.Text),
            lambda: sa.cast(p.small, sa.Numeric(6, 2)),
            lambda: f.date_trunc("hour", p.seen),
            lambda: p.score > 3,
            lambda: p.id % 4,
            lambda: sa.cast(sa.func.row(p.small, p.name), sa.Text),
        ]
        return self._some(*made)() if self._chance(0.35) else self._some(*columns)

    def _number(self, p: Any) -> Column:
        return self._some(p.score, p.small, p.id, p.price, p.weight, p.ratio, p.score + p.small, f.length(p.name))

    def _condition(self, p: Any, depth: int = 2) -> Column:
        """A filter on a person, which may name keys."""
        rng = self._rng
        if depth and self._chance(0.3):
            parts = [self._condition(p, depth - 1) for _ in range(2)]
            return self._some(sa.and_, sa.or_)(*parts)
        if self._chance(0.08):
            return sa.not_(self._condition(p, 0))
        made: list[Callable[[], Column]] = [
            lambda: p.score > rng.randrange(-5, 20),
            lambda: p.score.is_(None),
            lambda: p.country == self._some(*LANDS, "xx"),
            lambda: p.country.in_(rng.sample(LANDS, 2)),
            lambda: p.name < self._some(*NAMES),
            lambda: p.name.collate("C") >= self._some(*NAMES),
            lambda: p.code == self._some(*NAMES),
            lambda: p.name.like(self._some("%a%", "_", "a%")),
            lambda: p.active,
            lambda: p.active.isnot(True),
            lambda: p.price >= self._some(Decimal("1.10"), Decimal(0), Decimal("NaN")),
            lambda: p.weight != self._some(0.0, float("nan"), 1.5),
            lambda: p.born <= datetime.date(2000, 3, 1),
            lambda: p.seen.between(
                datetime.datetime(2026, 10, 25, tzinfo=datetime.UTC), datetime.datetime(2026, 10, 25, 2, tzinfo=datetime.UTC)
            ),
            lambda: p.small.in_([0, self._some(1, 2)]),
            lambda: p.blob == self._some(b"", b"a"),
            lambda: p.doc["k"].as_string() == self._some("1", "a"),
            lambda: p.id == self._key(),
            lambda: p.id.in_([self._key() for _ in range(self._some(1, 2, 9))]),
            lambda: p.id == f.any(sa.cast([self._key(), self._key()], sa.ARRAY(sa.BigInteger))),
            lambda: p.id.between(self._key(), self._key()),
            lambda: p.id > self._key(),
            lambda: sa.or_(p.id == self._key(), p.id == self._key()),
            lambda: sa.tuple_(p.id, p.small) == sa.tuple_(self._key(), 1),
        ]  # fmt: skip
        return self._some(*made)()

    def _where(self, statement: Any, p: Any, share: float = 0.6) -> Any:
        return statement.where(self._condition(p)) if self._chance(share) else statement

    def _direction(self, expression: Any) -> Any:
        if self._chance(0.5):
            expression = expression.desc() if self._chance(0.6) else expression.asc()
        if self._chance(0.35):
            expression = expression.nulls_first() if self._chance(0.5) else expression.nulls_last()
        return expression
