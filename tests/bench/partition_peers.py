"""Two other managers of partitions behind one small face, for `bench_partitions`; neither is used anywhere else.

pg_partman is an extension (Debian: postgresql-15-partman), pg-partsmith a package (PyPI). Both are called as their own
documentation says, with their defaults; where a default of theirs matters, the class says so. Each run opens its own
connections, as one that a scheduler starts does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString, Protocol

import psycopg

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
_CONTROL = Path("/usr/share/postgresql/15/extension/pg_partman.control")

#: What each works on: made as its documentation wants it, a parent without partitions.
PARENT = (
    "CREATE TABLE {name} (id bigint NOT NULL, created_at timestamptz NOT NULL, user_id bigint NOT NULL, body text, "
    "PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at)"
)
INDEX = "CREATE INDEX ON {name} (user_id, created_at)"


class Manager(Protocol):
    """One manager of the monthly partitions of one table."""

    name: str

    def create(self, table: str, *, ahead: int, behind: int) -> None:
        """Take a table over: windows from `behind` months ago to `ahead` months from now."""

    def wish(self, table: str, *, ahead: int | None = None, keep: int | None = None) -> None:
        """Change how many months ahead there shall be, or are kept behind; nothing is made or dropped yet."""

    def run(self, table: str) -> None:
        """What a scheduler calls: create what is lacking, detach and drop what is over."""


class Unavailable(Exception):
    """This peer cannot run here; the message says why."""


def debian_15() -> Path:
    """Directory of PostgreSQL 15's programs with pg_partman installed beside them; installs it where that is allowed.

    Raises:
        Unavailable: it is not there and cannot be installed.
    """
    if not DEBIAN_15.exists():
        raise Unavailable(f"no PostgreSQL 15 in {DEBIAN_15}")
    if not _CONTROL.exists():
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Unavailable("pg_partman is not installed (apt install postgresql-15-partman)")
        done = subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql-15-partman"],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
        )
        if done.returncode != 0 or not _CONTROL.exists():
            raise Unavailable("postgresql-15-partman could not be installed")
    return DEBIAN_15


class Partman:
    """pg_partman 4.7: functions inside the database. Its sets have a DEFAULT partition."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._ask("CREATE SCHEMA IF NOT EXISTS partman")
        self._ask("CREATE EXTENSION IF NOT EXISTS pg_partman SCHEMA partman")
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'pg_partman'").fetchone()
        self.name = f"pg_partman {row[0] if row else '?'}"

    def _ask(self, statement: LiteralString, *values: Any) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement, values)

    def create(self, table: str, *, ahead: int, behind: int) -> None:
        self._ask(
            "SELECT partman.create_parent(%s, 'created_at', 'native', 'monthly', p_premake := %s, p_jobmon := false, "
            "p_start_partition := (date_trunc('month', now()) - make_interval(months => %s))::text)",
            f"public.{table}",
            ahead,
            behind,
        )
        # without it, it goes by the newest row, and makes nothing for a table that has none
        self._ask(
            "UPDATE partman.part_config SET infinite_time_partitions = true, retention_keep_table = false "
            "WHERE parent_table = %s",
            f"public.{table}",
        )

    def wish(self, table: str, *, ahead: int | None = None, keep: int | None = None) -> None:
        self._ask(
            "UPDATE partman.part_config SET premake = coalesce(%s, premake), "
            "retention = coalesce(%s || ' months', retention) WHERE parent_table = %s",
            ahead,
            keep,
            f"public.{table}",
        )

    def run(self, table: str) -> None:
        self._ask("SELECT partman.run_maintenance(%s, p_jobmon := false)", f"public.{table}")


class Partsmith:
    """pg-partsmith: a library. No DEFAULT partition; a detached one is dropped in the same run here."""

    def __init__(self, dsn: str) -> None:
        try:
            from pg_partsmith import __version__
            from pg_partsmith.sync import PartitionToolkit
        except ImportError as error:
            raise Unavailable("pg-partsmith is not installed (the extra `bench`)") from error
        import sqlalchemy as sa

        self.name = f"pg-partsmith {__version__}"
        self.engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        self.kit = PartitionToolkit.from_engine(self.engine)
        self.configs: dict[str, dict[str, int]] = {}

    def _config(self, table: str) -> Any:
        from pg_partsmith import (
            CreateAhead,
            DropAfter,
            KeepNewest,
            LifecyclePolicy,
            PartitionGranularity,
            RangePartitioning,
            TablePartitionConfig,
            TimeBoundaries,
        )

        wanted = self.configs[table]
        return TablePartitionConfig(
            schema="public",
            table_name=table,
            scheme=RangePartitioning(
                key="created_at", boundaries=TimeBoundaries(granularity=PartitionGranularity.MONTH)
            ),
            lifecycle=LifecyclePolicy(
                creation=CreateAhead(count=wanted["ahead"] + 1),  # the window of now is one of them
                retention=KeepNewest(count=wanted["keep"] + 1),
                drop=DropAfter(grace=timedelta(0)),
            ),
        )

    def create(self, table: str, *, ahead: int, behind: int) -> None:
        from pg_partsmith import Period

        self.configs[table] = {"ahead": ahead, "keep": max(behind, 1)}
        with self.engine.connect() as connection:
            now = connection.exec_driver_sql("SELECT now() AT TIME ZONE 'UTC'").scalar_one()
        month = Period(year=now.year, month=now.month)
        self.kit.service.ensure_partitions(self._config(table), [month + n for n in range(-behind, ahead + 1)])

    def wish(self, table: str, *, ahead: int | None = None, keep: int | None = None) -> None:
        if ahead is not None:
            self.configs[table]["ahead"] = ahead
        if keep is not None:
            self.configs[table]["keep"] = keep

    def run(self, table: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self.kit.maintainer.run_maintenance(self._config(table))
        self.engine.dispose()
        if result.issues:
            raise RuntimeError(f"{self.name}: {result.issues}")
