"""What our role may not do is said in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from shardwright import errors


@contextmanager
def needed(where: str) -> Iterator[None]:
    """Turn PostgreSQL's refusal for lack of a privilege into ours.

    Args:
        where: who refused, for the message: ``shard s1``.

    Raises:
        UnfitServer: a privilege is missing.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise errors.UnfitServer(
            f"{where}: our role may not do this: {error.diag.message_primary}",
            fix="connect as owner of the database and its tables, with REPLICATION; reference tables also need "
            "pg_create_subscription (superuser before PostgreSQL 16)",
        ) from error
