"""Streams: native logical replication of a move's points, with a marker row that proves arrival.

A stream has one name for its publication, its slot, its subscription and its marker row. Rules (measured on 15 to 18):
the publication is complete before the slot exists; the slot is made by us, never by CREATE SUBSCRIPTION; arrival is told
by a marker row and not by an LSN; what has arrived is durable only after the origin's progress was flushed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog.operations import Move
from shardwright.catalog.roster import Shard
from shardwright.reshard.world import World
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import GuardedTable, owned_sql, quote_identifier, quote_literal


def name_of(cluster: str, move: Move, direction: str) -> str:
    """Name of a move's stream: of its slot, publication, subscription and marker row.

    Args:
        cluster: the cluster's id.
        move: whose stream.
        direction: ``forward`` (source to target) or ``back``.
    """
    tag = cluster.replace("-", "")[:8]
    return f"sw_{tag}_{move.operation}_{move.id}_{'f' if direction == 'forward' else 'r'}"


def is_lost(publisher: psycopg.Connection, name: str) -> bool:
    """Whether a stream's slot is gone or was invalidated: what it did not send cannot be had any more."""
    row = publisher.execute("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone()
    return row is None or row[0] == "lost"


def set_publication(
    connection: psycopg.Connection,
    name: str,
    tables: Sequence[GuardedTable],
    points: Multirange,
    *,
    known: bool = False,
) -> None:
    """Make a publication of the rows in `points`, or change the points of the one there is.

    Args:
        connection: to the publishing shard, in a transaction.
        name: the stream's name.
        tables: the keyspace's tables.
        points: whose changes are sent; the stream's marker row always is.
        known: the publication is there for certain, and need not be looked for.
    """
    filters = [
        f"{table.qualified} WHERE {owned_sql(table.keyspace, points, quote_identifier(table.key_column))}"
        for table in tables
        if table.keyspace is not None and table.key_column is not None
    ]
    filters.append(f"shardwright.marker WHERE (stream = {quote_literal(name)})")
    listed = ", ".join(filters)
    there = known or connection.execute("SELECT FROM pg_publication WHERE pubname = %s", (name,)).fetchone() is not None
    if there:
        connection.execute(f"ALTER PUBLICATION {quote_identifier(name)} SET TABLE {listed}".encode())
    else:
        # TRUNCATE passes row filters: it is not published, and refused by a trigger while rows move
        connection.execute(
            f"CREATE PUBLICATION {quote_identifier(name)} FOR TABLE {listed} "
            "WITH (publish = 'insert, update, delete', publish_via_partition_root = true)".encode()
        )


def drop_publication(connection: psycopg.Connection, name: str) -> None:
    """Drop a publication if it is there."""
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


def make_slot(replication: psycopg.Connection, name: str) -> str:
    """Make a logical slot and export the snapshot that it starts from.

    Args:
        replication: a replication connection. The snapshot lives until its next command or its end.
        name: the stream's name.

    Returns:
        The snapshot's name.

    Raises:
        NotDrained: transactions that are open anywhere in the server did not end within the connection's lock_timeout.
    """
    try:
        row = replication.execute(
            sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')").format(sql.Identifier(name))
        ).fetchone()
    except psycopg.errors.LockNotAvailable:
        raise _waits_for_transactions() from None
    if row is None:
        raise errors.InvariantFailed(f"the server made slot {name} and said nothing")
    return str(row[2])


def make_slot_here(connection: psycopg.Connection, name: str) -> None:
    """Make a logical slot without a snapshot, if it is not there: for a stream whose other side holds all rows already.

    Args:
        connection: to the publishing shard, in autocommit mode.
        name: the stream's name.

    Raises:
        NotDrained: transactions that are open anywhere in the server did not end in 10 s.
    """
    there = connection.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone()
    if there is not None:
        return
    connection.execute("SET lock_timeout = '10s'")
    try:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    except psycopg.errors.LockNotAvailable:
        raise _waits_for_transactions() from None
    finally:
        if not connection.closed:
            connection.execute("SET lock_timeout = 0")


def _waits_for_transactions() -> errors.NotDrained:
    return errors.NotDrained(
        "a replication slot waits for every open transaction of the server, and some did not end in 10 s",
        fix="end the long transactions (prepared ones too), then resume",
    )


def drop_slot(connection: psycopg.Connection, name: str, *, seconds: float = 30) -> None:
    """Drop a slot if it is there, ending the walsender that holds it.

    Raises:
        StreamStalled: it was still held after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        row = connection.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone()
        if row is None:
            return
        try:
            if row[0] is None:
                connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))
                continue
            connection.execute("SELECT pg_terminate_backend(%s)", (row[0],))
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            pass  # taken or dropped in between: look again
        if time.monotonic() > deadline:
            raise errors.StreamStalled(f"slot {name} is still in use after {seconds:.0f} s", fix="resume later")
        time.sleep(0.02)


def subscribe(connection: psycopg.Connection, name: str, publisher: Shard) -> None:
    """Make a subscription on the stream's slot and let it run; an existing one is switched on.

    Args:
        connection: to the subscribing shard, in a transaction.
        name: the stream's name.
        publisher: where the slot is.
    """
    row = connection.execute(
        "SELECT s.subenabled FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
        "WHERE s.subname = %s AND d.datname = current_database()",
        (name,),
    ).fetchone()
    identifier = sql.Identifier(name)
    if row is None:
        connection.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (slot_name = {}, create_slot = false, "
                "copy_data = false, enabled = true, disable_on_error = false, streaming = off, two_phase = false)"
            ).format(
                identifier,
                sql.Literal(engines.subscription_conninfo(publisher)),
                identifier,
                sql.Literal(name),
            )
        )
    elif not row[0]:
        connection.execute(sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(identifier))


def drop_subscription(connection: psycopg.Connection, name: str) -> None:
    """Drop a subscription if it is there; its slot stays, and is dropped by itself. Good inside a transaction."""
    there = connection.execute(
        "SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
        "WHERE s.subname = %s AND d.datname = current_database()",
        (name,),
    ).fetchone()
    if there is None:
        return
    identifier = sql.Identifier(name)
    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(identifier))
    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(identifier))
    connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(identifier))


# ------------------------------------------------------------------ arrival


def forget_marker(connection: psycopg.Connection, name: str) -> None:
    """Delete a stream's marker row. Done on both sides before the slot exists, so that the first beat is an INSERT."""
    connection.execute("DELETE FROM shardwright.marker WHERE stream = %s", (name,))


def beat(connection: psycopg.Connection, name: str) -> int:
    """Write the next value into the stream's marker row on the publishing side.

    Returns:
        The value to wait for on the other side.
    """
    row = connection.execute(
        "INSERT INTO shardwright.marker AS m (stream, value) VALUES (%s, 1) "
        "ON CONFLICT (stream) DO UPDATE SET value = m.value + 1, at = clock_timestamp() RETURNING value",
        (name,),
    ).fetchone()
    assert row is not None
    return int(row[0])


def wait_for_marker(connection: psycopg.Connection, name: str, value: int, seconds: float) -> bool:
    """Wait until a marker value is visible on the subscribing side.

    Returns:
        Whether it came in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        row = connection.execute("SELECT value FROM shardwright.marker WHERE stream = %s", (name,)).fetchone()
        if row is not None and row[0] >= value:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)


@dataclass(frozen=True)
class StreamHealth:
    """How a stream does."""

    #: ``ok``; ``lost`` when the slot is gone or invalidated; ``stopped`` when the subscription was disabled or is gone.
    state: str
    #: Bytes of WAL written and not confirmed by the other side.
    lag_bytes: int | None
    #: Bytes of WAL that the slot keeps.
    kept_bytes: int | None
    #: How often the apply worker failed; it tries again by itself.
    apply_errors: int = 0


def health(publisher: psycopg.Connection, subscriber: psycopg.Connection, name: str) -> StreamHealth:
    """Look at both ends of a stream."""
    row = publisher.execute(
        "SELECT wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8, "
        "pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    ).fetchone()
    if row is None or row[0] == "lost":
        return StreamHealth("lost", None, None)
    enabled = subscriber.execute(
        "SELECT s.subenabled, t.apply_error_count FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
        "LEFT JOIN pg_stat_subscription_stats t ON t.subid = s.oid WHERE s.subname = %s AND d.datname = current_database()",
        (name,),
    ).fetchone()
    state = "ok" if enabled is not None and enabled[0] else "stopped"
    return StreamHealth(state, row[1], row[2], enabled[1] or 0 if enabled is not None else 0)


def round_trip(world: World, publisher: str, subscriber: str, name: str, seconds: float) -> float:
    """Send a marker through a stream.

    Returns:
        Seconds until it was visible on the other side.

    Raises:
        StreamStalled: it did not arrive in `seconds`; the message says how the stream does.
    """
    started = time.monotonic()
    with world.change(publisher) as connection:
        value = beat(connection, name)
    target = world.shard(subscriber)
    while not wait_for_marker(target, name, value, 0.5):
        world.on_progress()
        found = health(world.shard(publisher), target, name)
        if found.state != "ok" or time.monotonic() - started > seconds:
            raise errors.StreamStalled(
                f"stream {name} from {publisher} to {subscriber} is {found.state}, {found.lag_bytes} bytes behind, "
                f"with {found.apply_errors} failures of its apply worker",
                fix=f"look at {subscriber}'s server log, mend the cause, then resume",
                state=found.state,
            )
    return time.monotonic() - started
