"""Tables that models declare are made on every shard and come under our care; a refusal leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from fix_catalog import Found, refused
from shardwright.catalog import models
from shardwright.errors import (
    BadDeclaration,
    UnfitTable,
)
from shardwright.routing.tables import global_on, reference, sharded_by


def metadata() -> sa.MetaData:
    made = sa.MetaData()
    sa.Table(
        "users", made, sa.Column("user_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("mood", sa.Enum("sad", "ok", name="mood")), info=sharded_by("user_id"),
    )  # fmt: skip
    sa.Table(
        "orders", made,
        sa.Column("user_id", sa.ForeignKey("users.user_id"), primary_key=True),
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("country", sa.ForeignKey("countries.code")),
        sa.Index("by_country", "country"), info=sharded_by("user_id"), schema="shop",
    )  # fmt: skip
    sa.Table("countries", made, sa.Column("code", sa.Text, primary_key=True), info=reference(home="s2"))
    sa.Table("weather", made, sa.Column("id", sa.Integer, primary_key=True), info=global_on("s2"))
    sa.Table("secret", made, sa.Column("id", sa.Integer, primary_key=True))
    return made


def test_models_are_made_on_every_shard(found: Callable[..., Found]) -> None:
    cluster = found(2)
    done = models.register(cluster.catalog, metadata())
    assert set(done.created) == {"public.users", "public.countries", "public.weather", "shop.orders"}
    assert done.undeclared == ("secret",)
    seen = {
        shard: [
            row[0]
            for row in cluster.shard(shard).execute(
                "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('public', 'shop') ORDER BY 1"
            )
        ]
        for shard in ("s1", "s2")
    }
    assert seen["s1"] == ["public.countries", "public.users", "shop.orders"]
    assert seen["s2"] == ["public.countries", "public.users", "public.weather", "shop.orders"]
    again = models.register(cluster.catalog, metadata())
    assert again.created == ()
    assert again.tables == done.tables
    cluster.shard("s1").execute("INSERT INTO users VALUES (2, 'ok')")
    assert refused(cluster.shard("s1"), "INSERT INTO countries VALUES ('de')") == "SH004"
    assert refused(cluster.shard("s2"), "INSERT INTO countries VALUES ('de')") is None


def test_a_refusal_of_models_leaves_nothing(found: Callable[..., Found]) -> None:
    cluster = found(2)
    bad = metadata()
    bad.tables["users"].append_column(sa.Column("r", sa.Text, sa.CheckConstraint("nonsense(r)")))
    with pytest.raises(UnfitTable, match="nonsense"):
        models.register(cluster.catalog, bad)
    late = metadata()
    sa.Table("bad", late, sa.Column("user_id", sa.Numeric, primary_key=True), info=sharded_by("user_id"))
    with pytest.raises(UnfitTable, match="of type numeric"):
        models.register(cluster.catalog, late)
    for shard in ("s1", "s2"):
        assert cluster.ask(shard, "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'shop')") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weather": {}}, "declares nothing and so is on no other shard"),
        ({"weather": global_on("s1")}, "lives on shard s1 only"),
    ],
)
def test_models_with_a_foreign_key_that_no_shard_can_enforce(
    found: Callable[..., Found], change: dict[str, dict[str, Any]], said: str
) -> None:
    cluster = found(2)
    bad = metadata()
    bad.tables["weather"].info = change["weather"]
    bad.tables["users"].append_column(sa.Column("w", sa.ForeignKey("weather.id")))
    with pytest.raises(BadDeclaration, match=said):
        models.register(cluster.catalog, bad)


def test_nothing_declared(found: Callable[..., Found]) -> None:
    made = sa.MetaData()
    sa.Table("t", made, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(BadDeclaration, match="none of the 1 tables"):
        models.register(found(1).catalog, made)
