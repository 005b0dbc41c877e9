"""What tables declare in `Table.info`, and names of tables as people give them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright.catalog.tables import split_name
from shardwright.errors import BadDeclaration, BadOption
from shardwright.routing.tables import (
    Declaration,
    check_declared,
    declaration_of,
    global_on,
    reference,
    sharded_by,
)


def table(info: dict[str, object], *more: sa.schema.SchemaItem) -> sa.Table:
    columns = (sa.Column("user_id", sa.BigInteger, primary_key=True), sa.Column("id", sa.Integer, primary_key=True))
    return sa.Table("orders", sa.MetaData(), *columns, sa.Column("email", sa.Text), *more, info=info)


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (sharded_by("user_id"), Declaration("sharded", "user_id", "users")),
        (sharded_by("user_id", keyspace="tenants"), Declaration("sharded", "user_id", "tenants")),
        (reference(), Declaration("reference")),
        (reference(home="s2"), Declaration("reference", home="s2")),
        (global_on("s1"), Declaration("global", home="s1")),
        (sharded_by("user_id") | {"owner": "billing"}, Declaration("sharded", "user_id", "users")),
        ({"owner": "billing"}, None),
        ({}, None),
    ],
)
def test_a_declaration_is_read_back(info: dict[str, object], wanted: Declaration | None) -> None:
    assert declaration_of(table(info)) == wanted


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (sharded_by("user_id") | reference(), "reference and sharded"),
        (reference() | global_on("s1"), "global and reference"),
        (sharded_by("nobody"), "a column that it does not have"),
        ({"shardwright.sharded": {"column": "user_id"}}, "no function of shardwright made"),
        ({"shardwright.sharded": "user_id"}, "no function of shardwright made"),
        ({"shardwright.shraded": {}}, "no function of shardwright made"),
    ],
)
def test_contradictions_are_refused(info: dict[str, object], said: str) -> None:
    with pytest.raises(BadDeclaration, match=said):
        declaration_of(table(info))


def test_a_mapped_class_declares_in_its_table_arguments() -> None:
    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        __table_args__ = {"info": sharded_by("uid")}  # noqa: RUF012
        # the attribute's name is not the column's
        user_id: Mapped[int] = mapped_column("uid", primary_key=True)

    declared = declaration_of(Base.metadata.tables["users"])
    assert declared == Declaration("sharded", "uid", "users")
    check_declared(Base.metadata.tables["users"], declared)


@pytest.mark.parametrize(
    ("key", "more", "said"),
    [
        ("email", (), "its primary key lacks that column"),
        ("user_id", (sa.UniqueConstraint("email"),), r"UNIQUE \(email\) lacks"),
        ("user_id", (sa.Index("by_email", "email", unique=True),), "unique index by_email lacks"),
    ],
)
def test_models_that_cannot_be_sharded(key: str, more: tuple[sa.schema.SchemaItem, ...], said: str) -> None:
    made = table(sharded_by(key), *more)
    declared = declaration_of(made)
    assert declared is not None
    with pytest.raises(BadDeclaration, match=said):
        check_declared(made, declared)


def test_models_that_can() -> None:
    more = (sa.UniqueConstraint("user_id", "email"), sa.Index("by_email", "email"), sa.Index("b", "email", "user_id"))
    made = table(sharded_by("user_id"), *more)
    declared = declaration_of(made)
    assert declared is not None
    check_declared(made, declared)


@pytest.mark.parametrize(
    ("given_name", "wanted"),
    [
        ("orders", ("public", "orders")),
        ("shop.orders", ("shop", "orders")),
        ('"Shop"."a.b"', ("Shop", "a.b")),
        ('"a""b"', ("public", 'a"b')),
        ("Orders", ("public", "Orders")),
        ("Ünïcode", ("public", "Ünïcode")),
    ],
)
def test_names_of_tables(given_name: str, wanted: tuple[str, str]) -> None:
    assert split_name(given_name) == wanted


@pytest.mark.parametrize("bad", ["", ".", "a.", ".a", "a.b.c", '"a', '""', '"a"b', 'a."b"c', "a\0b"])
def test_what_is_no_name(bad: str) -> None:
    with pytest.raises(BadOption):
        split_name(bad)


@given(
    st.text(min_size=1).filter(lambda text: "\0" not in text), st.text(min_size=1).filter(lambda text: "\0" not in text)
)
def test_every_quoted_name_is_read(schema: str, name: str) -> None:
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
    assert split_name(quoted) == (schema, name)
