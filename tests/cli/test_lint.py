"""`shardwright lint`, as a team runs it that has not decided yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fix_cli import Ran

PLAIN = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

print("imported")

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    email: Mapped[str] = mapped_column(unique=True)

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
"""
FIT = """
import sqlalchemy as sa
from shardwright import sharded_by
metadata = sa.MetaData()
users = sa.Table("users", metadata, sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False), info=sharded_by("id"))
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "fit.py").write_text(FIT)
    return tmp_path


def test_models_that_never_heard_of_shardwright(there: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("lint", "plain", cwd=there)
    assert ran.code == 3
    assert "no table declares anything: judged as if sharded by user_id (--key)" in ran.out
    assert "refused: orders: it has a primary key without user_id [primary-key-lacks-key]" in ran.out
    assert "  fix: make it PRIMARY KEY (user_id, id)" in ran.out
    assert "readiness 0 %; 2 findings would be refused" in ran.out
    found = cli("lint", "plain:Base", "--key", "user_id", "--json", cwd=there)
    assert found.code == 3
    assert (found.json["key"], found.json["key_proposed"], found.json["refused"]) == ("user_id", False, 2)
    assert found.json["tables"] == {"orders": "sharded by user_id", "users": "sharded by id"}
    assert {one["rule"] for one in found.json["findings"] if one["weight"] == "refused"} == {
        "primary-key-lacks-key",
        "unique-key-lacks-key",
    }


def test_fit_models_and_recorded_statements(there: Path, cli: Callable[..., Ran]) -> None:
    clean = cli("lint", "fit", "--json", cwd=there).ok()
    assert (clean.json["readiness"], clean.json["findings"]) == (100, [])
    assert clean.json["next_steps"] == ["shardwright table register fit"]
    line = {"statement": "SELECT 1", "where": "everywhere", "count": 2, "without_key": "nothing ties it"}
    recorded = there / "found.jsonl"
    recorded.write_text("".join(json.dumps(line | {"at": f"a.py:{n} in f"}) + "\n" for n in range(5)))
    scatters = cli("lint", "fit:metadata", "--statements", recorded, cwd=there).ok()
    assert "scatters: SELECT 1 (10 times): nothing ties it [asks-every-shard]" in scatters.out
    assert "  at: a.py:0 in f; a.py:1 in f; a.py:2 in f; and 2 more places" in scatters.out
    assert "readiness 100 %; 0 findings would be refused" in scatters.out
    recorded.write_text(json.dumps(line | {"where": "refused", "at": "a.py:1 in f"}) + "\n")
    assert cli("lint", "fit", "--statements", recorded, cwd=there).code == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "module absent cannot be imported"),
        (["plain:Nothing"], "has no attribute 'Nothing'"),
        (["json"], "json has no tables"),
        (["fit", "--statements", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["fit", "--statements", "fit.py"], "fit.py, line 1: this is no recorded statement"),
    ],
)
def test_what_cannot_be_read(words: list[str], said: str, there: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("lint", *words, "--json", cwd=there)
    assert ran.code == 2
    assert said in ran.json["error"]["message"]
