"""Statements of an application that does not use shardwright yet, recorded while its own tests run."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

class Order(Base):
    __tablename__ = "orders"
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)

class Country(Base):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)

def test_as_ever():
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(id=1, name="secret"))
        session.add(Order(user_id=1, n=1))
        session.commit()
        for _ in range(2):
            session.scalars(sa.select(Order).where(Order.user_id == 1)).all()
        session.scalars(sa.select(User).where(User.name == "x")).all()
        session.scalars(sa.select(Country)).all()
        session.execute(sa.select(Order).join(User, User.id == Order.user_id).where(User.id == 1)).all()
        session.execute(sa.update(User).where(User.name == "x").values(name="y"))
        session.execute(sa.text("SELECT 1"))
        session.get(User, 1)
"""


def test_plain_engines_are_judged_by_a_proposed_key(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_app=TESTS)
    result = pytester.runpytest_subprocess(
        "--shardwright-record=found.jsonl", "--shardwright-key=user_id", "-p", "no:cacheprovider", timeout=60
    )
    result.assert_outcomes(passed=1)
    text = (pytester.path / "found.jsonl").read_text()
    assert "secret" not in text
    found = [json.loads(line) for line in text.splitlines()]
    told = [(" ".join(one["statement"].split()[:3]), one["where"], one["count"]) for one in found]
    expected = [
        ("INSERT INTO users", "one", 1),
        ("INSERT INTO orders", "one", 1),
        ("SELECT orders.user_id, orders.n", "one", 2),
        ("SELECT users.id, users.name", "everywhere", 1),
        ("SELECT countries.code FROM", "any", 1),
        ("SELECT orders.user_id, orders.n", "one", 1),
        ("UPDATE users SET", "refused", 1),
        ("SELECT 1", "refused", 1),
        ("SELECT users.id, users.name", "one", 1),
    ]
    assert sorted(told) == sorted(expected)
    assert all(one["at"].startswith("test_app.py:") for one in found)
    # Unless it is asked for, plain engines are left alone.
    pytester.runpytest_subprocess("--shardwright-record=none.jsonl", timeout=60).assert_outcomes(passed=1)
    assert (pytester.path / "none.jsonl").read_text() == ""
