"""Schema migrations with Alembic on every shard.

In ``env.py``: ``from shardwright.migrate import run_env; run_env(Base.metadata)``, or in one of your own
``context.configure(..., **hooks(connection))``.
"""

from __future__ import annotations

from shardwright import errors

try:
    import alembic as _alembic  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "alembic":
        raise
    raise errors.MissingExtra("schema migrations need Alembic", fix="pip install 'shardwright[alembic]'") from None

# Importing them makes the operations and what autogenerate compares known to Alembic.
from shardwright.migrate import comparing as _comparing  # noqa: F401
from shardwright.migrate import rendering as _rendering  # noqa: F401
from shardwright.migrate.environment import run_env
from shardwright.migrate.visibility import hooks

__all__ = ["run_env", "hooks"]
