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
    raise errors.MissingExtra(
        "schema migrations need Alembic", fix="pip install 'shardwright[alembic]'"
    ) from None
