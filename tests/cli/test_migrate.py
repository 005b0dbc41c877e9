"""``shardwright migrate`` as a person or a program calls it, and Alembic's own commands beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_catalog import Found
from fix_cli import Ran

MODELS = """
from sqlalchemy import BigInteger, DateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from shardwright import sharded_by, time_partitioned

class Base(DeclarativeBase):
    pass

class Event(Base):
    __tablename__ = "events"
    __table_args__ = {"info": sharded_by("user_id") | time_partitioned("at", every="1 month", ahead=1, guards=False)}
    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(DateTime(timezone=True), primary_key=True)
"""


class Desk:
    """A directory with models, and a cluster of two shards."""

    def __init__(self, found: Found, directory: Path, run: Callable[..., Ran]) -> None:
        self.found, self.directory, self._run = found, directory, run
        self.env = {"SHARDWRIGHT_CATALOG": found.dsns.catalog}
        (directory / "app_models.py").write_text(MODELS)

    def sw(self, *words: object, **env: str) -> Ran:
        return self._run("migrate", *words, cwd=self.directory, env={**self.env, **env})

    def alembic(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", *words],
            cwd=self.directory,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def begin(self) -> None:
        self.sw("init", "migrations", "--metadata", "app_models:Base").ok()
        made = self.alembic("revision", "--autogenerate", "-m", "events")
        assert made.returncode == 0, made.stdout + made.stderr

    def versions(self) -> dict[str, int]:
        return {
            name: self.found.ask(
                name,
                "SELECT count(*) FROM pg_class c WHERE relname = 'alembic_version' AND "
                "query_to_xml('SELECT FROM alembic_version', true, true, '')::text LIKE '%<row%'",
            )
            for name in self.found.dsns.shards
        }


@pytest.fixture
def desk(found: Callable[..., Found], cli: Callable[..., Ran], tmp_path: Path) -> Desk:
    return Desk(found(2), tmp_path, cli)


def test_from_models_to_a_table_on_every_shard(desk: Desk) -> None:
    desk.begin()
    status = desk.sw("status", "--json").ok().json
    assert [len(shard["pending"]) for shard in status["shards"]] == [1, 1]
    assert status["next_steps"] == ["shardwright migrate upgrade"]
    done = desk.sw("upgrade", "--json").ok().json
    assert [shard["shard"] for shard in done["shards"] if shard["revisions"]] == ["s1", "s2"]
    assert done["registered"] == ["public.events"]
    assert done["windows"]["ok"]
    for name in ("s1", "s2"):
        assert desk.found.ask(name, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass") == 2
    checked = desk.alembic("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No new upgrade operations detected" in checked.stdout + checked.stderr
    again = desk.sw("upgrade").ok()
    assert "next: shardwright migrate status" in again.out
    assert desk.sw("status").ok().out.count("up to date") == 2
    desk.found.shard("s2").execute("ALTER TABLE events ADD COLUMN extra int")
    drifted = desk.sw("status", "--json")
    assert drifted.code == 5
    assert drifted.json["drift"] == ["public.events: s1 and s2 differ in column extra: absent / integer"]
    refused = desk.sw("upgrade", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (5, "SW403")


def test_mistakes_are_refused_with_a_fix(desk: Desk) -> None:
    missing = desk.sw("upgrade")
    assert missing.code == 2
    assert "there is no file alembic.ini" in missing.err
    assert "fix: shardwright migrate init migrations" in missing.err
    assert desk.sw("init", "migrations", "--metadata", "no such thing").code == 2
    desk.begin()
    assert "is there already" in desk.sw("init", "migrations").err
    for words in (
        ("upgrade", "+1"),
        ("upgrade", "nowhere"),
        ("upgrade", "--parallel", 0),
        ("upgrade", "--canary", "s9"),
    ):
        ran = desk.sw(*words)
        assert ran.code == 2, ran
        assert "Traceback" not in ran.err
    # Alembic's own command would change one shard only.
    assert "shardwright migrate upgrade" not in desk.alembic("current").stderr
    direct = desk.alembic("upgrade", "head")
    assert direct.returncode != 0
    assert "would change one shard only" in direct.stderr
    assert desk.versions() == {"s1": 0, "s2": 0}
    # The SQL of a revision can be had for reading.
    script = desk.alembic("upgrade", "head", "--sql")
    assert script.returncode == 0, script.stderr
    assert 'PARTITION BY RANGE ("at")' in script.stdout
    assert "INSERT INTO shardwright.declared" in script.stdout


@pytest.mark.parametrize(
    ("failpoint", "left"),
    [
        pytest.param("migrate.before_commit", {"s1": 0, "s2": 0}, marks=pytest.mark.slow),
        ("migrate.shard_upgraded", {"s1": 1, "s2": 0}),
        ("migrate.catalog_written", {"s1": 1, "s2": 1}),
    ],
)
def test_after_a_kill_the_same_command_goes_on(desk: Desk, failpoint: str, left: dict[str, int]) -> None:
    desk.begin()
    killed = desk.sw("upgrade", SHARDWRIGHT_FAILPOINT=f"{failpoint}:crash")
    assert killed.code == -signal.SIGKILL
    assert desk.versions() == left
    assert desk.sw("upgrade", "--json").ok().json["drift"] == []
    _whole(desk)


def test_after_a_kill_between_processes_nothing_goes_on_alone(
    found: Callable[..., Found], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    desk = Desk(found(3), tmp_path, cli)
    desk.begin()
    killed = desk.sw("upgrade", "--parallel", 2, SHARDWRIGHT_FAILPOINT="migrate.shard_upgraded:crash")
    assert killed.code == -signal.SIGKILL
    assert desk.versions() == {"s1": 1, "s2": 0, "s3": 0}
    desk.sw("upgrade", "--parallel", 2).ok()
    _whole(desk)


def _whole(desk: Desk) -> None:
    assert all(desk.versions().values())
    expected: Any = None
    for name in desk.found.dsns.shards:
        assert desk.found.ask(name, "SELECT count(*) FROM shardwright.declared") == 0
        leaves = desk.found.shard(name).execute(
            "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'events'::regclass ORDER BY 1"
        )
        found = leaves.fetchall()
        assert len(found) == 2
        assert expected in (None, found)
        expected = found
    with psycopg.connect(desk.found.dsns.catalog) as catalog:
        assert catalog.execute("SELECT count(*) FROM shardwright.tables").fetchone() == (1,)
    assert desk.alembic("check").returncode == 0
