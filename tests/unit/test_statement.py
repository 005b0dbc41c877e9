"""Statements of SQLAlchemy and the shard keys that they need."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, joinedload, mapped_column, relationship, selectinload

from shardwright import errors
from shardwright.routing.statement import Plan, Planner
from shardwright.routing.tables import declaration_of, global_on, reference, sharded_by


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str]
    orders: Mapped[list[Order]] = relationship(primaryjoin="User.id == foreign(Order.owner)")


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = ({"info": sharded_by("user_id")},)
    owner: Mapped[int] = mapped_column("user_id", primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


class Country(Base):
    __tablename__ = "countries"
    __table_args__ = ({"info": reference()},)
    code: Mapped[str] = mapped_column(primary_key=True)


class Setting(Base):
    __tablename__ = "settings"
    __table_args__ = ({"info": global_on("s1")},)
    name: Mapped[str] = mapped_column(primary_key=True)


class Stranger(Base):
    __tablename__ = "strangers"
    id: Mapped[int] = mapped_column(primary_key=True)


class Id(sa.types.TypeDecorator[int]):
    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return int(value[1:]) if value is not None else None


typed = sa.Table("typed", Base.metadata, sa.Column("id", Id, primary_key=True), info=sharded_by("id"))
users, orders = User.__table__, Order.__table__


@pytest.fixture
def planner() -> Planner:
    return Planner(lambda table: declaration_of(table) if isinstance(table, sa.Table) else None)


def keys(planner: Planner, statement: Any, *params: dict[str, Any]) -> list[Any]:
    plan, binds = planner.plan(statement, params)
    assert plan.opaque is None
    assert plan.unbound is None, plan.unbound
    return [key for _, key in plan.keys(binds, params)]


def plan(planner: Planner, statement: Any, *params: dict[str, Any]) -> Plan:
    return planner.plan(statement, params)[0]


other = aliased(User)
picked = sa.select(User.id, User.name).subquery()
everything = sa.select(User).subquery()
twice = sa.select(User.id).subquery()
numbered = sa.select(User.id, sa.func.row_number().over(order_by=User.name).label("place")).subquery()

KEYED: list[tuple[Any, dict[str, Any], list[Any]]] = [
    (sa.select(User).where(User.id == 5), {}, [5]),
    (sa.select(users).where(users.c.id == 5), {}, [5]),
    (sa.select(users).where(users.c.id == 5, users.c.name == "x"), {}, [5]),
    (sa.select(User.name).where(sa.and_(User.name == "x", User.id == 5)), {}, [5]),
    (sa.select(User).filter_by(id=5), {}, [5]),
    (sa.select(User).where(User.id == sa.bindparam("uid")), {"uid": 7}, [7]),
    (sa.select(User).where(User.id == sa.bindparam("uid", 3)), {}, [3]),
    (sa.select(User).where(User.id.in_([1, 2])), {}, [1, 2]),
    (sa.select(User).where(User.id.in_(sa.bindparam("ids", expanding=True))), {"ids": [8, 9]}, [8, 9]),
    (sa.select(User).where(User.id == sa.any_(sa.literal([1, 2], sa.ARRAY(sa.Integer)))), {}, [1, 2]),
    (sa.select(User).where(sa.tuple_(User.name, User.id).in_([("a", 1), ("b", 2)])), {}, [1, 2]),
    (sa.select(User).where(sa.or_(User.id == 1, User.id == 2)), {}, [1, 2]),
    (sa.select(User).where(sa.or_(User.id == 1, sa.and_(User.id == 2, User.name == "x"))), {}, [1, 2]),
    (sa.select(User, Order).join(Order, Order.owner == User.id).where(User.id == 5), {}, [5]),
    (sa.select(User, Order).join(Order, Order.owner == User.id).where(Order.owner == 5), {}, [5]),
    (sa.select(User).join(User.orders).where(User.id == 5), {}, [5]),
    (sa.select(User).outerjoin(User.orders).where(User.id == 5), {}, [5]),
    (sa.select(users, orders).where(users.c.id == orders.c.user_id, orders.c.user_id == 5), {}, [5]),
    (sa.select(other).where(other.id == 5), {}, [5]),
    (sa.select(User, other).where(User.id == 1, other.id == 2), {}, [1, 2]),
    (sa.select(User).options(joinedload(User.orders)).where(User.id == 5), {}, [5]),
    (sa.select(User).options(joinedload(User.orders)).where(User.id == 5).limit(3), {}, [5]),
    (sa.select(User).options(selectinload(User.orders)).where(User.id == 5), {}, [5]),
    (sa.select(User).where(User.orders.any(Order.amount > 3), User.id == 5), {}, [5]),
    (sa.select(User).where(~User.orders.any(), User.id == 5), {}, [5]),
    (sa.select(User).where(User.id == 5, User.id.in_(sa.select(Order.owner))), {}, [5]),
    (sa.select(User).where(User.id.in_(sa.select(Order.owner).where(Order.owner == 5))), {}, [5]),
    (sa.select(sa.select(User).where(User.id == 5).subquery()), {}, [5]),
    (sa.select(sa.select(User).where(User.id == 5).cte().alias("x")), {}, [5]),
    (sa.select(picked.c.name).where(picked.c.id == 5), {}, [5]),
    (sa.select(picked.c.name, Order).join(Order, Order.owner == picked.c.id).where(Order.owner == 5), {}, [5]),
    (sa.select(aliased(User, everything)).where(everything.c.id == 5), {}, [5]),
    (sa.select(sa.select(User).where(User.id == 5).limit(1).subquery()), {}, [5]),
    (sa.union_all(sa.select(User).where(User.id == 5), sa.select(User).where(User.id == 6)), {}, [5, 6]),
    (sa.union(sa.select(User.id).where(User.id == 5), sa.select(Order.n).where(Order.owner == 6)), {}, [5, 6]),
    (sa.select(User.id, sa.select(sa.func.count()).where(Order.owner == User.id).scalar_subquery()).where(User.id == 5), {}, [5]),
    (sa.select(User, Country).join(Country, Country.code == User.country).where(User.id == 5), {}, [5]),
    (sa.select(User).where(User.id == 5).with_for_update(), {}, [5]),
    (sa.select(typed).where(typed.c.id == "U12"), {}, [12]),
    (sa.lambda_stmt(lambda: sa.select(User).where(User.id == 5)), {}, [5]),
    (sa.update(User).where(User.id == 5).values(name="x"), {}, [5]),
    (sa.update(users).where(users.c.id == sa.bindparam("uid")).values(name="x"), {"uid": 4}, [4]),
    (sa.update(users).where(users.c.id == orders.c.user_id, orders.c.user_id == 5).values(name="x"), {}, [5]),
    (sa.delete(User).where(User.id == 5), {}, [5]),
    (sa.delete(User).where(User.id == 5, ~User.orders.any()), {}, [5]),
    (sa.insert(User).values(id=5, name="x", country="de"), {}, [5]),
    (sa.insert(User).values({User.id: 5}), {}, [5]),
    (sa.insert(users).values([{"id": 1}, {"id": 2}]), {}, [1, 2]),
    (sa.insert(users).values([(1, "a", "de"), (2, "b", "fr")]), {}, [1, 2]),
    (sa.insert(users), {"id": 5, "name": "x"}, [5]),
    (sa.insert(User), {"id": 5, "name": "x"}, [5]),
    (sa.insert(Order), {"owner": 5, "n": 1}, [5]),
    (sa.insert(orders), {"user_id": 5, "n": 1}, [5]),
    (postgresql.insert(users).values(id=5).on_conflict_do_nothing(), {}, [5]),
    (sa.insert(users).from_select(["id", "name"], sa.select(orders.c.user_id, orders.c.n).where(orders.c.user_id == 5)), {}, [5]),
    (sa.insert(users).from_select(["id", "name"], sa.select(sa.literal(5), sa.literal("x"))), {}, [5]),
    (sa.update(Order), {"owner": 5, "n": 1, "amount": 2}, [5]),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "params", "expected"), KEYED, ids=[str(n) for n in range(len(KEYED))])
def test_keys_are_found(planner: Planner, statement: Any, params: dict[str, Any], expected: list[Any]) -> None:
    assert keys(planner, statement, *([params] if params else [])) == expected


UNBOUND: list[Any] = [
    sa.select(User),
    sa.select(User).where(User.name == "x"),
    sa.select(User).where(User.id > 5),
    sa.select(User).where(sa.not_(User.id == 5)),
    sa.select(User).where(User.id != 5),
    sa.select(User).where(sa.or_(User.id == 5, User.name == "x")),
    sa.select(User).where(User.id + 1 == 5),
    sa.select(User, Order).where(User.id == 5),
    sa.select(User, Order).join(Order, Order.n == User.id).where(User.id == 5),
    # The rows of the left side are not restricted by what is asked of the right side's partner.
    sa.select(User, Order).outerjoin(Order, sa.and_(Order.owner == User.id, User.id == 5)),
    sa.select(User, Order).outerjoin(Order, sa.and_(Order.owner == User.id, Order.owner == 5)),
    sa.select(User, Order).outerjoin(Order, Order.owner == User.id, full=True).where(User.id == 5),
    # A condition of a subquery is none of the query around it.
    sa.select(User).where(User.orders.any(Order.owner == 5)),
    sa.select(User).where(sa.exists(sa.select(Order.n).where(Order.owner == 5))),
    sa.select(User).where(User.id == 5, sa.exists(sa.select(Order.n).where(Order.n == User.id))),
    sa.select(User).where(User.id == 5, User.name.in_(sa.select(sa.cast(Order.n, sa.String)))),
    sa.select(User).where(User.id == 5, sa.or_(User.id.in_(sa.select(Order.owner).limit(1)))),
    sa.select(User.id).where(User.id == 5).union(sa.select(Order.owner)),
    # What is said of the rows of a subquery that limits or numbers them is not said of the rows it chose them from.
    sa.select(sa.select(User).limit(3).subquery().alias("few")).where(sa.literal_column("few.id") == 5),
    sa.select(numbered).where(numbered.c.id == 5),
    sa.union_all(sa.select(User).where(User.id == 5), sa.select(User)),
    sa.update(User).values(name="x"),
    sa.update(User).where(User.name == "y").values(name="x"),
    sa.delete(User),
    sa.delete(users).where(users.c.id == orders.c.n, orders.c.user_id == 5),
    sa.insert(users).values(id=sa.func.random()),
    sa.insert(users).from_select(["id"], sa.select(orders.c.n).where(orders.c.user_id == 5)),
]


@pytest.mark.parametrize("statement", UNBOUND, ids=[str(n) for n in range(len(UNBOUND))])
def test_what_needs_more_than_its_keys_is_unbound(planner: Planner, statement: Any) -> None:
    assert plan(planner, statement).unbound is not None


SCATTER: list[Any] = [
    sa.select(User),
    sa.select(User).where(User.name == "x").order_by(User.id).limit(3),
    sa.select(User, Order).join(Order, Order.owner == User.id),
    sa.select(User, Order).outerjoin(Order, Order.owner == User.id),
    sa.select(User, Country).join(Country, Country.code == User.country),
    sa.select(User).outerjoin(Country, Country.code == User.country),
    sa.select(other),
    sa.select(User).where(User.orders.any(Order.amount > 3)),
    sa.select(User).options(joinedload(User.orders)),
    sa.select(sa.func.count()).select_from(User),
    sa.select(sa.select(User).subquery()),
    sa.select(aliased(User, everything)),
    sa.select(picked.c.id, Order.amount).join(Order, Order.owner == picked.c.id),
]


@pytest.mark.parametrize("statement", SCATTER, ids=[str(n) for n in range(len(SCATTER))])
def test_several_shards_may_answer(planner: Planner, statement: Any) -> None:
    found = plan(planner, statement)
    assert found.local is None
    assert found.root is not None


LOCAL: list[tuple[Any, str]] = [
    (sa.select(User, Order), "not joined by their shard keys"),
    (sa.select(User, Order).join(Order, Order.n == User.id), "not joined by their shard keys"),
    (sa.select(User, Order).outerjoin(Order, Order.owner == User.id, full=True), "FULL JOIN"),
    (sa.select(Country).outerjoin(User, Country.code == User.country), "keeps the rows of a table"),
    (sa.select(sa.select(User.name).subquery()), "not joined by their shard keys"),
    (sa.select(sa.select(User).limit(3).subquery()), "a subquery in FROM"),
    (sa.select(numbered), "a subquery in FROM"),
    (sa.select(sa.select(User.id).distinct().subquery()), "a subquery in FROM"),
    (sa.union(sa.select(User.id), sa.select(Order.n)), "UNION"),
    (sa.select(User).with_for_update(), "locks rows"),
    (sa.select(User).options(joinedload(User.orders)).limit(3), "a subquery in FROM"),
    (sa.select(User).where(User.name.in_(sa.select(sa.cast(Order.n, sa.String)))), "not joined"),
    (sa.update(User).values(name="x"), "it changes"),
]


def test_a_subquery_that_stands_twice_is_not_looked_through(planner: Planner) -> None:
    # What is said of one is not said of the other.
    again = twice.alias("again")
    found = plan(planner, sa.select(twice.c.id, again.c.id).where(twice.c.id == 5))
    assert found.opaque is not None or found.unbound is not None


@pytest.mark.parametrize(("statement", "why"), LOCAL, ids=[str(n) for n in range(len(LOCAL))])
def test_several_shards_may_not_answer(planner: Planner, statement: Any, why: str) -> None:
    found = plan(planner, statement)
    assert found.local is not None
    assert why in found.local


OPAQUE: list[Any] = [
    sa.text("SELECT 1"),
    sa.select(User).where(User.id == 5, sa.text("EXISTS (SELECT FROM orders)")),
    sa.select(sa.literal_column("(SELECT count(*) FROM orders)")).where(User.id == 5),
    sa.select(sa.insert(users).values(id=1).returning(users.c.id).cte()),
    sa.select(sa.text("SELECT 1 AS a").columns(sa.column("a")).subquery()),
]


@pytest.mark.parametrize("statement", OPAQUE, ids=[str(n) for n in range(len(OPAQUE))])
def test_what_cannot_be_looked_through_is_said_to_be_opaque(planner: Planner, statement: Any) -> None:
    assert plan(planner, statement).opaque is not None


def test_a_plan_is_kept_and_its_values_are_not(planner: Planner) -> None:
    for key in (5, 6, 7):
        assert keys(planner, sa.select(User).where(User.id == key, User.name == "x")) == [key]
        assert keys(planner, sa.select(User).where(User.id.in_([key, key + 1]))) == [key, key + 1]
        assert keys(planner, sa.insert(User).values(id=key)) == [key]
        assert keys(planner, sa.lambda_stmt(lambda: sa.select(User).where(User.id == key))) == [key]  # noqa: B023
    assert len(planner._plans) == 4


def test_many_sets_of_values(planner: Planner) -> None:
    rows = [{"id": 3, "name": "a"}, {"id": 4, "name": "b"}]
    assert keys(planner, sa.insert(User), *rows) == [3, 4]
    assert keys(planner, sa.insert(users), *rows) == [3, 4]
    where = sa.delete(users).where(users.c.id == sa.bindparam("uid"))
    assert keys(planner, where, {"uid": 1}, {"uid": 2}) == [1, 2]


def test_an_insert_without_a_key_is_refused(planner: Planner) -> None:
    with pytest.raises(errors.NoShardKey, match="give no id"):
        keys(planner, sa.insert(User), {"name": "x"})


@pytest.mark.parametrize(
    "statement",
    [sa.update(User).where(User.id == 5).values(id=6), sa.update(Order).where(Order.owner == 5).values(owner=6)],
)
def test_a_change_of_the_key_is_refused(planner: Planner, statement: Any) -> None:
    with pytest.raises(errors.WriteRefused, match="is the shard key"):
        plan(planner, statement)


def test_other_kinds_of_tables(planner: Planner) -> None:
    found = plan(planner, sa.select(Country))
    assert not found.keyspaces
    assert [one[2].kind for one in found.others] == ["reference"]
    changed = plan(planner, sa.insert(Country).values(code="de"))
    assert changed.writes
    assert changed.target is not None
    assert changed.target[2].kind == "reference"
    assert plan(planner, sa.update(Setting).values(name="x")).target[2].home == "s1"
    assert plan(planner, sa.select(Stranger)).unknown == ("strangers",)
    assert plan(planner, sa.insert(Stranger).values(id=1)).unknown == ("strangers",)
    assert plan(planner, sa.select(sa.table("pg_class", sa.column("relname")))).unknown == ()


def test_locking_reads_count_as_writes(planner: Planner) -> None:
    assert plan(planner, sa.select(User).where(User.id == 5).with_for_update()).writes
    assert not plan(planner, sa.select(User).where(User.id == 5)).writes
