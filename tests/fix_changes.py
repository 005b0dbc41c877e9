"""Random statements that change rows of the tables of `fix_answers`."""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from fix_answers import NAMES, PEOPLE, Person, Post

f = sa.func
AT = datetime.datetime(2026, 10, 25, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Change:
    """One statement, and what is compared after it."""

    kind: str
    statement: Any
    #: the rows of this key are looked at; None: it names none or several keys, and is undone
    key: int | None


class Changes:
    """Makes them.

    Args:
        rng: where chance comes from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _row(self, key: int) -> dict[str, Any]:
        rng = self._rng
        return {
            "person_id": key,
            "n": rng.randrange(12),
            "title": rng.choice(NAMES),
            "likes": rng.choice([None, rng.randrange(9)]),
            "price": rng.choice([None, rng.randrange(900) / 100]),
            "at": AT,
        }

    def next(self) -> Change:
        """One more."""
        rng = self._rng
        key, kind = rng.randrange(1, PEOPLE + 1), rng.choice(KINDS)
        mine, some = Post.person_id == key, [Post.likes > 3, Post.n < 4, Post.title == rng.choice(NAMES), sa.true()]
        insert = postgresql.insert(Post)
        made: dict[str, Any] = {
            "insert": lambda: insert.values(self._row(key)),
            "insert returning": lambda: insert.values(self._row(key)).returning(Post.n, Post.title),
            "insert many": lambda: insert.values([self._row(key) | {"n": n} for n in rng.sample(range(20), 3)]),
            "upsert": lambda: insert.values(self._row(key)).on_conflict_do_update(
                index_elements=[Post.person_id, Post.n], set_={"likes": f.coalesce(Post.likes, 0) + 1}
            ),
            "do nothing": lambda: insert.values(self._row(key)).on_conflict_do_nothing(),
            "insert from select": lambda: sa.insert(Post).from_select(
                ["person_id", "n", "title", "at"],
                sa.select(Post.person_id, Post.n + 100 * rng.randrange(1, 9), Post.title, Post.at).where(mine),
            ),
            "update": lambda: sa.update(Post).where(mine, rng.choice(some)).values(likes=f.coalesce(Post.likes, 0) + 2),
            "update returning": lambda: (
                sa.update(Person)
                .where(Person.id == key)
                .values(score=rng.randrange(20))
                .returning(Person.id, Person.score)
            ),
            "delete": lambda: sa.delete(Post).where(mine, rng.choice(some)),
            "delete by subquery": lambda: sa.delete(Post).where(
                mine, sa.exists().where(Person.id == Post.person_id, Person.score > 3)
            ),
            "update of some keys": lambda: (
                sa.update(Post).where(Post.person_id.in_([key, key % 7 + 1])).values(likes=0)
            ),
            "delete without a key": lambda: sa.delete(Post).where(rng.choice(some)),
            "update without a key": lambda: sa.update(Person).where(Person.score > 3).values(small=1),
        }
        return Change(kind, made[kind](), None if kind in NO_KEY else key)


NO_KEY = {"update of some keys", "delete without a key", "update without a key"}
KINDS = [
    "insert", "insert returning", "insert many", "upsert", "do nothing", "insert from select", "update", "update returning",
    "delete", "delete by subquery", *sorted(NO_KEY),
]  # fmt: skip
