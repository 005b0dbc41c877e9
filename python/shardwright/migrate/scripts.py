"""Alembic's own side: its configuration, its scripts, and where a shard stands among them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from shardwright import errors


def configuration(path: Path, **attributes: Any) -> Config:
    """Alembic's configuration from its file, saying what it says on stderr.

    Args:
        path: alembic.ini.
        attributes: what ``env.py`` and the operations may ask for.

    Raises:
        BadOption: there is no such file.
    """
    if not path.is_file():
        raise errors.BadOption(
            f"there is no file {path}",
            fix="shardwright migrate init migrations; or give --config PATH to your alembic.ini",
        )
    config = Config(str(path), stdout=sys.stderr)
    config.attributes.update(attributes)
    return config


@contextmanager
def speaking() -> Iterator[None]:
    """Alembic's errors of use become ours, and whatever scripts print goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (CommandError, RevisionError) as error:
        raise errors.BadOption(" ".join(str(error).split()), fix="shardwright migrate status") from error


def target_of(scripts: ScriptDirectory, target: str) -> str:
    """Check a target that is meant for several shards.

    Args:
        scripts: the revisions.
        target: ``head``, ``heads``, a revision or the beginning of one, ``BRANCH@head``, ``base``.

    Raises:
        BadOption: it is relative, or there is none like it.
    """
    if re.search(r"[+-]\d+$", target):
        raise errors.BadOption(
            f"{target} is relative, and shards may stand at different revisions", fix="name the revision, or head"
        )
    with speaking():
        ancestors(scripts, target)
    return target


def ancestors(scripts: ScriptDirectory, heads: str | tuple[str, ...]) -> list[str]:
    """The revisions that are applied where these are the heads, in the order in which they are.

    Args:
        scripts: the revisions.
        heads: some revisions, or a name for them.
    """
    if not heads or heads == "base":
        return []
    # Another way round: from the heads down.
    return [script.revision for script in scripts.iterate_revisions(heads, "base")][::-1]


def heads_on(config: Config, connection: sa.Connection) -> tuple[str, ...]:
    """The revisions that a shard is at, wherever ``env.py`` keeps them.

    Args:
        config: Alembic's.
        connection: to the shard.
    """
    found: list[tuple[str, ...]] = []

    def look(heads: Any, _context: Any) -> list[Any]:
        found.append(tuple(sorted(heads)))
        return []

    scripts = ScriptDirectory.from_config(config)
    config.attributes["connection"] = connection
    with speaking(), EnvironmentContext(config, scripts, fn=look, dont_mutate=True):
        scripts.run_env()
    # A transaction that is open when Alembic begins is one that it never commits.
    connection.rollback()
    if not found:
        raise errors.BadOption(
            "env.py ran no migrations",
            fix='use config.attributes["connection"] in it, or run_env of shardwright.migrate',
        )
    return found[0]
