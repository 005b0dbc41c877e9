"""What `shardwright lint` finds in models, whether they have heard of shardwright or not, and in recorded statements."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardwright.routing.proposing import propose_key
from shardwright.routing.readiness import Finding, Readiness, judge, with_statements
from shardwright.routing.tables import global_on, reference, sharded_by


def rules(found: Readiness) -> set[tuple[str, str, str]]:
    return {(one.weight, one.rule, one.subject) for one in found.findings}


def plain() -> type[DeclarativeBase]:
    """A shop that never heard of shardwright."""

    class Base(DeclarativeBase):
        pass

    class Country(Base):
        __tablename__ = "countries"
        code: Mapped[str] = mapped_column(primary_key=True)

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(unique=True)
        country: Mapped[str] = mapped_column(sa.ForeignKey("countries.code"))
        orders: Mapped[list[Order]] = relationship(back_populates="user")

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))
        number: Mapped[str]
        user: Mapped[User] = relationship(back_populates="orders")
        items: Mapped[list[Item]] = relationship()

    class Item(Base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(sa.ForeignKey("orders.id"))

    class Visit(Base):
        __tablename__ = "visits"
        user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), primary_key=True)
        n: Mapped[int] = mapped_column(primary_key=True)

    Base.registry.configure()
    return Base


def test_models_that_never_heard_of_it_are_judged_by_a_proposed_key() -> None:
    base = plain()
    assert propose_key(base.metadata) == "user_id"
    found = judge(base.metadata, base.registry.mappers, key="user_id")
    assert found.tables == {
        "countries": "reference",
        "items": "unknown",
        "orders": "sharded by user_id",
        "users": "sharded by id",
        "visits": "sharded by user_id",
    }
    assert found.proposed == ("countries", "orders", "users", "visits")
    assert rules(found) == {
        ("refused", "key-from-database", "users"),
        ("refused", "unique-key-lacks-key", "users"),
        ("refused", "key-nullable", "orders"),
        ("refused", "primary-key-lacks-key", "orders"),
        ("look", "numbered-by-each-shard", "orders"),
        ("refused", "no-shard-key", "items"),
    }
    # countries and visits are fit
    assert (found.percent, found.refused) == (40, 5)
    assert found.findings[-1].weight == "look"


def test_without_a_key_what_declares_nothing_is_said() -> None:
    base = plain()
    found = judge(base.metadata, base.registry.mappers)
    assert {rule for _, rule, _ in rules(found)} == {"undeclared"}
    assert found.percent == 0
    assert propose_key(sa.MetaData()) is None


def test_models_that_are_fit_have_nothing_to_say() -> None:
    metadata = sa.MetaData()
    sa.Table("places", metadata, sa.Column("id", sa.Text, primary_key=True), info=reference())
    users = sa.Table(
        "users", metadata,
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("place", sa.ForeignKey("places.id")),
        info=sharded_by("id"),
    )  # fmt: skip
    sa.Table(
        "orders", metadata,
        sa.Column("user_id", sa.ForeignKey(users.c.id), primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("number", sa.Text),
        sa.UniqueConstraint("user_id", "number"),
        info=sharded_by("user_id"),
    )  # fmt: skip
    found = judge(metadata)
    assert found.findings == ()
    assert (found.percent, found.refused, found.proposed) == (100, 0, ())


KEY = sa.Column("user_id", sa.BigInteger, primary_key=True, autoincrement=False)
NAME = sa.Column("name", sa.Text, primary_key=True)


@pytest.mark.parametrize(
    ("columns", "info", "rule"),
    [
        ([sa.Column("user_id", sa.BigInteger), sa.Column("id", sa.Integer, primary_key=True)], {}, "primary-key-lacks-key"),
        ([sa.Column("user_id", sa.BigInteger, nullable=False)], {}, "no-primary-key"),
        ([sa.Column("user_id", sa.Numeric, primary_key=True)], {}, "key-type"),
        ([sa.Column("user_id", sa.Text, primary_key=True)], {}, "key-type"),
        ([sa.Column("user_id", sa.Enum("a", "b", name="e"), primary_key=True)], {}, "key-type"),
        ([sa.Column("user_id", sa.BigInteger, sa.Computed("1"), primary_key=True)], {}, "key-computed"),
        ([sa.Column("user_id", sa.BigInteger, sa.Identity(always=True), primary_key=True)], {}, "key-from-database"),
        ([sa.Column("user_id", sa.BigInteger, primary_key=True)], {}, "key-from-database"),
        ([KEY, sa.Column("email", sa.Text, unique=True)], {}, "unique-key-lacks-key"),
        ([KEY, sa.Column("email", sa.Text), sa.Index("e", "email", unique=True)], {}, "unique-key-lacks-key"),
        ([KEY, sa.Column("email", sa.Text), sa.Index("e", sa.text("lower(email)"), unique=True)], {}, "unique-key-lacks-key"),
        ([KEY, sa.Column("other", sa.ForeignKey("users.user_id"))], {}, "foreign-key-crosses"),
        ([KEY, sa.Column("at", sa.ForeignKey("settings.name"))], {}, "foreign-key-crosses"),
        ([KEY, sa.Column("at", sa.ForeignKey("elsewhere.id"))], {}, "foreign-key-crosses"),
        ([NAME, sa.Column("u", sa.ForeignKey("users.user_id"))], reference(), "foreign-key-crosses"),
        ([KEY], sharded_by("id"), "bad-declaration"),
        ([KEY], sharded_by("user_id") | reference(), "bad-declaration"),
    ],
)  # fmt: skip
def test_what_would_be_refused(columns: list[Any], info: dict[str, Any], rule: str) -> None:
    metadata = sa.MetaData()
    owner = [sa.Column("user_id", sa.BigInteger, primary_key=True, autoincrement=False)]
    sa.Table("users", metadata, *owner, info=sharded_by("user_id"))
    sa.Table("settings", metadata, sa.Column("name", sa.Text, primary_key=True), info=global_on("s1"))
    sa.Table(
        "elsewhere",
        metadata,
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        info=sharded_by("id", keyspace="others"),
    )
    copies = [one._copy() if isinstance(one, sa.Column) else one for one in columns]
    sa.Table("things", metadata, *copies, info=info or sharded_by("user_id"))
    found = judge(metadata)
    assert ("refused", rule, "things") in rules(found)
    assert {one.subject for one in found.findings} == {"things"}
    assert found.percent < 100
    assert all(one.what and one.fix for one in found.findings)


def test_relationships_that_ask_other_shards() -> None:
    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        __table_args__ = ({"info": sharded_by("id")},)
        id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
        name: Mapped[str]
        orders: Mapped[list[Order]] = relationship(primaryjoin="User.id == foreign(Order.user_id)")
        namesakes: Mapped[list[Order]] = relationship(primaryjoin="User.name == foreign(Order.label)", viewonly=True)
        setting: Mapped[Setting] = relationship(primaryjoin="foreign(User.name) == Setting.name", viewonly=True)

    class Order(Base):
        __tablename__ = "orders"
        __table_args__ = ({"info": sharded_by("user_id")},)
        user_id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
        n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        label: Mapped[str]
        country: Mapped[Country] = relationship(primaryjoin="foreign(Order.label) == Country.code")

    class Country(Base):
        __tablename__ = "countries"
        __table_args__ = ({"info": reference()},)
        code: Mapped[str] = mapped_column(primary_key=True)
        orders: Mapped[list[Order]] = relationship(primaryjoin="foreign(Order.label) == Country.code", viewonly=True)

    class Setting(Base):
        __tablename__ = "settings"
        __table_args__ = ({"info": global_on("s1")},)
        name: Mapped[str] = mapped_column(primary_key=True)

    Base.registry.configure()
    found = judge(Base.metadata, Base.registry.mappers)
    assert rules(found) == {
        ("scatters", "relationship-crosses", "User.namesakes"),
        ("refused", "relationship-crosses", "User.setting"),
        ("scatters", "relationship-crosses", "Country.orders"),
    }
    assert [one.table for one in found.findings if one.weight == "refused"] == ["users"]
    assert found.percent == 75


def test_recorded_statements_are_counted_by_what_became_of_them() -> None:
    metadata = sa.MetaData()
    sa.Table("users", metadata, KEY._copy(), info=sharded_by("user_id"))
    refusal = {"code": "SW604", "kind": "no-shard-key", "reason": "no key", "way_out": "name it"}

    def line(statement: str, where: str, at: str, count: int, **more: Any) -> dict[str, Any]:
        return {"statement": statement, "where": where, "at": at, "count": count, **more}

    found = with_statements(
        judge(metadata),
        [
            line("SELECT 1", "one", "a.py:1 in f", 10),
            line("SELECT 2", "any", "a.py:1 in f", 1),
            line("SELECT 3", "everywhere", "a.py:2 in f", 3, without_key="nothing ties it"),
            line("SELECT 3", "everywhere", "a.py:5 in f", 4, without_key="nothing ties it"),
            line("SELECT 4", "some", "a.py:6 in f", 1, without_key=None),
            line("DELETE", "refused", "a.py:7 in f", 2, refusal=refusal),
        ],
    )
    assert found.statements == {"one shard": 2, "several shards": 2, "refused": 1}
    assert found.executions == {"one shard": 11, "several shards": 8, "refused": 2}
    told = [(one.weight, one.rule, one.count, one.places) for one in found.findings]
    assert told == [
        ("refused", "no-shard-key", 2, ("a.py:7 in f",)),
        ("scatters", "asks-every-shard", 7, ("a.py:2 in f", "a.py:5 in f")),
        ("scatters", "asks-some-shards", 1, ("a.py:6 in f",)),
    ]
    assert (found.findings[0].what, found.findings[0].fix) == ("no key", "name it")
    # One table and five statements, of which one is refused.
    assert found.percent == 83


def test_it_is_100_only_when_nothing_is_refused() -> None:
    tables = {f"t{number}": "reference" for number in range(300)}
    elsewhere = Finding("refused", "bad-declaration", "somewhere", "it contradicts itself", "mend it")
    assert Readiness(tables, (), ()).percent == 100
    assert Readiness(tables, (), (elsewhere,)).percent == 99
    assert Readiness({}, (), ()).percent == 100
