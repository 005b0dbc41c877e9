"""Alembic projects on small clusters.

Fixtures:
    project (function)  Project: two shards (or more: project.made(n)), alembic.ini, env.py and models of the test's own
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from fix_catalog import Found
from shardwright.catalog import roster, tables
from shardwright.migrate import fleet, scaffold, scripts
from shardwright.migrate.connecting import connected
from shardwright.migrate.facts import RUNNING, Running
from shardwright.migrate.one_shard import Order
from shardwright.partition import marks

_REVISION = """\
import sqlalchemy as sa
from alembic import op
import shardwright

revision, down_revision, branch_labels, depends_on = {revision!r}, {down!r}, None, None


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""


_ENV = """\
from alembic import context
from shardwright.migrate import run_env

run_env(context.config.attributes.get("metadata"))
"""


class Project:
    """A directory with Alembic's files, and a cluster that its revisions run on."""

    def __init__(self, directory: Path, found: Found) -> None:
        self.directory, self.found = directory, found
        self.config = directory / "alembic.ini"
        scaffold.write(directory / "migrations", self.config, None)
        (directory / "migrations" / "env.py").write_text(_ENV)
        self.last: str | None = None

    def revision(self, name: str, upgrade: str, downgrade: str = "pass") -> str:
        """Write a revision after the last one; lines of `upgrade` and `downgrade` are separated by newlines."""
        text = _REVISION.format(
            revision=name,
            down=self.last,
            upgrade=upgrade.replace("\n", "\n    "),
            downgrade=downgrade.replace("\n", "\n    "),
        )
        (self.directory / "migrations" / "versions" / f"{name}.py").write_text(text)
        self.last = name
        return name

    def rewrite(self, name: str, upgrade: str) -> None:
        """Another body for a revision that is there."""
        path = self.directory / "migrations" / "versions" / f"{name}.py"
        head, _, rest = path.read_text().partition("def upgrade():\n")
        body = upgrade.replace("\n", "\n    ")
        path.write_text(
            f"{head}def upgrade():\n    {body}\n\n\ndef downgrade():{rest.partition('def downgrade():')[2]}"
        )

    def run(self, target: str = "head", *, verb: str = "upgrade", patience: float = 60.0, **options: Any) -> fleet.Run:
        order = Order(verb, target, self.config, self.found.dsns.catalog, patience=patience)
        return fleet.run(self.found.catalog, order, **options)

    def check(self, metadata: sa.MetaData, shard: str = "s1") -> None:
        """`alembic check`: fails where autogenerate would write something."""
        self._look(metadata, shard, command.check)

    def generate(self, name: str, metadata: sa.MetaData, shard: str = "s1") -> str:
        """`alembic revision --autogenerate`; the text of the revision."""
        script = self._look(
            metadata,
            shard,
            lambda config: command.revision(config, name, autogenerate=True, rev_id=name, head=self.last or "head"),
        )
        self.last = name
        return Path(script.path).read_text()

    def _look(self, metadata: sa.MetaData, shard: str, ask: Callable[[Config], Any]) -> Any:
        running = Running(shard, self.found.dsns.catalog)
        with connected(roster.get_shard(self.found.catalog, shard)) as connection:
            return ask(
                scripts.configuration(self.config, connection=connection, metadata=metadata, **{RUNNING: running})
            )

    def heads(self) -> dict[str, list[str]]:
        return {
            name: sorted(row[0] for row in self.found.shard(name).execute("SELECT version_num FROM alembic_version"))
            if self.found.ask(name, "SELECT to_regclass('alembic_version') IS NOT NULL")
            else []
            for name in self.found.dsns.shards
        }

    def table(self, name: str) -> tables.RegisteredTable:
        return tables.get_table(self.found.catalog, "public", name)

    def leaves(self, shard: str, parent: str) -> dict[str, str]:
        """Names of the partitions with our mark, by what each is."""
        rows = self.found.shard(shard).execute(
            "SELECT role, min(name) FROM shardwright.partitions WHERE parent = %s AND state = 'attached' GROUP BY role",
            (parent,),
        )
        return dict(rows.fetchall())

    def detached(self, shard: str, parent: str, name: str) -> None:
        """A table that was detached from `parent`, with our mark and an index of its own."""
        connection = self.found.shard(shard)
        connection.execute(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)".encode())
        marks.write(connection, "public", name, parent=parent, lower=0, upper=1, role="window", state="detached")


@pytest.fixture
def project(found: Callable[..., Found], tmp_path: Path) -> Callable[..., Project]:
    def make(n: int = 2, **options: Any) -> Project:
        return Project(tmp_path, found(n, **options))

    return make
