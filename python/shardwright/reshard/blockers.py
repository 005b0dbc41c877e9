"""Who stands in the way of a fence: sessions inside the ranges, writers of the tables, and prepared transactions."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from shardwright.catalog import decisions
from shardwright.reshard.world import LOCK_CLASS
from shardwright.routing.predicates import GuardedTable

Blocker = dict[str, object]
_FIELDS = ("pid", "application_name", "state", "age_s", "gid", "state_s")

#: Locks that a fence waits for, of alias l.
_HELD = """
LEFT JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (
    (l.locktype = 'advisory' AND l.classid::int8 = %(class)s AND l.objid::int8 = ANY(%(numbers)s))
    OR (l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
        AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%(schemas)s::text[], %(tables)s::text[]))))
"""

# A prepared transaction keeps its locks, and no process has it: its number is the only way to its locks.
_QUERY = f"""
SELECT DISTINCT a.pid, a.application_name, a.state,
       round(extract(epoch FROM clock_timestamp() - a.xact_start)::numeric, 1)::float8, NULL AS gid,
       round(extract(epoch FROM clock_timestamp() - a.state_change)::numeric, 1)::float8
  FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid {_HELD} AND l.pid <> pg_backend_pid()
 UNION ALL
SELECT DISTINCT NULL::int, 'prepared transaction ' || p.gid, 'prepared',
       round(extract(epoch FROM clock_timestamp() - p.prepared)::numeric, 1)::float8, p.gid, NULL::float8
  FROM pg_prepared_xacts p
  JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
  JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL {_HELD}
"""


def list_blockers(
    connection: psycopg.Connection, tables: Sequence[GuardedTable], numbers: Sequence[int]
) -> list[Blocker]:
    """Who holds what a fence needs.

    Args:
        connection: to the shard.
        tables: the keyspace's tables.
        numbers: range ids, and 0 for the whole shard.

    Returns:
        For each pid (None for a prepared transaction), application_name, state, age_s and gid; and state_s, for how long it
        has been in that state (None for a prepared transaction). Times are in seconds.
    """
    rows = connection.execute(
        _QUERY.encode(),
        {
            "class": LOCK_CLASS,
            "numbers": list(numbers),
            "schemas": [table.schema_name for table in tables],
            "tables": [table.table_name for table in tables],
        },
    ).fetchall()
    return [dict(zip(_FIELDS, row, strict=True)) for row in rows]


def shown(blockers: Sequence[Blocker]) -> str:
    """Blockers in words.

    Args:
        blockers: from `list_blockers`.
    """
    return "; ".join(
        (f"pid {one['pid']} " if one["pid"] is not None else "")
        + f"{one['application_name']} open {one['age_s']} s"
        # Who waits for its application and not for the database will not end by itself.
        + (f", {one['state']} for {one['state_s']} s" if str(one["state"]).startswith("idle in") else "")
        for one in blockers
    )


def remedy(blockers: Sequence[Blocker], cluster: str) -> str:
    """What to do about them, before the command is run again.

    Args:
        blockers: from `list_blockers`.
        cluster: the cluster's id.
    """
    if any(decisions.is_of(str(one["gid"]), cluster) for one in blockers):
        return "`shardwright tx recover` ends the prepared ones"
    if any(one["gid"] for one in blockers):
        return "COMMIT PREPARED or ROLLBACK PREPARED the prepared ones"
    return "end them or wait"
