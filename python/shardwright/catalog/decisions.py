"""What became of transactions that write on several shards: one row each, decided once, by whoever comes first.

A session registers its transaction before it prepares any part of it, and decides by changing `open` into `committed`.
Who finds prepared parts later changes `open` into `aborted` before touching them. A row that is not there cannot be
changed into `committed` any more: so it may be forgotten at any time once it is settled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

Outcome = Literal["open", "committed", "aborted"]

#: How long a settled row is kept for sessions that still have to ask what became of it.
KEPT = "1 day"

_GID = re.compile(r"shardwright:([0-9a-f-]{36}):([0-9a-f-]{36}):([a-z][a-z0-9_-]{0,30})")


@dataclass(frozen=True)
class Decision:
    """A transaction that writes on several shards, as the catalog knows it."""

    id: str
    shards: tuple[str, ...]
    application: str
    outcome: Outcome
    #: Seconds since it was registered, by the catalog's clock.
    age: float


def gid(cluster: str, transaction: str, shard: str) -> str:
    """The name under which a shard prepares its part.

    The shard is in it because a server may hold several shards, and such names belong to the whole server.

    Args:
        cluster: the cluster's id.
        transaction: the transaction's id.
        shard: the shard's name.
    """
    return f"shardwright:{cluster}:{transaction}:{shard}"


def is_of(name: str, cluster: str) -> bool:
    """Whether a prepared transaction is a part of one of a cluster's, on whatever shard.

    Args:
        name: of the prepared transaction.
        cluster: the cluster's id.
    """
    found = _GID.fullmatch(name)
    return found is not None and found[1] == cluster


def transaction_of(name: str, cluster: str, shard: str) -> str | None:
    """The id of the transaction whose part a prepared transaction is; None where it is none of this cluster's and shard's.

    Args:
        name: of the prepared transaction.
        cluster: the cluster's id.
        shard: the shard's name.
    """
    found = _GID.fullmatch(name)
    return found[2] if found is not None and (found[1], found[3]) == (cluster, shard) else None


def register(
    catalog: psycopg.Connection[Any], shards: Sequence[str], application: str, settled: Sequence[str] = ()
) -> tuple[str, str]:
    """Register a transaction, before any part of it is prepared.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        shards: those that were written on.
        application: for people who look at it.
        settled: ids of earlier ones that are known to be settled by now.

    Returns:
        The cluster's id and the transaction's.
    """
    row = catalog.execute(
        "WITH done AS (UPDATE shardwright.decisions SET settled_at = clock_timestamp() "
        "              WHERE id = ANY(%s::uuid[]) AND outcome <> 'open' AND settled_at IS NULL) "
        "INSERT INTO shardwright.decisions (shards, application) VALUES (%s, %s) "
        "RETURNING (SELECT id::text FROM shardwright.cluster), id::text",
        (list(settled), list(shards), application),
    ).fetchone()
    assert row is not None
    return str(row[0]), str(row[1])


def commit(catalog: psycopg.Connection[Any], transaction: str) -> bool:
    """Decide that a transaction is committed: the only point of no return. Only its own session does; it may do so again.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        transaction: its id.

    Returns:
        Whether it is committed; False where somebody else has given it up.
    """
    row = catalog.execute(
        "UPDATE shardwright.decisions SET outcome = 'committed', decided_at = coalesce(decided_at, clock_timestamp()) "
        "WHERE id = %s AND outcome IN ('open', 'committed') RETURNING id",
        (transaction,),
    ).fetchone()
    return row is not None


def abort(catalog: psycopg.Connection[Any], transaction: str) -> Outcome | None:
    """Give a transaction up, unless it is decided.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        transaction: its id.

    Returns:
        What it is now; None where it is not known: it was settled long ago, or never got as far as being prepared.
    """
    catalog.execute(
        "UPDATE shardwright.decisions SET outcome = 'aborted', decided_at = clock_timestamp() "
        "WHERE id = %s AND outcome = 'open'",
        (transaction,),
    )
    row = catalog.execute("SELECT outcome FROM shardwright.decisions WHERE id = %s", (transaction,)).fetchone()
    return row[0] if row is not None else None


def settle(catalog: psycopg.Connection[Any], transactions: Sequence[str]) -> None:
    """Note that no shard has a prepared part of some decided transactions any more; forget those of long ago.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        transactions: their ids.
    """
    catalog.execute(
        "UPDATE shardwright.decisions SET settled_at = clock_timestamp() "
        "WHERE id = ANY(%s::uuid[]) AND outcome <> 'open' AND settled_at IS NULL",
        (list(transactions),),
    )
    catalog.execute("DELETE FROM shardwright.decisions WHERE settled_at < clock_timestamp() - %s::interval", (KEPT,))


def unsettled(catalog: psycopg.Connection[Any], older_than: float = 0.0) -> list[Decision]:
    """Transactions of which a shard may still have a prepared part, the oldest first.

    Args:
        catalog: connection to the catalog.
        older_than: seconds since they were registered, at least.
    """
    return [
        Decision(row[0], tuple(row[1]), row[2], row[3], row[4])
        for row in catalog.execute(
            "SELECT id::text, shards, application, outcome, "
            "extract(epoch FROM clock_timestamp() - begun_at)::float8 FROM shardwright.decisions "
            "WHERE settled_at IS NULL AND begun_at <= clock_timestamp() - make_interval(secs => %s) ORDER BY begun_at, id",
            (older_than,),
        ).fetchall()
    ]


def outcomes(catalog: psycopg.Connection[Any], transactions: Sequence[str]) -> dict[str, Outcome]:
    """What some transactions are; those that are not known are left out.

    Args:
        catalog: connection to the catalog.
        transactions: their ids.
    """
    return dict(
        catalog.execute(
            "SELECT id::text, outcome FROM shardwright.decisions WHERE id = ANY(%s::uuid[])", (list(transactions),)
        ).fetchall()
    )
