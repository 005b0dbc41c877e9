"""Random statements over the tables of `fix_answers`, each with what is fixed about its answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import joinedload, selectinload

from fix_answers import Country, Person, Post, Setting
from fix_clauses import Clauses, Column

f = sa.func


@dataclass(frozen=True)
class Question:
    """One statement."""

    kind: str
    statement: Any
    #: how many of the last columns are its sort keys; their sequence is fixed
    keys: int = 0
    #: the order of its rows is fixed
    total: bool = False
    #: the same without LIMIT and OFFSET: where those cut between equals, the rows must be some of its rows
    whole: Any = None
    #: which one of several equal values is shown is nobody's promise: 1.0 or 1.00, 0.0 or -0.0
    loose: bool = False


class Statements(Clauses):
    """Makes them.

    Args:
        rng: where chance comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._kinds: list[tuple[int, str, Callable[[str], Question]]] = [
            (14, "filter", self._plain),
            (14, "order", self._plain),
            (8, "entities", self._entities),
            (10, "join", self._join),
            (6, "outer join", self._join),
            (5, "reference", self._reference),
            (3, "reference only", self._elsewhere),
            (3, "global", self._elsewhere),
            (8, "distinct", self._distinct),
            (12, "group", self._group),
            (6, "having", self._group),
            (8, "aggregate", self._aggregate),
            (5, "group by key", self._group_by_key),
            (4, "expression of aggregates", self._expression),
            (5, "exists", self._subquery),
            (5, "in subquery", self._subquery),
            (4, "scalar subquery", self._subquery),
            (4, "window", self._window),
            (3, "distinct on", self._distinct_on),
            (4, "set operation", self._set_operation),
            (5, "from subquery", self._from_subquery),
            (4, "cte", self._from_subquery),
            (3, "array_agg", self._array),
            (3, "loaded", self._loaded),
        ]

    @property
    def kinds(self) -> list[str]:
        """The names of all kinds."""
        return [name for _, name, _ in self._kinds]

    def next(self) -> Question:
        """One more."""
        weights = [weight for weight, _, _ in self._kinds]
        _, name, make = self._rng.choices(self._kinds, weights)[0]
        return make(name)

    # ------------------------------------------------------------------ pieces

    def _ordered(
        self, kind: str, statement: Any, by: Sequence[Column], unique: Sequence[Column], loose: bool = False
    ) -> Question:
        """Ordered by some expressions, which are shown too, perhaps by something unique, and perhaps cut."""
        total = bool(unique) and self._chance(0.6)
        keys = [*by, *(unique if total else ())]
        shown = statement.add_columns(*(key.label(f"key_{at}") for at, key in enumerate(keys)))
        whole = shown.order_by(*(self._direction(key) for key in keys))
        return self._cut(kind, whole, len(keys), total, loose)

    def _cut(self, kind: str, whole: Any, keys: int, total: bool, loose: bool = False) -> Question:
        cut = whole
        if self._chance(0.45):
            cut = cut.limit(self._some(0, 1, 3, 7, 25, 1000))
        if self._chance(0.25):
            cut = cut.offset(self._some(0, 1, 4, 30, 1000))
        return Question(kind, cut, keys, total, whole if cut is not whole else None, loose)

    # ------------------------------------------------------------------ kinds

    def _plain(self, kind: str) -> Question:
        p = self._some(Person, sa.orm.aliased(Person))
        statement = self._where(
            sa.select(*(self._value(p).label(f"v{at}") for at in range(self._some(1, 2, 3)))), p, 0.8
        )
        if kind == "order":
            return self._ordered(kind, statement, [self._value(p) for _ in range(self._some(1, 1, 2, 3))], [p.id])
        return Question(kind, statement)

    def _entities(self, kind: str) -> Question:
        statement = self._where(sa.select(Person), Person)
        if self._chance(0.3):
            return Question(kind, statement)
        return self._cut(kind, statement.order_by(self._direction(self._value(Person)), Person.id), 0, True)

    def _loaded(self, kind: str) -> Question:
        how = self._some(joinedload, selectinload)(Person.posts)
        statement = self._where(sa.select(Person).options(how), Person).order_by(Person.id)
        return Question(kind, statement if how is None or self._chance(0.7) else statement.limit(5), total=True)

    def _join(self, kind: str) -> Question:
        on = Post.person_id == Person.id
        columns = [self._some(Post.title, Post.likes, Post.price, Post.n), self._value(Person).label("v"), Person.id]
        joined = sa.select(*columns).select_from(Person)
        if kind == "outer join":
            joined = self._some(
                joined.outerjoin(Post, on),
                joined.outerjoin(Post, sa.and_(on, Post.likes > 3)),
                sa.select(*columns).select_from(Post).outerjoin(Person, on),
                joined.outerjoin(Post, on, full=True),
            )
        else:
            other = sa.orm.aliased(Person)
            joined = self._some(
                joined.join(Post, on),
                sa.select(*columns).where(on),
                joined.join(Post, on).join(other, other.id == Post.person_id),
                joined.join(Post, Post.n == Person.small),
            )
        statement = self._where(joined, Person)
        if self._chance(0.4):
            return Question(kind, statement)
        by = [self._some(Post.title, Post.likes, Post.price, Post.at, Post.title.collate("C"))]
        return self._ordered(kind, statement, by, [Person.id, Post.n])

    def _reference(self, kind: str) -> Question:
        statement = sa.select(Person.id, Country.name, Country.size).select_from(Person)
        on = Country.code == Person.country
        joined = self._some(
            statement.join(Country, on),
            statement.outerjoin(Country, on),
            sa.select(Country.code, Person.id).select_from(Country).outerjoin(Person, on),
        )
        statement = self._where(joined, Person)
        if self._chance(0.4):
            return Question(kind, statement)
        return self._ordered(kind, statement, [self._some(Country.name, Country.size, Person.score)], [Person.id])

    def _elsewhere(self, kind: str) -> Question:
        table: Any = Country if kind == "reference only" else Setting
        column = Country.size if table is Country else Setting.value
        statement = self._some(
            sa.select(table), sa.select(f.count(), f.sum(column)), sa.select(column, f.count()).group_by(column)
        )
        return Question(kind, statement)

    def _distinct(self, kind: str) -> Question:
        columns = [self._value(Person).label(f"v{at}") for at in range(self._some(1, 1, 2))]
        statement = self._where(sa.select(*columns).distinct(), Person, 0.4)
        if self._chance(0.3):
            return Question(kind, statement, loose=True)
        if self._chance(0.1):
            return Question(kind, statement.order_by(Person.seen))  # which the database refuses
        by = [self._direction(column.element) for column in columns]
        return self._cut(kind, statement.order_by(*by), len(columns), True, loose=True)

    def _aggregates(self, p: Any) -> list[Column]:
        number = self._number(p)
        texts = self._some(p.name, p.name.collate("C"), p.code)
        made = [
            f.count(), f.count(number), f.sum(number), f.avg(number), f.min(number), f.max(number),
            f.min(texts), f.max(texts), f.min(p.seen), f.max(p.born), f.max(p.pause), f.sum(p.pause), f.avg(p.pause),
            f.bool_and(p.active), f.bool_or(p.active), f.every(p.score > 0), f.bit_or(p.small), f.bit_and(p.small),
            f.count(sa.distinct(p.id)), f.count(sa.distinct(p.country)), f.stddev(p.small), f.sum(sa.distinct(p.small)),
        ]  # fmt: skip
        weights = [3] * 14 + [2, 2, 1, 1, 2, 0.3, 0.3, 0.3]
        found = self._rng.choices(made, weights, k=self._some(1, 1, 2, 3))
        return [one.filter(self._condition(p, 0)) if self._chance(0.15) else one for one in found]

    def _group(self, kind: str) -> Question:
        groups = [self._value(Person) for _ in range(self._some(1, 1, 2))]
        aggregates = self._aggregates(Person)
        statement = sa.select(*(group.label(f"g{at}") for at, group in enumerate(groups)), *aggregates)
        statement = self._where(statement, Person, 0.4).group_by(*groups)
        if kind == "having":
            statement = statement.having(
                self._some(
                    f.count() > self._some(1, 2, 5),
                    f.sum(Person.score) >= 5,
                    sa.and_(f.count() < 9, f.max(Person.small) == 2),
                    sa.or_(f.avg(Person.score) > 3, groups[0].is_(None)),
                    f.bool_or(Person.active),
                )
            )
        if self._chance(0.4):
            return Question(kind, statement, loose=True)
        if self._chance(0.4):
            by = [self._some(f.count(), f.sum(Person.score), f.avg(Person.small), f.max(Person.name))]
            return self._ordered(kind, statement, by, groups, loose=True)
        return self._ordered(kind, statement, groups, groups, loose=True)

    def _aggregate(self, kind: str) -> Question:
        statement = sa.select(*self._aggregates(Person)).select_from(Person)
        return Question(kind, self._where(statement, Person, 0.6), loose=True)

    def _group_by_key(self, kind: str) -> Question:
        statement = sa.select(
            Post.person_id,
            self._some(
                f.count(sa.distinct(Post.likes)),
                f.string_agg(Post.title, postgresql.aggregate_order_by(sa.literal(","), Post.n)),
                f.percentile_disc(0.5).within_group(Post.likes),
                f.stddev(Post.n),
                f.count() + 1,
                f.max(Post.title),
            ),
        ).group_by(Post.person_id)
        if self._chance(0.5):
            statement = statement.having(f.count() > 1)
        if self._chance(0.3):
            statement = statement.where(Post.likes > 1)
        return self._cut(kind, statement.order_by(self._direction(Post.person_id)), 0, True)

    def _expression(self, kind: str) -> Question:
        made = self._some(
            f.coalesce(f.sum(Person.score), 0),
            f.count() + 1,
            f.max(Person.score) - f.min(Person.score),
            f.round(f.avg(Person.score), 2),
            sa.case((f.count() > 5, "many"), else_="few"),
            sa.cast(f.sum(Person.small), sa.Text),
        )
        if self._chance(0.5):
            return Question(kind, self._where(sa.select(made.label("made")).select_from(Person), Person))
        return Question(kind, sa.select(Person.country, made.label("made")).group_by(Person.country))

    def _subquery(self, kind: str) -> Question:
        posts = sa.select(Post.person_id).where(Post.likes > self._some(0, 3, 6))
        columns = [Person.id, self._value(Person).label("v")]
        if kind == "exists":
            found = sa.exists().where(Post.person_id == Person.id, Post.likes > 3)
            condition = self._some(
                found, ~found, Person.posts.any(Post.n > 1), sa.exists(posts), sa.or_(found, Person.active)
            )
        elif kind == "in subquery":
            condition = self._some(
                Person.id.in_(posts),
                Person.id.not_in(posts),
                Person.id.in_(posts.limit(3)),
                Person.country.in_(sa.select(Country.code).where(Country.size > 0)),
                Person.small.in_(sa.select(Post.n)),
                sa.or_(Person.id.in_(posts), Person.score > 10),
            )
        else:
            count = sa.select(f.count()).where(Post.person_id == Person.id).scalar_subquery()
            condition = self._some(
                count > 1,
                Person.score >= sa.select(f.max(Country.size)).scalar_subquery(),
                Person.score > sa.select(f.avg(Post.likes)).scalar_subquery(),
            )
            columns.append(count.label("c"))
        statement = self._where(sa.select(*columns).where(condition), Person, 0.3)
        if self._chance(0.5):
            return Question(kind, statement)
        return self._ordered(kind, statement, [self._value(Person)], [Person.id])

    def _window(self, kind: str) -> Question:
        over = self._some(
            {"order_by": Post.n},
            {"partition_by": Post.person_id, "order_by": Post.n},
            {"partition_by": [Post.n, Post.person_id]},
            {"partition_by": Post.n, "order_by": Post.person_id},
        )
        made = self._some(f.row_number(), f.sum(Post.likes), f.count(), f.lag(Post.likes)).over(**over)
        statement = sa.select(Post.person_id, Post.n, made.label("w"))
        return Question(kind, statement.where(Post.likes > 1) if self._chance(0.3) else statement)

    def _distinct_on(self, kind: str) -> Question:
        on = self._some([Post.person_id], [Post.title], [Post.person_id, Post.likes])
        statement = sa.select(Post.person_id, Post.n)
        has_own = hasattr(statement, "ext")  # SQLAlchemy 2.1
        statement = statement.ext(postgresql.distinct_on(*on)) if has_own else statement.distinct(*on)
        return Question(kind, statement.order_by(*on, Post.n, Post.person_id), total=True)

    def _set_operation(self, kind: str) -> Question:
        first, second = sa.select(Person.id).where(Person.score > 3), sa.select(Post.person_id).where(Post.likes > 2)
        if self._chance(0.3):
            first, second = first.where(Person.id == 7), second.where(Post.person_id == 7)
        made = self._some(sa.union, sa.union_all, sa.intersect, sa.except_)(first, second)
        return Question(kind, made.order_by(made.selected_columns[0]).limit(5) if self._chance(0.4) else made)

    def _from_subquery(self, kind: str) -> Question:
        inner = self._some(
            sa.select(Post.person_id, f.count().label("c")).group_by(Post.person_id),
            sa.select(Post.person_id, Post.likes.label("c")).where(Post.likes > 1),
            sa.select(Post.person_id, Post.n.label("c")).order_by(Post.likes, Post.person_id).limit(5),
            sa.select(Post.person_id, f.row_number().over(order_by=Post.at, partition_by=Post.person_id).label("c")),
        )
        part: Any = inner.cte() if kind == "cte" else inner.subquery()
        if self._chance(0.5):
            statement = sa.select(Person.id, part.c.c).join(part, part.c.person_id == Person.id)
            return Question(kind, self._where(statement, Person, 0.4))
        made = self._some(sa.select(part), sa.select(f.count(), f.max(part.c.c)).select_from(part))
        return Question(kind, made, loose=True)

    def _array(self, kind: str) -> Question:
        gathered = self._some(Person.score, Person.name, Person.price, Person.doc, Person.active)
        statement = sa.select(f.array_agg(gathered))
        if self._chance(0.5):
            statement = sa.select(Person.small, f.array_agg(gathered)).group_by(Person.small)
        return Question(kind, self._where(statement, Person, 0.3))
