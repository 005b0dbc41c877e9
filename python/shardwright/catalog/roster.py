"""Who is in the cluster: its id, its shards, and the lock that changes of the cluster's make-up take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import class_row

from shardwright import errors

# Two-key advisory lock on the catalog. 'SHWD' is the class of the shards' range locks too, but that is another database.
_LOCK = (1397249860, 1)


@dataclass(frozen=True)
class Shard:
    """One shard, as the catalog knows it."""

    name: str
    #: How we reach it; without secrets.
    conninfo: str
    #: How another shard's apply worker reaches it; None: the same way.
    replication_conninfo: str | None = None
    region: str = ""
    #: Share of points that it should own, relative to the others.
    weight: int = 1
    system_identifier: str = ""
    database_oid: int = 0
    server_version: int = 0
    #: How many connections all applications together may have to it; None: as many as its max_connections leaves.
    connections: int | None = None
    #: The highest timeline on which its primary was seen; no part of what makes two shards' addresses equal.
    timeline: int = field(default=0, compare=False)

    @property
    def subscribers_conninfo(self) -> str:
        """How another shard's apply worker reaches it."""
        return self.replication_conninfo or self.conninfo


_SELECT = (
    "SELECT s.name, s.conninfo, s.replication_conninfo, s.region, s.weight, s.system_identifier, s.database_oid, "
    "s.server_version, s.connections, coalesce(t.timeline, 0) AS timeline "
    "FROM shardwright.shards s LEFT JOIN shardwright.timelines t ON t.shard = s.name"
)
_NOTE_TIMELINE = (
    "INSERT INTO shardwright.timelines AS t (shard, timeline) VALUES (%s, %s) ON CONFLICT (shard) DO UPDATE "
    "SET timeline = excluded.timeline, seen_at = clock_timestamp() WHERE t.timeline < excluded.timeline"
)


def cluster_id(catalog: psycopg.Connection) -> str:
    """The cluster's id, a UUID in text form.

    Args:
        catalog: connection to the catalog.
    """
    row = catalog.execute("SELECT id::text FROM shardwright.cluster").fetchone()
    if row is None:
        raise errors.InvariantFailed("the catalog has lost its cluster's id")
    return str(row[0])


def list_shards(catalog: psycopg.Connection) -> list[Shard]:
    """All shards, by name.

    Args:
        catalog: connection to the catalog.
    """
    with catalog.cursor(row_factory=class_row(Shard)) as cursor:
        return cursor.execute(_SELECT + " ORDER BY s.name").fetchall()


def note_timeline(catalog: psycopg.Connection, shard: str, timeline: int) -> None:
    """Remember on which timeline a shard's primary was seen; a higher one that is known already stays.

    Args:
        catalog: connection to the catalog.
        shard: its name.
        timeline: the server's.
    """
    catalog.execute(_NOTE_TIMELINE, (shard, timeline))


def get_shard(catalog: psycopg.Connection, name: str) -> Shard:
    """One shard.

    Args:
        catalog: connection to the catalog.
        name: its name.

    Raises:
        UnknownShard: there is none of that name.
    """
    for shard in (shards := list_shards(catalog)):
        if shard.name == name:
            return shard
    known = ", ".join(shard.name for shard in shards) or "none yet"
    raise errors.UnknownShard(f"there is no shard {name}", fix=f"shards are: {known}", shard=name)


def live_operations(catalog: psycopg.Connection) -> list[tuple[int, str]]:
    """Number and phase of every operation that has not ended.

    Args:
        catalog: connection to the catalog.
    """
    return catalog.execute(
        "SELECT id, phase FROM shardwright.operations WHERE phase NOT IN ('done', 'aborted') ORDER BY id"
    ).fetchall()


def refuse_live_operations(catalog: psycopg.Connection, what: str) -> None:
    """Check that no operation is live: what it moves must not change under it.

    Args:
        catalog: connection to the catalog.
        what: what was about to be done, for the message.

    Raises:
        OperationConflict: one is live.
    """
    for number, phase in live_operations(catalog):
        raise errors.OperationConflict(
            f"operation {number} is live ({phase}): {what} has to wait",
            fix=f"shardwright reshard status {number}; then finish or abort it",
            operation=number,
        )


@contextmanager
def changing(catalog: psycopg.Connection, patience: float = 30.0) -> Iterator[None]:
    """Hold the lock of those who change shards, keyspaces or tables: one at a time.

    It is a lock of the session and not of a transaction: making a replication slot waits for every transaction of its
    server, and the catalog may be on that server.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        patience: seconds to wait for the lock.

    Raises:
        LockTimeout: somebody else held it for that long.
    """
    deadline = time.monotonic() + patience
    while True:
        row = catalog.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK).fetchone()
        if row is not None and row[0]:
            break
        if time.monotonic() > deadline:
            holder = catalog.execute(
                "SELECT l.pid, a.application_name FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
                "WHERE l.locktype = 'advisory' AND l.granted AND l.database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND l.classid = %s::bigint AND l.objid = %s::bigint",
                _LOCK,
            ).fetchone()
            who = f"pid {holder[0]} ({holder[1]})" if holder else "another session"
            raise errors.LockTimeout(
                f"another command is changing shards, keyspaces or tables: {who}",
                fix="wait for it, then run this again",
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        if not catalog.closed:
            catalog.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK)


def keep_weights(catalog: psycopg.Connection, request: Mapping[str, Any]) -> None:
    """Store the weights that an operation brought about, so that the next plan starts from them.

    A drained shard has weight 0 from then on; one that was added has 1 at least.

    Args:
        catalog: connection to the catalog.
        request: what the operation was asked for.
    """
    for name, weight in (request.get("weights") or {}).items():
        catalog.execute("UPDATE shardwright.shards SET weight = %s WHERE name = %s", (weight, name))
    if "drain" in request:
        catalog.execute("UPDATE shardwright.shards SET weight = 0 WHERE name = %s", (request["drain"],))
    if "add" in request:
        catalog.execute("UPDATE shardwright.shards SET weight = greatest(weight, 1) WHERE name = %s", (request["add"],))
