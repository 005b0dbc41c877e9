"""Reads of several shards: the same answer as one plain database gives, in every phase of a handover, or a refusal."""

from __future__ import annotations

import datetime
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, aliased, joinedload, selectinload, subqueryload
from sqlalchemy.sql.functions import GenericFunction

from fix_sessions import Base, Country, Order, Reading, Shop, User
from shardwright import errors

pytestmark = [pytest.mark.every_driver, pytest.mark.newest_postgres]

f = sa.func
users, orders, readings = User.__table__, Order.__table__, Reading.__table__
other = aliased(User, name="other")
o2 = orders.alias("o2")
C = "C"
THIRD, HIGH, COUNTRY = User.score % 3, User.score > 50, User.country.collate("C")
LAND = Country.name.collate("C")

#: Statements whose order is fixed: the answers must be equal, row by row.
ORDERED: list[Callable[[], Any]] = [
    lambda: sa.select(User).order_by(User.id),
    lambda: sa.select(User).order_by(User.id.desc()),
    lambda: sa.select(User).order_by(User.id).limit(7),
    lambda: sa.select(User).order_by(User.id).limit(7).offset(5),
    lambda: sa.select(User).order_by(User.id).offset(15),
    lambda: sa.select(User).order_by(User.id).limit(0),
    lambda: sa.select(User).order_by(User.id).fetch(4),
    lambda: sa.select(User).order_by(User.score, User.id),
    lambda: sa.select(User).order_by(User.score.desc(), User.id),
    lambda: sa.select(User).order_by(User.score.nulls_first(), User.id.desc()),
    lambda: sa.select(User).order_by(User.score.desc().nulls_last(), User.id),
    lambda: sa.select(User).order_by(User.score.desc().nulls_first(), User.id).limit(9),
    lambda: sa.select(User.name).order_by(User.name.collate(C)),
    lambda: sa.select(User.id).order_by(User.name.collate(C).desc(), User.id).limit(6),
    lambda: sa.select(User.id, User.country).order_by(User.country.collate(C).nulls_first(), User.id),
    lambda: sa.select(User).where(User.score > 40).order_by(User.id),
    lambda: sa.select(User).where(User.country.in_(["de", "fr"])).order_by(User.id).limit(5),
    lambda: sa.select(User).where(User.country.is_(None)).order_by(User.id),
    lambda: sa.select(User.id.label("k"), (User.score + 1).label("s")).order_by(sa.desc("s"), "k"),
    lambda: sa.select(User.id).order_by(User.id % 7, User.id),
    lambda: sa.select(User.id).order_by(sa.case((User.score > 50, 0), else_=1), User.id),
    lambda: sa.select(User.id).order_by(f.abs(User.score - 50), User.id),
    lambda: sa.select(f.length(User.name)).order_by(f.length(User.name), User.id),
    lambda: sa.select(users).order_by(users.c.id),
    lambda: sa.select(users.c.name, users.c.id).order_by(users.c.id.desc()).limit(3).offset(2),
    lambda: sa.select(other).order_by(other.id).limit(5),
    lambda: sa.select(other.id).order_by(other.id),
    lambda: sa.select(User, Order).join(Order, Order.user_id == User.id).order_by(User.id, Order.n),
    lambda: sa.select(User.name, Order.amount).join(User.orders).order_by(Order.amount.desc(), User.id, Order.n).limit(12),
    lambda: sa.select(User.id, Order.amount).outerjoin(User.orders).order_by(User.id, Order.n.nulls_first()),
    lambda: sa.select(Order).join(Order.user).where(User.score > 30).order_by(Order.user_id, Order.n),
    lambda: sa.select(User.id, Country.name).join(Country, Country.code == User.country).order_by(User.id),
    lambda: sa.select(User.id, Country.name).outerjoin(Country, Country.code == User.country).order_by(User.id),
    lambda: sa.select(orders, o2.c.n).join(o2, o2.c.user_id == orders.c.user_id).order_by(*orders.primary_key, o2.c.n),
    lambda: sa.select(User).where(User.orders.any(Order.amount > 60)).order_by(User.id),
    lambda: sa.select(User).where(~User.orders.any()).order_by(User.id),
    lambda: sa.select(User.id).where(User.id.in_(sa.select(Order.user_id).where(Order.amount > 70))).order_by(User.id),
    lambda: sa.select(
        User.id, sa.select(f.count()).where(Order.user_id == User.id).scalar_subquery().label("c")
    ).order_by(User.id),
    lambda: sa.select(User).options(joinedload(User.orders)).order_by(User.id),
    lambda: sa.select(User).options(selectinload(User.orders)).order_by(User.id).limit(8),
    lambda: sa.select(Order).options(joinedload(Order.user)).order_by(Order.user_id, Order.n).limit(10),
    lambda: sa.select(User).where(User.id.in_([1, 2, 3, 4, 5, 6, 7, 8])).order_by(User.id.desc()),
    lambda: sa.select(User).where(sa.or_(User.id == 3, User.id == 4, User.id == 11)).order_by(User.id),
    lambda: sa.select(User.id).where(User.id.in_(range(1, 30))).order_by(User.id).limit(5).offset(3),
    lambda: sa.select(Reading.at).order_by(Reading.at, Reading.user_id),
    lambda: sa.select(Reading.local).order_by(Reading.local.desc(), Reading.user_id).limit(5),
    lambda: sa.select(Reading.day, Reading.user_id).order_by(Reading.day, Reading.user_id),
    lambda: sa.select(Reading.tag).order_by(Reading.tag.desc()),
    lambda: sa.select(Reading.blob).order_by(Reading.blob.nulls_first(), Reading.user_id),
    lambda: sa.select(Reading.flag, Reading.user_id).order_by(Reading.flag.desc(), Reading.user_id),
    lambda: sa.select(Reading.ratio, Reading.user_id).order_by(Reading.ratio, Reading.user_id),
    lambda: sa.select(Reading.price, Reading.user_id).order_by(Reading.price.desc(), Reading.user_id),
    lambda: sa.select(f.count()).select_from(User),
    lambda: sa.select(f.count(User.score)),
    lambda: sa.select(f.count()).select_from(User).where(User.country == "de"),
    lambda: sa.select(f.count()).select_from(User).where(User.id > 10_000),
    lambda: sa.select(f.sum(User.score)),
    lambda: sa.select(f.sum(User.score)).where(User.id > 10_000),
    lambda: sa.select(f.sum(User.id)),
    lambda: sa.select(f.sum(users.c.score), f.sum(users.c.id), f.sum(users.c.id + 1)),
    lambda: sa.select(f.sum(Reading.price), f.avg(Reading.price), f.min(Reading.price), f.max(Reading.price)),
    lambda: sa.select(f.sum(Reading.price)).where(Reading.price != sa.literal(Decimal("NaN"))),
    lambda: sa.select(f.avg(User.score), f.avg(User.id), f.avg(Order.amount)).join(User.orders),
    lambda: sa.select(f.avg(User.score)).where(User.id < 0),
    lambda: sa.select(f.min(User.score), f.max(User.score), f.min(User.id), f.max(User.id)),
    lambda: sa.select(f.max(User.name.collate(C)), f.min(User.name.collate(C))),
    lambda: sa.select(f.min(Reading.at), f.max(Reading.local), f.max(Reading.day), f.max(Reading.ratio)),
    lambda: sa.select(f.count().filter(User.score > 50), f.sum(User.score).filter(User.country == "de")),
    lambda: sa.select(f.avg(User.score).filter(User.score > 20), f.count()),
    lambda: sa.select(f.count()).select_from(User).limit(1),
    lambda: sa.select(f.count()).select_from(User).offset(1),
    lambda: sa.select(f.count()).select_from(User).join(User.orders),
    lambda: sa.select(f.count(Order.n)).select_from(User).outerjoin(User.orders),
    lambda: sa.select(User.country, f.count()).group_by(User.country).order_by(COUNTRY),
    lambda: sa.select(User.country, f.count().label("c")).group_by(User.country).order_by(sa.desc("c"), COUNTRY),
    lambda: sa.select(User.country).group_by(User.country).order_by(f.count().desc(), COUNTRY).limit(2),
    lambda: sa.select(User.country, f.avg(User.score)).group_by(User.country).order_by(f.avg(User.score), COUNTRY),
    lambda: sa.select(f.max(User.score)).group_by(User.country).order_by(f.max(User.score)),
    lambda: sa.select(THIRD, f.sum(User.id)).group_by(THIRD).order_by(THIRD.nulls_first()),
    lambda: sa.select((User.score % 3).label("m"), f.sum(User.id)).group_by("m").order_by(sa.desc("m")),
    lambda: sa.select(User.country, HIGH, f.count()).group_by(User.country, HIGH).order_by(COUNTRY, HIGH.nulls_first()),
    lambda: sa.select(Order.user_id, f.sum(Order.amount)).group_by(Order.user_id).order_by(Order.user_id).limit(6).offset(2),
    lambda: sa.select(User.name, f.count(Order.n)).outerjoin(User.orders).group_by(User.id).order_by(User.id),
    lambda: sa.select(Country.name, f.count()).join(User, User.country == Country.code).group_by(Country.name).order_by(LAND),
    lambda: sa.select(Reading.price, f.count()).group_by(Reading.price).order_by(Reading.price.nulls_first()),
    lambda: sa.select(Reading.ratio, f.count()).group_by(Reading.ratio).order_by(Reading.ratio),
    lambda: sa.select(Reading.day, f.max(Reading.at)).group_by(Reading.day).order_by(Reading.day),
    lambda: sa.select(User.country).distinct().order_by(User.country.desc()).limit(2).offset(1),
    lambda: sa.select(User).distinct().order_by(User.id).limit(4),
    lambda: sa.select(User.country, f.count()).group_by(User.country).having(f.count() > 2).order_by(User.country),
    lambda: sa.select(User.country).group_by(User.country).having(
        sa.or_(f.avg(User.score) > 60, User.country == "de")
    ).order_by(User.country),
    lambda: sa.select(f.count() + 1, f.coalesce(f.sum(User.score), 0), f.round(f.avg(User.score), 2)).select_from(User),
    lambda: sa.select(f.coalesce(f.sum(User.score), 0)).where(User.id < 0),
    lambda: sa.select(f.sum(sa.cast(User.score, sa.REAL)), f.bool_and(User.score > 1), f.bool_or(User.score > 90)),
    lambda: sa.select(User).order_by(User.name.collate("odd"), User.id).limit(7),
    lambda: sa.select(f.max(User.name.collate("odd")), f.min(User.name)),
    lambda: sa.select(Reading.doc).order_by(Reading.doc.desc()),
    lambda: sa.select(Order.user_id, f.count(sa.distinct(Order.amount))).group_by(Order.user_id).order_by(Order.user_id),
    lambda: sa.select(f.count(sa.distinct(Order.user_id))),
    lambda: sa.select(
        Order.n, f.row_number().over(partition_by=Order.user_id, order_by=Order.n)
    ).order_by(Order.user_id, Order.n),
]  # fmt: skip

#: Statements without an order: the answers must have the same rows, as often.
UNORDERED: list[Callable[[], Any]] = [
    lambda: sa.select(User),
    lambda: sa.select(sa.select(User).subquery()),
    lambda: sa.select(User).options(subqueryload(User.orders)),
    lambda: sa.select(users),
    lambda: sa.select(User.country),
    lambda: sa.select(User.id, Order.n).join(User.orders),
    lambda: sa.select(User.country, f.count(), f.sum(User.score)).group_by(User.country),
    lambda: sa.select(Reading.flag, f.count()).group_by(Reading.flag),
    lambda: sa.select(User).where(User.id.in_([2, 4, 6, 8, 10])),
    lambda: sa.select(User.id, sa.literal(1), sa.null()),
    lambda: sa.select(Reading.doc),
    lambda: sa.select(User.name).where(User.name.like("%1%")),
    lambda: sa.select(f.upper(User.name)),
]  # fmt: skip

#: What one database answers and several cannot: refused, and why.
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: sa.select(User.country).distinct().order_by(User.score), "what is not selected"),
    (lambda: sa.select(f.array_agg(postgresql.aggregate_order_by(User.id, User.score))), "order inside array_agg"),
    (lambda: sa.select(f.count(sa.distinct(User.country))), "DISTINCT"),
    (lambda: sa.select(f.row_number().over(order_by=User.id)), "window function"),
    (lambda: sa.select(f.rank().over(order_by=User.id), User.id), "window function"),
    (lambda: sa.select(f.string_agg(User.name, User.country)), "delimiter"),
    (lambda: sa.select(f.jsonb_agg(User.name)), "jsonb_agg"),
    (lambda: sa.select(f.sum(sa.distinct(User.score))), "DISTINCT"),
    (lambda: sa.select(f.avg(sa.cast(User.score, sa.REAL))), "sums of type real"),
    (lambda: sa.select(f.stddev(User.score)), "stddev"),
    (lambda: sa.select(f.percentile_cont(0.5).within_group(User.score)), "ordered-set"),
    (lambda: sa.select(f.last_of(User.score)), "last_of"),
    (lambda: sa.select(User, Order), "not joined by their shard keys"),
    (lambda: sa.select(User, Order).join(Order, Order.n == User.id), "not joined by their shard keys"),
    (lambda: sa.select(User, Order).outerjoin(Order, Order.user_id == User.id, full=True), "FULL JOIN"),
    (lambda: sa.select(Country, User.id).outerjoin(User, User.country == Country.code), "keeps the rows of a table"),
    (lambda: sa.select(sa.select(User.id).limit(3).cte()), "subquery in FROM"),
    (lambda: sa.select(User.id).union(sa.select(Order.user_id)), "UNION"),
    (lambda: sa.select(User).options(joinedload(User.orders)).limit(3), "subquery in FROM"),
    (lambda: sa.select(User).where(User.score > sa.select(f.avg(User.score)).scalar_subquery()), "twice"),
    (lambda: sa.select(User).where(User.score > sa.select(f.avg(other.score)).scalar_subquery()), "not joined"),
    (lambda: sa.select(User).where(User.name.in_(sa.select(sa.cast(Order.n, sa.String)))), "not joined by their shard keys"),
    (lambda: sa.select(User).where(sa.text("name > 'a' AND EXISTS (SELECT 1)")), "may contain a query"),
    (lambda: sa.select(sa.literal_column("count(*)")).select_from(User), "text in its columns"),
    (lambda: sa.select(sa.text("count(*)")).select_from(User), "text in its columns"),
    (lambda: sa.select(User).with_for_update(), "locks rows"),
    (lambda: sa.select(User).order_by(User.id).fetch(3, with_ties=True), "WITH TIES"),
    (lambda: sa.select(User.country, f.count()).group_by(f.rollup(User.country)), "grouped"),
]  # fmt: skip


def _plain(value: Any) -> Any:
    """What a row or an object amounts to, for comparison."""
    if isinstance(value, Base):
        own = tuple(_exact(getattr(value, column.key)) for column in value.__mapper__.column_attrs)
        loaded = tuple(tuple(map(_plain, value.orders)) for _ in "x" if "orders" in value.__dict__)
        return (type(value).__name__, *own, *loaded)
    return _exact(value)


def _exact(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, float) and value != value:
        return "nan"
    return str(value) if isinstance(value, (dict, list)) else value


def answer(session: Session, statement: Any) -> list[Any]:
    result = session.execute(statement)
    names = tuple(result.keys())
    rows = (result.unique() if statement._with_options else result).all()
    return [names, *(tuple(map(_plain, row)) for row in rows)]


@pytest.fixture
def filled(shop: Shop, rng: random.Random, make_database: Callable[..., str]) -> Iterator[tuple[Shop, sa.Engine]]:
    """The shop with random rows, and one plain database with the same rows."""
    plain = sa.create_engine("postgresql+psycopg://", creator=lambda: __import__("psycopg").connect(database))
    database = make_database("plain")
    aggregate = 'CREATE AGGREGATE last_of(int) (sfunc = int4larger, stype = int); CREATE COLLATION odd FROM "C"'
    for name in ("s1", "s2"):
        shop.shard(name).execute(aggregate.encode())
    with plain.begin() as connection:
        connection.exec_driver_sql(aggregate)
    Base.metadata.create_all(plain)
    countries = ["de", "fr", "it", None]
    rows: list[Any] = [Country(code=code, name=f"name of {code}") for code in countries if code]
    day = datetime.datetime(2026, 10, 25, tzinfo=datetime.UTC)
    for key in range(1, 41):
        name = f"{rng.choice('aBcDé zZ_')}{rng.randrange(20)}"
        score = rng.choice([None, *(rng.randrange(100) for _ in range(5))])
        rows.append(User(id=key, name=name, score=score, country=rng.choice(countries)))
        rows += [Order(user_id=key, n=n, amount=rng.randrange(100)) for n in range(rng.randrange(4))]
        rows.append(
            Reading(
                user_id=key,
                at=day + datetime.timedelta(minutes=rng.randrange(3000)),
                local=datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=rng.randrange(50)),
                day=datetime.date(2026, 1, 1) + datetime.timedelta(days=rng.randrange(5)),
                tag=uuid.UUID(int=rng.getrandbits(128)),
                blob=rng.choice([None, b"", b"\0", rng.randbytes(2)]),
                flag=rng.choice([True, False, None]),
                ratio=rng.choice([None, 0.0, -1.5, rng.random(), float("nan"), float("inf")]),
                price=rng.choice(
                    [None, Decimal("0.00"), Decimal("1.10"), Decimal(rng.randrange(10**6)) / 100, Decimal("-7.5")]
                ),
                doc={"k": rng.randrange(3)},
            )
        )
    by_shard: dict[str, list[Any]] = {}
    with Session(plain) as session:
        session.add_all([session.merge(row) for row in rows])
        session.commit()
    cluster = shop.connect()
    with cluster.sessionmaker().begin() as session:
        session.add_all([session.merge(row, load=True) for row in rows if isinstance(row, Country)])
    for row in rows:
        if not isinstance(row, Country):
            key = row.id if isinstance(row, User) else row.user_id
            by_shard.setdefault(cluster.map.route("users", key).shard, []).append(row)
    for some in by_shard.values():
        with cluster.sessionmaker().begin() as session:
            for row in some:
                sa.orm.make_transient(row)
            session.add_all(some)
    shop.wait_for_references()
    yield shop, plain
    plain.dispose()


def check_all(shop: Shop, plain: sa.Engine, **options: Any) -> None:
    cluster = shop.connect(**options)
    sessions = cluster.sessionmaker()
    for at, make in enumerate(ORDERED):
        with sessions() as ours, Session(plain) as theirs:
            assert answer(ours, make()) == answer(theirs, make()), f"statement {at}: {make()}"
    for at, make in enumerate(UNORDERED):
        with sessions() as ours, Session(plain) as theirs:
            found, expected = answer(ours, make()), answer(theirs, make())
            assert found[0] == expected[0]
            assert Counter(map(repr, found[1:])) == Counter(map(repr, expected[1:])), f"statement {at}: {make()}"


@pytest.mark.every_driver(tasks="slow")
def test_one_answer_in_every_phase(filled: tuple[Shop, sa.Engine]) -> None:
    shop, plain = filled
    moving = shop.key_on("s1", 1)
    check_all(shop, plain)
    check_all(shop, plain, reads="relaxed")
    shop.importing(moving, "s2")
    check_all(shop, plain)
    shop.hand_over_rest(moving, "s2")
    # The old rows are still on the source.
    assert shop.ask("s1", "SELECT count(*) FROM users WHERE id = %s", moving) == 1
    assert shop.ask("s2", "SELECT count(*) FROM users WHERE id = %s", moving) == 1
    check_all(shop, plain)
    check_all(shop, plain, reads="relaxed")


def test_what_cannot_be_merged_is_refused(filled: tuple[Shop, sa.Engine]) -> None:
    shop, _ = filled
    sessions = shop.connect().sessionmaker()
    for make, why in REFUSED:
        try:
            with sessions() as session:
                session.execute(make()).all()
        except (errors.NotMergeable, errors.NoShardKey) as error:
            refused = error
        else:
            pytest.fail(f"it is answered: {make()}")
        assert why in refused.message, str(make())


class met(GenericFunction[str]):  # noqa: N801 - as in SQL
    """lower(), whose compilation waits a little for another thread's."""

    name = "lower"
    inherit_cache = True
    inside: ClassVar[set[int]] = set()
    together = threading.Event()


@compiles(met)
def _compile_met(element: met, compiler: Any, **options: Any) -> str:
    met.inside.add(threading.get_ident())
    if len(met.inside) > 1:
        met.together.set()
    met.together.wait(0.2)
    met.inside.discard(threading.get_ident())
    return str(compiler.visit_function(element, **options))


@pytest.mark.parametrize("options", [{}, {"stream_results": True}], ids=["all", "stream"])
def test_a_statement_is_compiled_by_one_thread_at_a_time(shop: Shop, options: dict[str, Any]) -> None:
    met.together.clear()
    with shop.connect().sessionmaker()() as session:
        session.execute(sa.select(met(User.name)), execution_options=options).all()
    assert not met.together.is_set()
