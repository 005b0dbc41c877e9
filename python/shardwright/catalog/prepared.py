"""The prepared transactions of a shard: which are ours, and the end that each is brought to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from shardwright import errors
from shardwright.catalog import decisions

#: Seconds after which one that is ours is no part of a COMMIT that is under way.
IN_DOUBT = 5.0


@dataclass(frozen=True)
class Prepared:
    """A prepared transaction in a shard's database."""

    gid: str
    #: The role that prepared it, which alone may end it, with superusers.
    owner: str
    #: Seconds since it was prepared.
    age: float
    #: The transaction of several shards whose part it is; None for somebody else's.
    transaction: str | None


def listed(connection: psycopg.Connection[Any], cluster: str, shard: str) -> list[Prepared]:
    """The prepared transactions of a shard's database, the oldest first.

    Args:
        connection: to the shard.
        cluster: the cluster's id.
        shard: the shard's name.
    """
    return [
        Prepared(gid, owner, age, decisions.transaction_of(gid, cluster, shard))
        for gid, owner, age in connection.execute(
            "SELECT gid, owner::text, extract(epoch FROM clock_timestamp() - prepared)::float8 "
            "FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY prepared, gid"
        ).fetchall()
    ]


def refuse_left(connection: psycopg.Connection[Any], cluster: str, shard: str) -> None:
    """Fail where transactions of several shards are prepared on a shard: once it is out of the cluster, nobody ends them.

    Args:
        connection: to the shard.
        cluster: the cluster's id.
        shard: the shard's name.

    Raises:
        ClusterInUse: there are some.
    """
    left = [one.transaction for one in listed(connection, cluster, shard) if one.transaction is not None]
    if left:
        raise errors.ClusterInUse(
            f"transactions on several shards are prepared on shard {shard} and wait for their end: {', '.join(left)}",
            fix="shardwright tx recover, then run this again",
            shard=shard,
            transactions=left,
        )


def end(connection: psycopg.Connection[Any], found: Prepared, *, commit: bool) -> bool:
    """Commit a prepared transaction, or roll it back.

    Args:
        connection: to its shard, in autocommit mode.
        found: which.
        commit: whether to commit it.

    Returns:
        Whether it is gone; False where another session is ending it at this moment.

    Raises:
        UnfitServer: our role may not end it.
    """
    verb = "COMMIT" if commit else "ROLLBACK"
    try:
        # Only the role that prepared it may end it, or a superuser; being a member of that role is enough to become it.
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(found.owner)))
        connection.execute(sql.SQL("{} PREPARED {}").format(sql.SQL(verb), sql.Literal(found.gid)))
    except psycopg.errors.UndefinedObject:
        return True
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False
    except psycopg.errors.InsufficientPrivilege as error:
        raise errors.UnfitServer(
            f"our role may not end the prepared transaction {found.gid}: {error.diag.message_primary}",
            fix=f"run this as role {found.owner} or as a superuser, or GRANT {found.owner} TO our role",
        ) from error
    finally:
        if not connection.closed:
            connection.execute("RESET ROLE")
    return True
