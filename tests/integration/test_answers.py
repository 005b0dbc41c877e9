"""Random statements over random rows: every cluster answers as one plain database does, or refuses.

In every phase of a move, which is halted there. What fails prints the statement; the run's seed repeats it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_answers import Base, Person, Post, World, Worlds, add_spare, importing, switched
from fix_changes import Change, Changes
from fix_servers import Postgres
from fix_statements import Question, Statements
from shardwright import errors
from shardwright.reshard import operate
from shardwright.servers import Server
from shardwright.servers.server import SETTINGS_18

pytestmark = pytest.mark.newest_postgres

#: What is refused with: never anything else of ours.
REFUSALS = (errors.NotMergeable, errors.NoShardKey)
#: Kinds of statements that have no answer over shards in most of their forms.
MOSTLY_REFUSED = {"window", "distinct on", "scalar subquery", "set operation", "cte", "from subquery", "in subquery"}


def exact(value: Any, loose: bool, order_free: bool = False) -> Any:
    """What a value amounts to, for comparison."""
    if isinstance(value, Base):
        loaded = [exact(list(value.posts), loose)] if "posts" in value.__dict__ else []
        return (
            type(value).__name__,
            *(exact(getattr(value, c.key), loose) for c in value.__mapper__.column_attrs),
            *loaded,
        )
    if isinstance(value, Decimal):
        return str(value.normalize() + 0 if loose and value.is_finite() else value)
    if isinstance(value, float):
        return "nan" if value != value else value + 0.0 if loose else repr(value)
    if isinstance(value, list):
        found = [exact(one, loose) for one in value]
        return repr(sorted(found, key=repr) if order_free else found)
    return repr(value) if isinstance(value, dict) else value


def ask(session: Session, question: Question, statement: Any) -> list[tuple[Any, ...]]:
    """The rows of an answer, made comparable, below the names of its columns."""
    result = session.execute(statement)
    names = tuple(result.keys())
    rows = (result.unique() if getattr(statement, "_with_options", ()) else result).all()
    free, strict = question.kind == "array_agg", len(names) - question.keys if not question.loose else 0
    return [names, *(tuple(exact(value, at >= strict, free) for at, value in enumerate(row)) for row in rows)]


def check(
    question: Question, found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]], whole: list[Any] | None
) -> None:
    """Hold an answer against the plain database's, as far as the statement fixes it."""
    assert found[0] == wanted[0]
    assert len(found) == len(wanted)
    keys = question.keys
    if question.total:
        assert found == wanted
        return
    if keys:
        assert [row[-keys:] for row in found[1:]] == [row[-keys:] for row in wanted[1:]]
    if whole is None:
        assert Counter(map(repr, found)) == Counter(map(repr, wanted))
    else:
        assert not Counter(map(repr, found)) - Counter(map(repr, whole)), "rows that there are not"


def _changed(session: Session, change: Change) -> Any:
    """What a change returned, and the rows of its key afterwards; or the kind of error that it met."""
    with session:
        try:
            result: Any = session.execute(change.statement)
            told = result.rowcount if getattr(change.statement, "_returning", ()) == () else sorted(map(tuple, result))
        except sa.exc.IntegrityError as error:
            return type(error.orig)
        if change.key is None:
            session.rollback()
            return told
        after = [
            tuple(exact(value, False) for value in row)
            for model, column in ((Post, Post.person_id), (Person, Person.id))
            for row in session.execute(
                sa.select(model.__table__).where(column == change.key).order_by(*model.__table__.primary_key)
            )
        ]
        session.commit()
        return told, after


class Asking:
    """Asks all worlds, and counts."""

    def __init__(self, worlds: Worlds, rng: random.Random) -> None:
        self.worlds = worlds
        self.statements = Statements(rng)
        self.changes = Changes(rng)
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.ways_out: set[str] = set()

    def run(self, count: int, phase: str, options: Sequence[dict[str, Any]] = ({},)) -> None:
        for at in range(count):
            question = self.statements.next()
            with Session(self.worlds.plain) as session:
                try:
                    wanted = ask(session, question, question.statement)
                    whole = None if question.whole is None else ask(session, question, question.whole)
                except sa.exc.DBAPIError as error:
                    wanted, whole = [(type(error.orig),)], None
            for world in self.worlds.by_size.values():
                self._one(world, question, wanted, whole, phase, options[at % len(options)])

    def _one(
        self,
        world: World,
        question: Question,
        wanted: list[Any],
        whole: list[Any] | None,
        phase: str,
        options: dict[str, Any],
    ) -> None:
        try:
            with world.cluster.sessionmaker(**options)() as session:
                found = ask(session, question, question.statement)
            if wanted and len(wanted[0]) == 1 and isinstance(wanted[0][0], type):
                raise AssertionError(f"the plain database refuses it with {wanted[0][0].__name__}")
            check(question, found, wanted, whole)
        except REFUSALS as refused:
            self.refused[question.kind] += 1
            self.ways_out.add(refused.fix)
            return
        except sa.exc.DBAPIError as error:
            if wanted == [(type(error.orig),)]:
                return
            raise self._told(world, question, phase) from error
        except Exception as error:
            raise self._told(world, question, phase) from error
        self.answered[question.kind] += 1

    def _told(self, world: World, question: Question, phase: str) -> AssertionError:
        shown = question.statement.compile(dialect=sa.dialects.postgresql.dialect())
        return AssertionError(
            f"{question.kind}, {world.size} shards, {phase}: {shown}\n{shown.params}"  # the seed is in the run's header
        )

    def change(self, count: int, phase: str) -> None:
        """Change rows everywhere; what names one key is committed, the rest undone."""
        for _ in range(count):
            change = self.changes.next()
            wanted = _changed(Session(self.worlds.plain), change)
            for world in self.worlds.by_size.values():
                try:
                    found = _changed(world.cluster.sessionmaker()(), change)
                    assert found == wanted
                except (*REFUSALS, errors.CrossShardTransaction):
                    if change.key is not None:
                        raise
                    self.refused["change"] += 1
                except AssertionError as error:
                    shown = change.statement.compile(dialect=sa.dialects.postgresql.dialect())
                    raise AssertionError(f"{change.kind}, {world.size} shards, {phase}: {shown}") from error
                else:
                    self.answered["change"] += 1

    def conclude(self) -> None:
        """A test that refuses everything would prove nothing."""
        total = {kind: self.answered[kind] + self.refused[kind] for kind in self.statements.kinds}
        print({kind: (self.answered[kind], total[kind]) for kind in total})
        for kind, asked in total.items():
            assert kind == "cte" or self.answered[kind] > 0 or asked < 10, f"{kind}: none of {asked} was answered"
            if kind not in MOSTLY_REFUSED and asked >= 20:
                assert self.answered[kind] >= 0.3 * asked, f"{kind}: {self.answered[kind]} of {asked} answered"
        assert "" not in self.ways_out, "a refusal without a way out"
        assert sum(self.answered.values()) >= 0.75 * sum(total.values())


@pytest.mark.timeout(120)
def test_some_answers_are_those_of_one_database(
    make_worlds: Callable[[Sequence[int]], Worlds], rng: random.Random
) -> None:
    worlds = make_worlds([3])
    asking = Asking(worlds, rng)
    world = worlds.by_size[3]
    asking.run(90, "before a move")
    asking.change(30, "before a move")
    moving = importing(world, "s1", "s2")
    asking.run(80, "while rows are copied")
    switched(world, moving, "s1", "s2")
    asking.run(80, "after the switch", [{}, {"reads": "relaxed"}])
    asking.conclude()


#: What 13 moves need on one server, each with a stream there and one back.
STREAM_SETTINGS = ("max_replication_slots", "max_wal_senders", "max_logical_replication_workers")

#: 10,440 statements in all parts, changes included; each is asked of every cluster.
PARTS, PER_PHASE = 4, 450


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_answers_are_those_of_one_database(
    make_worlds: Callable[..., Worlds], server_factory: Callable[..., Server], postgres: Postgres, rng: random.Random,
    monkeypatch: pytest.MonkeyPatch, part: int,
) -> None:  # fmt: skip
    """Each part has rows and statements of its own: the run's seed and the test's name draw them."""
    rooms = [*STREAM_SETTINGS, *(SETTINGS_18 if postgres.version >= 18 else ())]
    server = server_factory(
        settings={"max_worker_processes": "100", "max_connections": "300"} | dict.fromkeys(rooms, "60")
    )
    numbers = itertools.count(1)

    def make_database(prefix: str) -> str:
        return server.create_database(f"{prefix}_{next(numbers)}")

    worlds = make_worlds([1, 2, 3, 7], make_database)
    asking = Asking(worlds, rng)
    asking.run(PER_PHASE, "before a move")
    asking.change(PER_PHASE // 5, "before a move")
    running = {}
    for size, world in worlds.by_size.items():
        add_spare(world, make_database("spare"))
        with world.catalog() as catalog:
            running[size] = operate.start(catalog, operate.plan(catalog, add=world.spare))
        operate.drive(world.catalog_dsn, running[size], "verified")
    asking.run(PER_PHASE, "verified")
    asking.change(PER_PHASE // 5, "verified")
    for size, world in worlds.by_size.items():
        monkeypatch.setenv("SHARDWRIGHT_FAILPOINT", "hand_over.opened:error")
        with pytest.raises(errors.FailpointReached):
            operate.drive(world.catalog_dsn, running[size], "switched")
        monkeypatch.delenv("SHARDWRIGHT_FAILPOINT")
    asking.run(PER_PHASE, "some batches switched", [{}, {"isolation_level": "REPEATABLE READ"}])
    for size, world in worlds.by_size.items():
        operate.drive(world.catalog_dsn, running[size], "switched")
    asking.run(PER_PHASE, "switched", [{}, {"reads": "relaxed"}])
    asking.change(PER_PHASE // 5, "switched")
    for size, world in worlds.by_size.items():
        operate.drive(world.catalog_dsn, running[size], "done")
    asking.run(PER_PHASE, "done")
    asking.change(PER_PHASE // 5, "done")
    asking.conclude()
