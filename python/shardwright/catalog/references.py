"""Reference tables: written on their home shard, carried to every other shard by PostgreSQL's own logical replication.

All reference tables of a cluster have one home, so that one transaction can write several and foreign keys between
them hold. The home has one publication (every kind of change, TRUNCATE included); each other shard has one
subscription, whose slot is made first and by itself: CREATE SUBSCRIPTION would wait for its own transaction where both
databases belong to one server.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from shardwright import engines, errors
from shardwright.catalog.roster import Shard

#: How long making a slot may wait for transactions that are open on the home's server.
SLOT_TIMEOUT_MS = 15_000

#: A list of tables is refreshed in milliseconds, unless first copies are in the way.
_REFRESH_TIMEOUT_MS = 5_000
_REFRESH_TRIES = 6

# From here on a stream is called behind.
_FAR_BYTES = 16 * 1024 * 1024
_FAR_SECONDS = 10.0


@dataclass(frozen=True)
class Lag:
    """How far one shard's copies of the reference tables are behind their home."""

    shard: str
    home: str
    #: WAL bytes, of whatever tables, that the home has written and the shard has not confirmed; None where unknown.
    bytes: int | None
    #: How long ago what was confirmed last had been written, 0 when idle; None where the stream does not run.
    seconds: float | None
    #: Tables whose first copy has arrived, and all tables.
    ready: int
    tables: int
    #: ``ok``, ``copying``, ``behind``, ``stopped`` or ``missing``.
    state: str


def publication_name(cluster: str) -> str:
    """Name of the publication on the home shard.

    Args:
        cluster: the cluster's id.
    """
    return f"sw_{cluster[:8]}_ref"


def subscription_name(cluster: str, shard: str) -> str:
    """Name of a shard's subscription and of its slot on the home shard.

    Args:
        cluster: the cluster's id.
        shard: the subscribing shard's name.
    """
    # A slot's name may not have a dash, a shard's may: a-b and a_b must not meet.
    plain = shard.replace("-", "_")
    suffix = "" if plain == shard else "_" + hashlib.blake2b(shard.encode(), digest_size=2).hexdigest()
    return f"{publication_name(cluster)}_{plain}{suffix}"


def publish(home: psycopg.Connection, cluster: str, tables: Sequence[tuple[str, str]]) -> None:
    """Make the publication on the home shard, or bring its list of tables up to date. Changes nothing when it is right.

    Args:
        home: connection to the home shard, in autocommit mode.
        cluster: the cluster's id.
        tables: schema and name of every reference table; none drops the publication.
    """
    name = sql.Identifier(publication_name(cluster))
    with home.transaction():
        exists = home.execute("SELECT FROM pg_publication WHERE pubname = %s", (publication_name(cluster),)).fetchone()
        if not tables:
            home.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))
            return
        if exists is None:
            # Of a partitioned table the root is published: a copy's partitions may come and go on their own.
            home.execute(
                sql.SQL(
                    "CREATE PUBLICATION {} "
                    "WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
                ).format(name)
            )
        present = set(
            home.execute(
                "SELECT n.nspname, c.relname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid "
                "JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = %s",
                (publication_name(cluster),),
            ).fetchall()
        )
        for schema, table in sorted(set(tables) - present):
            home.execute(sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(name, sql.Identifier(schema, table)))
        for schema, table in sorted(present - set(tables)):
            home.execute(sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}").format(name, sql.Identifier(schema, table)))


def subscribe(
    home: psycopg.Connection, home_shard: Shard, there: psycopg.Connection, shard: Shard, cluster: str
) -> None:
    """Make a shard's subscription with a first copy, or refresh its list of tables. Harmless when it is right.

    Args:
        home: connection to the home shard, in autocommit mode.
        home_shard: the home shard.
        there: connection to the other shard, in autocommit mode.
        shard: the other shard.
        cluster: the cluster's id.

    Raises:
        StreamStalled: the slot could not be made: a transaction on the home's server stays open.
        CannotConnect: the other shard's server cannot reach the home. No slot is left.
    """
    name = subscription_name(cluster, shard.name)
    if _has_subscription(there, name):
        # A crash between slot and subscription leaves none of these: the subscription is made last.
        _refresh(there, home, name, cluster)
        return
    _make_slot(home, home_shard, name)
    statement = sql.SQL(
        "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (create_slot = false, slot_name = {}, "
        "copy_data = true, enabled = true, streaming = off, disable_on_error = true)"
    ).format(
        sql.Identifier(name),
        sql.Literal(engines.subscription_conninfo(home_shard)),
        sql.Identifier(publication_name(cluster)),
        sql.Literal(name),
    )
    try:
        there.execute(statement)
    except psycopg.Error as error:
        drop_slot(home, name)  # unread, it would keep the home's WAL for ever
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        raise errors.CannotConnect(
            f"shard {shard.name} cannot subscribe to shard {home_shard.name}: {engines.redact(str(error).strip())}",
            fix="its server must reach the home shard: give that one a --replication-dsn, and let it in by pg_hba.conf",
            shard=shard.name,
        ) from None


def _refresh(there: psycopg.Connection, home: psycopg.Connection, name: str, cluster: str) -> None:
    """Bring a subscription's list of tables up to date, enabled."""
    identifier = sql.Identifier(name)
    for _ in range(_REFRESH_TRIES):
        if _leaves_while_copied(there, home, name, cluster):
            # It would wait for their slots as DROP SUBSCRIPTION does. Other first copies are begun anew.
            there.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(identifier))
            _end_first_copies(there, home, name)
        there.execute(sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(identifier))
        before = there.execute("SELECT current_setting('statement_timeout')").fetchone()
        assert before is not None
        # A first copy that was quick enough to begin again is in the way again.
        there.execute("SELECT set_config('statement_timeout', %s, false)", (f"{_REFRESH_TIMEOUT_MS}ms",))
        try:
            there.execute(
                sql.SQL("ALTER SUBSCRIPTION {} REFRESH PUBLICATION WITH (copy_data = true)").format(identifier)
            )
            return
        except psycopg.errors.QueryCanceled:
            continue
        finally:
            there.execute("SELECT set_config('statement_timeout', %s, false)", before)
    raise errors.StreamStalled(
        f"subscription {name} cannot get another list of tables: first copies wait for transactions that are open",
        fix="let transactions on the home shard's server end (pg_stat_activity, pg_prepared_xacts), then run this again",
    )


def _leaves_while_copied(there: psycopg.Connection, home: psycopg.Connection, name: str, cluster: str) -> bool:
    """Whether a table that is not published any more has its first copy still under way."""
    copied = there.execute(
        "SELECT n.nspname, c.relname FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid "
        "JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE s.subname = %s "
        "AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND r.srsubstate <> 'r'",
        (name,),
    ).fetchall()
    published = home.execute(
        "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", (publication_name(cluster),)
    ).fetchall()
    return not set(copied) <= set(published)


def unsubscribe(there: psycopg.Connection, home: psycopg.Connection | None, name: str) -> None:
    """Drop a subscription and its slot; whatever is gone already is no fault.

    Args:
        there: connection to the subscribing shard, in autocommit mode.
        home: connection to the home shard, or None where it cannot be reached; its slot stays then.
        name: of both.
    """
    if _has_subscription(there, name):
        identifier = sql.Identifier(name)
        there.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(identifier))
        if home is not None:
            _end_first_copies(there, home, name)
        # Without a slot of its own, DROP SUBSCRIPTION does not need the publisher.
        with there.transaction():
            there.execute("SET LOCAL statement_timeout = '60s'")
            there.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(identifier))
            there.execute(sql.SQL("DROP SUBSCRIPTION {}").format(identifier))
    if home is not None:
        drop_slot(home, name)


def _end_first_copies(there: psycopg.Connection, home: psycopg.Connection, name: str, patience: float = 30.0) -> None:
    """End a disabled subscription's workers, and drop the slots of its first copies, before PostgreSQL would.

    DROP SUBSCRIPTION and REFRESH PUBLICATION wait for them in a transaction, and a slot that is being made waits for every
    transaction of its server: where both databases are on one server each waits for the other, and PostgreSQL sees no
    deadlock. The worker that applies changes ends first or with them: until it does, it begins first copies again.
    """
    deadline = time.monotonic() + patience
    workers = (
        "SELECT s.pid FROM pg_stat_subscription s JOIN pg_subscription p ON p.oid = s.subid "
        "WHERE p.subname = %s AND s.pid IS NOT NULL "
        "AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while pids := [row[0] for row in there.execute(workers, (name,)).fetchall()]:
        if time.monotonic() > deadline:
            raise errors.StreamStalled(
                f"a worker of subscription {name} does not end (pid {pids[0]})",
                fix=f"SELECT pg_terminate_backend({pids[0]}) there, then run this again",
            )
        there.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
        time.sleep(0.02)
    row = there.execute(
        "SELECT s.oid::text FROM pg_subscription s "
        "WHERE subname = %s AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (name,),
    ).fetchone()
    if row is None:
        return
    slots = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    for slot, pid in home.execute(slots, (f"pg_{row[0]}_sync_",)).fetchall():
        if pid is not None:
            home.execute("SELECT pg_terminate_backend(%s)", (pid,))
        drop_slot(home, slot)


def drop_slot(home: psycopg.Connection, name: str, patience: float = 30.0) -> None:
    """Drop a slot once the walsender that uses it is gone.

    Args:
        home: connection to the shard that has the slot.
        name: the slot's name.
        patience: seconds to wait for the walsender; after half of them it is asked to end.

    Raises:
        StreamStalled: it is still in use.
    """
    deadline = time.monotonic() + patience
    while True:
        row = home.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone()
        if row is None:
            return
        if row[0] is None:
            try:
                home.execute("SELECT pg_drop_replication_slot(%s)", (name,))
            except psycopg.errors.ObjectInUse:
                continue
            except psycopg.errors.UndefinedObject:
                return
            return
        left = deadline - time.monotonic()
        if left < 0:
            raise errors.StreamStalled(
                f"replication slot {name} is still used by pid {row[0]}", fix=f"SELECT pg_terminate_backend({row[0]})"
            )
        if left < patience / 2:
            home.execute("SELECT pg_terminate_backend(%s)", (row[0],))
        time.sleep(0.05)


def lag_of(home: psycopg.Connection, there: psycopg.Connection, home_shard: str, shard: str, cluster: str) -> Lag:
    """How far a shard's copies are behind.

    Args:
        home: connection to the home shard.
        there: connection to the other shard.
        home_shard: the home shard's name.
        shard: the other shard's name.
        cluster: the cluster's id.
    """
    name = subscription_name(cluster, shard)
    stream = there.execute(
        "SELECT s.subenabled, count(r.srrelid), count(r.srrelid) FILTER (WHERE r.srsubstate IN ('r', 's')) "
        "FROM pg_subscription s LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid "
        "WHERE s.subname = %s AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "GROUP BY s.oid, s.subenabled",
        (name,),
    ).fetchone()
    sent = home.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)::bigint, s.active, "
        "extract(epoch FROM greatest(r.flush_lag, r.replay_lag))::float8 "
        "FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = %s",
        (name,),
    ).fetchone()
    if stream is None or sent is None:
        return Lag(shard, home_shard, None, None, 0, stream[1] if stream else 0, "missing")
    enabled, tables, ready = stream
    # The server clears its lag times once a standby has caught up and stays idle.
    behind, active, seconds = max(0, sent[0] or 0), sent[1], sent[2] or 0.0
    state = "behind" if behind > _FAR_BYTES or seconds > _FAR_SECONDS else "ok"
    if ready < tables:
        state = "copying"
    elif not active:
        state = "stopped"
    if not enabled:
        state = "stopped"
    return Lag(shard, home_shard, behind, seconds if active else None, ready, tables, state)


def wait_for_sync(
    home: psycopg.Connection, there: psycopg.Connection, cluster: str, shard: str, patience: float = 60.0
) -> None:
    """Wait until a shard has the first copy of every reference table and all that the home had written when this was called.

    Args:
        home: connection to the home shard.
        there: connection to the other shard.
        cluster: the cluster's id.
        shard: the other shard's name.
        patience: seconds to wait.

    Raises:
        StreamStalled: not within that time, or the subscription was disabled by an error.
    """
    name = subscription_name(cluster, shard)
    row = home.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    target = row[0] if row else "0/0"
    deadline = time.monotonic() + patience
    while True:
        stream = there.execute(
            "SELECT s.subenabled, count(r.srrelid) FILTER (WHERE r.srsubstate NOT IN ('r', 's')) "
            "FROM pg_subscription s LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid WHERE s.subname = %s "
            "AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY s.oid, s.subenabled",
            (name,),
        ).fetchone()
        arrived = home.execute(
            "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s", (target, name)
        ).fetchone()
        if stream is not None and stream[0] and stream[1] == 0 and arrived is not None and arrived[0]:
            return
        why = "there is no such subscription" if stream is None else "it does not advance"
        if stream is not None and not stream[0]:
            why = "it was disabled by an error; the server's log on that shard says which"
        if (stream is not None and not stream[0]) or time.monotonic() > deadline:
            raise errors.StreamStalled(
                f"the reference tables' stream {name} to shard {shard} did not catch up: {why}",
                fix="look at the server's log there, mend the cause, then ALTER SUBSCRIPTION .. ENABLE",
                shard=shard,
            )
        time.sleep(0.05)


def _has_subscription(there: psycopg.Connection, name: str) -> bool:
    row = there.execute(
        "SELECT FROM pg_subscription WHERE subname = %s "
        "AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (name,),
    ).fetchone()
    return row is not None


def _make_slot(home: psycopg.Connection, home_shard: Shard, name: str) -> None:
    if home.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (name,)).fetchone() is not None:
        # Left by a crash before its subscription was made: nothing was read from it, but it may hold old WAL.
        drop_slot(home, name)
    try:
        with home.transaction():
            home.execute("SELECT set_config('lock_timeout', %s, true)", (f"{SLOT_TIMEOUT_MS}ms",))
            home.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    except psycopg.errors.LockNotAvailable:
        raise errors.StreamStalled(
            f"a slot on shard {home_shard.name} waits for transactions that are open on its server",
            fix="let them end (pg_stat_activity, pg_prepared_xacts), then run this again",
            shard=home_shard.name,
        ) from None
