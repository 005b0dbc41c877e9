"""Preflight: everything that could stop an operation half-way is looked for before anything is made.

One report, every problem with its fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg

from shardwright import engines, errors
from shardwright.catalog import decisions, prepared, roster, tables, windows
from shardwright.catalog.layout import find_layout
from shardwright.reshard import layouts
from shardwright.reshard.layouts import WindowGap
from shardwright.reshard.plan import Plan, PlannedMove
from shardwright.routing.predicates import owned_sql, quote_identifier
from shardwright.routing.shard_map import ShardMap

#: A transaction older than this is named as a problem, in seconds: the replication slot would wait for it.
LONG_TRANSACTION_SECONDS = 60


@dataclass(frozen=True)
class Problem:
    """One thing that stands in the way."""

    shard: str
    found: str
    fix: str


def check(catalog: psycopg.Connection, shard_map: ShardMap, plan: Plan) -> None:
    """Look at every shard of a plan.

    Args:
        catalog: connection to the catalog.
        shard_map: the current map.
        plan: what is about to be started.

    Raises:
        PreflightFailed: with every problem in ``facts["problems"]``.
        CannotConnect, PasswordMissing, NotPrimary: a shard cannot be reached as it must be.
    """
    problems: list[Problem] = []
    shards = {shard.name: shard for shard in roster.list_shards(catalog)}
    names = sorted({name for move in plan.moves for name in (move.source, move.target)})
    connections: dict[str, psycopg.Connection] = {}
    try:
        for name in names:
            connections[name] = engines.connect_shard(shards[name], "shardwright preflight", replica_role=True)
        cluster = roster.cluster_id(catalog)
        streams = Counter(name for move in plan.moves for name in (move.source, move.target))
        for name in names:
            problems.extend(_server_problems(connections[name], name, shards[name], streams[name], cluster))
            problems.extend(_role_problems(connections[name], name))
            problems.extend(_replication_problems(shards[name]))
        problems.extend(_same_text_problems(connections))
        registered = [table for table in tables.list_tables(catalog) if table.kind == "sharded"]
        declared = windows.list_windows(catalog)
        problems.extend(_job_problems(catalog, plan))
        differing: list[WindowGap] = []
        for move in plan.moves:
            moving = [table for table in registered if table.keyspace == move.keyspace]
            for table in moving:
                problems.extend(_table_problems(connections, shard_map, move, table))
            both = {name: connections[name] for name in (move.source, move.target)}
            differing.extend(gap for gap in layouts.look(both, moving, declared) if gap not in differing)
        problems.extend(_window_problems(differing))
    finally:
        for connection in connections.values():
            connection.close()
    if problems:
        listed = "; ".join(f"{p.shard}: {p.found} (fix: {p.fix})" for p in problems)
        raise errors.PreflightFailed(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {listed}",
            fix="mend them, then start again; nothing was made",
            problems=[{"shard": p.shard, "found": p.found, "fix": p.fix} for p in problems],
            windows=layouts.matrix(differing),
        )


def _job_problems(catalog: psycopg.Connection, plan: Plan) -> Iterable[Problem]:
    """Conversions and splits of tables that would move: the partitions that they are about to exchange would be copied."""
    rows = catalog.execute(
        "SELECT j.shard, j.kind, quote_ident(t.schema_name) || '.' || quote_ident(t.table_name) "
        "FROM shardwright.partition_jobs j JOIN shardwright.tables t ON t.id = j.table_id "
        "JOIN shardwright.keyspaces k ON k.id = t.keyspace WHERE k.name = ANY (%s) ORDER BY 3, 1",
        ([move.keyspace for move in plan.moves],),
    )
    for shard, kind, table in rows.fetchall():
        again = f"shardwright partition {kind} {table}"
        yield Problem(shard, f"a {kind} of {table} is under way", f"{again} to finish it, or {again} --abort")


def _window_problems(differing: Sequence[WindowGap]) -> Iterable[Problem]:
    """One problem a shard, table and remedy, however many partitions it is about."""
    for shard, fix in dict.fromkeys((gap.shard, gap.fix) for gap in differing):
        yield Problem(
            shard, layouts.describe([gap for gap in differing if (gap.shard, gap.fix) == (shard, fix)], 3), fix
        )


def _server_problems(
    connection: psycopg.Connection, name: str, shard: roster.Shard, streams: int, cluster: str
) -> Iterable[Problem]:
    settings: dict[str, str] = dict(
        connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', "
            "'max_wal_senders', 'max_logical_replication_workers', 'max_worker_processes', 'max_active_replication_origins')"
        ).fetchall()
    )
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication), "
        "(SELECT count(*) FROM pg_subscription WHERE subenabled), "
        "(SELECT system_identifier::text FROM pg_control_system()), "
        "(SELECT oid::int8 FROM pg_database WHERE datname = current_database())"
    ).fetchone()
    assert row is not None
    slots, senders, subscriptions, system, database = row
    if settings["wal_level"] != "logical":
        yield Problem(name, f"wal_level is {settings['wal_level']}", "set wal_level = logical and restart the server")
    free = int(settings["max_replication_slots"]) - slots
    if free < streams:
        yield Problem(name, f"{free} replication slots are free, {streams} are needed", "raise max_replication_slots")
    free = int(settings["max_wal_senders"]) - senders
    # each slot's snapshot is made over a replication connection besides the stream's own
    if free < streams + 1:
        yield Problem(name, f"{free} WAL senders are free, {streams + 1} are needed", "raise max_wal_senders")
    workers = min(int(settings["max_logical_replication_workers"]), int(settings["max_worker_processes"]) - 1)
    if workers - subscriptions < streams:
        yield Problem(
            name,
            f"{workers - subscriptions} logical replication workers are free, {streams} are needed",
            "raise max_logical_replication_workers and max_worker_processes",
        )
    # Each subscription that is at work has an origin. Without one its worker starts and fails, again and again.
    origins = (
        "max_active_replication_origins" if "max_active_replication_origins" in settings else "max_replication_slots"
    )
    if (free := int(settings[origins]) - subscriptions) < streams:
        yield Problem(name, f"{free} replication origins are free, {streams} are needed", f"raise {origins}")
    yield from _prepared_problems(connection, name, cluster)
    if (system, database) != (shard.system_identifier, shard.database_oid):
        yield Problem(
            name,
            "this is another database than the one that was added (system_identifier or database oid differ)",
            "correct the shard's connection string",
        )
    for pid, application, age in connection.execute(
        "SELECT pid, coalesce(nullif(application_name, ''), backend_type), "
        "extract(epoch FROM clock_timestamp() - xact_start)::int FROM pg_stat_activity "
        "WHERE xact_start < clock_timestamp() - make_interval(secs => %s) AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) ORDER BY 3 DESC LIMIT 5",
        (LONG_TRANSACTION_SECONDS,),
    ).fetchall():
        yield Problem(
            name,
            f"pid {pid} ({application}) has been in a transaction for {age} s, and the replication slot would wait for it",
            "let it end",
        )


def _prepared_problems(connection: psycopg.Connection, name: str, cluster: str) -> Iterable[Problem]:
    """Prepared transactions of the whole server: the replication slot would wait for them. Our own end in a moment."""
    ours, others = [], []
    for gid, age in connection.execute(
        "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts ORDER BY 1"
    ).fetchall():
        if not decisions.is_of(gid, cluster):
            others.append(gid)
        elif age > prepared.IN_DOUBT:
            ours.append(gid)
    if ours:
        yield Problem(name, f"prepared transactions are in doubt: {', '.join(ours)}", "shardwright tx recover")
    if others:
        yield Problem(
            name,
            f"prepared transactions are in doubt: {', '.join(others)}",
            "COMMIT PREPARED or ROLLBACK PREPARED them",
        )


def _role_problems(connection: psycopg.Connection, name: str) -> Iterable[Problem]:
    """What an operation does there that the role may not do."""
    row = connection.execute(
        "SELECT r.rolname, r.rolsuper, r.rolreplication, has_database_privilege(current_database(), 'CREATE'), "
        "EXISTS (SELECT FROM pg_roles s WHERE s.rolname = 'pg_create_subscription' "
        "  AND pg_has_role(r.oid, s.oid, 'USAGE')) "
        "FROM pg_roles r WHERE r.rolname = current_user"
    ).fetchone()
    assert row is not None
    role, is_superuser, replicates, creates, subscribes = row
    if is_superuser:
        return
    if not replicates:
        yield Problem(name, f"role {role} may not replicate", f"ALTER ROLE {role} REPLICATION")
    if not creates:
        yield Problem(name, f"role {role} may not make publications", f"GRANT CREATE ON DATABASE .. TO {role}")
    if connection.info.server_version < 160000:
        yield Problem(name, f"role {role} may not make subscriptions", "before PostgreSQL 16 only a superuser may")
    elif not subscribes:
        yield Problem(name, f"role {role} may not make subscriptions", f"GRANT pg_create_subscription TO {role}")


def _replication_problems(shard: roster.Shard) -> Iterable[Problem]:
    """Whether the address speaks the replication protocol, which a pooler does not, and leads to the same server."""
    try:
        with engines.connect_replication(shard, "shardwright preflight") as connection:
            row = connection.execute("IDENTIFY_SYSTEM").fetchone()
    except (errors.PreconditionError, psycopg.Error) as error:
        said = (
            error.message
            if isinstance(error, errors.PreconditionError)
            else engines.redact(" ".join(str(error).split()))
        )
        yield Problem(
            shard.name, f"no replication connection: {said}", "give the server's own address, and let it in pg_hba.conf"
        )
        return
    if row is None or str(row[0]) != shard.system_identifier:
        yield Problem(shard.name, "replication leads to another server", "correct the shard's connection string")


def _same_text_problems(connections: dict[str, psycopg.Connection]) -> Iterable[Problem]:
    encodings = {}
    for name, connection in connections.items():
        row = connection.execute("SELECT current_setting('server_encoding')").fetchone()
        encodings[name] = row[0] if row is not None else ""
    if len(set(encodings.values())) > 1:
        for name, encoding in encodings.items():
            yield Problem(name, f"its encoding is {encoding}, others differ", "use one encoding on all shards")


def _table_problems(
    connections: dict[str, psycopg.Connection], shard_map: ShardMap, move: PlannedMove, table: tables.RegisteredTable
) -> Iterable[Problem]:
    layouts = {}
    for name in (move.source, move.target):
        found = find_layout(connections[name], table.schema_name, table.table_name)
        if found is None:
            yield Problem(name, f"table {table.name} is missing", "shardwright table register")
        else:
            layouts[name] = found
            yield from _trigger_problems(connections[name], name, table)
    if len(layouts) == 2 and layouts[move.source].fingerprint != layouts[move.target].fingerprint:
        differences = layouts[move.source].differences(layouts[move.target])
        yield Problem(
            move.target,
            f"{table.name} is not the same as on {move.source}: {', '.join(differences[:5])}",
            "apply the same DDL on both shards",
        )
    if move.target in layouts and table.key_column is not None:
        where = owned_sql(shard_map.keyspace(move.keyspace), move.points, quote_identifier(table.key_column))
        name = f"{quote_identifier(table.schema_name)}.{quote_identifier(table.table_name)}"
        row = connections[move.target].execute(f"SELECT EXISTS (SELECT FROM {name} WHERE {where})".encode()).fetchone()
        if row is not None and row[0]:
            yield Problem(
                move.target,
                f"{table.name} holds rows of the points that are to come, and the shard map never gave them to it",
                "delete them by hand once you know what they are",
            )


def _trigger_problems(connection: psycopg.Connection, name: str, table: tables.RegisteredTable) -> Sequence[Problem]:
    rows = connection.execute(
        "WITH RECURSIVE below(oid) AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "  WHERE n.nspname = %s AND c.relname = %s "
        "  UNION ALL SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid) "
        "SELECT DISTINCT t.tgname::text, t.tgenabled::text FROM below b JOIN pg_trigger t ON t.tgrelid = b.oid "
        "WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') ORDER BY 1",
        (table.schema_name, table.table_name),
    ).fetchall()
    return [
        Problem(
            name,
            f"trigger {trigger} of {table.name} is ENABLE {'ALWAYS' if how == 'A' else 'REPLICA'}: it would fire a second time",
            f"ALTER TABLE .. ENABLE TRIGGER {trigger} for the time of the operation",
        )
        for trigger, how in rows
    ]
