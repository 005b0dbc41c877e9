"""What an operator can do with operations: plan, start, set a goal, drive, verify, look. The command line calls nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from shardwright import engines, errors
from shardwright.catalog import maps, operations, roster, tables
from shardwright.catalog.operations import NewMove
from shardwright.reshard import parts, preflight, runner, status, streams
from shardwright.reshard.parts import Part
from shardwright.reshard.phases import TERMINAL, Event, Goal, Phase, allowed_goals, next_event, reached
from shardwright.reshard.plan import BATCH_SHARES, Plan, PlannedMove, make_plan
from shardwright.reshard.status import Status
from shardwright.routing.multirange import Multirange
from shardwright.routing.predicates import quote_identifier
from shardwright.routing.shard_map import ShardMap

T = TypeVar("T")

#: Bytes a second that a copy is expected to reach before anything was measured on these servers.
EXPECTED_BYTES_PER_S = 40e6

#: Settings of an operation and their meaning.
SETTINGS: Mapping[str, str] = {
    "copy_workers": "threads that copy (2)",
    "fence_lock_timeout_ms": "how long one try to fence may make writers wait (100)",
    "fence_attempts": "how many tries before giving up (40)",
    "max_pause_ms": "how long a fenced batch may wait for its last changes (1000)",
    "catch_up_seconds": "how long catching up may take (86400)",
    "router_seconds": "how long finish waits for routers to take the new map (600)",
    "certificate_seconds": "how old a certificate may be at the switch (86400)",
}


def plan(
    catalog: psycopg.Connection,
    *,
    add: str | None = None,
    drain: str | None = None,
    weights: Mapping[str, int] | None = None,
    move: str | None = None,
    to: str | None = None,
    batch_shares: Sequence[float] = BATCH_SHARES,
) -> Plan:
    """Make a plan with estimates of rows and bytes; changes nothing.

    Args:
        catalog: connection to the catalog.
        add: give this shard its share.
        drain: take everything from this shard.
        weights: new weights.
        move: ``KEYSPACE:[LO,HI)``.
        to: the shard that gets what `move` names.
        batch_shares: where batches end, as shares of a move's points.

    Raises:
        BadOption, BadRange, UnknownShard, UnknownKeyspace: see `plan.make_plan`.
    """
    shard_map = maps.load_map(catalog)
    shards = {shard.name: shard for shard in roster.list_shards(catalog)}
    made = make_plan(
        shard_map,
        {name: shard.weight for name, shard in shards.items()},
        add=add,
        drain=drain,
        new_weights=weights,
        move=move,
        to=to,
        batch_shares=batch_shares,
    )
    registered = [table for table in tables.list_tables(catalog) if table.kind == "sharded"]
    moves = []
    for planned in made.moves:
        with engines.connect_shard(shards[planned.source], "shardwright plan") as connection:
            rows = size = 0
            for table in registered:
                if table.keyspace == planned.keyspace:
                    some_rows, some_bytes = _estimate(connection, shard_map, planned, table)
                    rows += some_rows
                    size += some_bytes
        moves.append(PlannedMove(**{**vars(planned), "rows": rows, "bytes": size}))
    return Plan(
        **{
            **vars(made),
            "moves": tuple(moves),
            "estimated_seconds": round(sum(m.bytes for m in moves) / EXPECTED_BYTES_PER_S, 1),
        }
    )


def _estimate(
    connection: psycopg.Connection, shard_map: ShardMap, move: PlannedMove, table: tables.RegisteredTable
) -> tuple[int, int]:
    """Rows and bytes of one table that would move, as the source's planner guesses (a table never analyzed included)."""
    some = parts.of(connection, table.schema_name, table.table_name)
    row = connection.execute(
        "SELECT coalesce(sum(pg_table_size(relid::oid)), 0)::int8 FROM unnest(%s::int8[]) AS t(relid)",
        ([part.relid for part in some],),
    ).fetchone()
    if row is None or not some:
        return 0, 0
    tuples = _planned_rows(connection, some, "true")
    keyspace = shard_map.keyspace(move.keyspace)
    if keyspace.strategy == "hash":
        moving = move.points.count() or 0
        owned = shard_map.owned(move.keyspace, move.source).count() or 1
        share = moving / owned
    else:
        share = min(1.0, _planned_rows(connection, some, _within(table, move.points)) / max(1.0, tuples))
    return round(tuples * share), round(row[0] * share)


def _within(table: tables.RegisteredTable, points: Multirange) -> str:
    """A range keyspace's points as comparisons of the key itself, which the planner has statistics of."""
    column = quote_identifier(table.key_column or "")
    bounds = []
    for lo, hi in points.pieces:
        parts = [f"{column} >= {lo}" if lo is not None else "", f"{column} < {hi}" if hi is not None else ""]
        bounds.append(" AND ".join(part for part in parts if part) or "true")
    return " OR ".join(f"({bound})" for bound in bounds)


def _planned_rows(connection: psycopg.Connection, some: Sequence[Part], where: str) -> float:
    rows = 0.0
    never = connection.execute(
        "SELECT oid::int8 FROM pg_class WHERE oid = ANY(%s::oid[]) AND reltuples < 0", ([part.relid for part in some],)
    ).fetchall()
    unknown = {row[0] for row in never}
    for part, pages in zip(some, parts.pages_of(connection, some), strict=True):
        if pages == 0:
            continue
        found = connection.execute(f"EXPLAIN (FORMAT json) SELECT FROM ONLY {part.qualified} WHERE {where}".encode())
        row = found.fetchone()
        assert row is not None
        # the planner takes a small table that was never analyzed for one of ten pages, and of leaves there may be thousands
        share = min(1.0, pages / 10) if part.relid in unknown else 1.0
        rows += float(row[0][0]["Plan"]["Plan Rows"]) * share
    return rows


def start(catalog: psycopg.Connection, made: Plan, settings: Mapping[str, Any] | None = None) -> int:
    """Check everything, then record the operation with goal `verified`. Nothing is made on shards yet.

    Args:
        catalog: connection to the catalog.
        made: the plan.
        settings: see `SETTINGS`.

    Returns:
        The operation's number.

    Raises:
        BadOption: a setting is unknown or not a positive number.
        PreflightFailed: something stands in the way.
        OperationConflict: another live operation moves some of the points, or the map changed since the plan.
    """
    wanted = dict(settings or {})
    for name, value in wanted.items():
        if name not in SETTINGS:
            raise errors.BadOption(f"there is no setting {name}", fix=f"one of {', '.join(SETTINGS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise errors.BadOption(f"setting {name} is {value!r}, not a positive number", fix=SETTINGS[name])
    with roster.changing(catalog):
        shard_map = maps.load_map(catalog)
        keyspaces = {keyspace.name: keyspace.id for keyspace in shard_map.keyspaces}
        for move in made.moves:
            claimed = catalog.execute(
                "SELECT operation FROM shardwright.claims WHERE keyspace = %s "
                "AND int8multirange(points) && %s::int8multirange LIMIT 1",
                (keyspaces[move.keyspace], move.points.literal()),
            ).fetchone()
            if claimed is not None:
                raise errors.OperationConflict(
                    f"operation {claimed[0]} already moves some of {move.points.literal()}",
                    fix=f"shardwright reshard status {claimed[0]}",
                )
        preflight.check(catalog, shard_map, made)
        return operations.create(
            catalog,
            made.request,
            wanted,
            [
                NewMove(keyspaces[m.keyspace], m.source, m.target, m.points, m.batches, m.rows, m.bytes)
                for m in made.moves
            ],
            made.map_version,
        )


def set_goal(catalog: psycopg.Connection, operation: int, goal: str) -> None:
    """Say what an operation shall reach; whoever drives it goes there.

    Args:
        catalog: connection to the catalog.
        operation: its number.
        goal: verified, switched, reverted, done or aborted.

    Raises:
        UnknownOperation: there is none of that number.
        WrongPhase: the goal cannot be reached from the phase in which the operation stands.
    """
    found = operations.get(catalog, operation)
    phase, wanted = Phase(found.phase), Goal(goal)
    if reached(phase, wanted):
        # another goal may have been set and not begun
        if wanted is not Goal(found.goal) and phase not in TERMINAL:
            operations.set_goal(catalog, operation, found.phase, goal)
        return
    if wanted not in allowed_goals(phase):
        raise errors.WrongPhase(
            f"operation {operation} is {phase.value} and cannot become {wanted.value}",
            fix=f"shardwright reshard status {operation}",
            phase=phase.value,
        )
    if wanted is Goal.REVERTED:
        _require_way_back(catalog, found)
    operations.set_goal(catalog, operation, found.phase, goal)


def _require_way_back(catalog: psycopg.Connection, operation: operations.Operation) -> None:
    """Refuse a roll back that could not go through while the operation can still go forward."""
    shards = {shard.name: shard for shard in roster.list_shards(catalog)}
    for move in operation.moves:
        if not move.served_by_target():
            continue
        with engines.connect_shard(shards[move.target], "shardwright rollback") as connection:
            name = streams.name_of(roster.cluster_id(catalog), move, "back")
            if streams.is_lost(connection, name):
                raise errors.WrongPhase(
                    f"the way back of operation {operation.id} was lost: slot {name} on {move.target} is gone",
                    fix=f"go forward without it: shardwright reshard finish {operation.id}",
                )


def drive(
    catalog_dsn: str,
    operation: int,
    goal: str | None = None,
    on_status: Callable[[Status], None] | None = None,
    *,
    take_over: bool = False,
    every: float = 0.5,
    on_progress: Callable[[], None] = lambda: None,
) -> Status:
    """Bring an operation to a goal in this process, or watch the worker that does.

    Args:
        catalog_dsn: where the catalog is.
        operation: its number.
        goal: verified, switched, reverted, done or aborted; None: the one that is set.
        on_status: called with a fresh status about every `every` seconds.
        take_over: take the operation from whoever works on it.
        every: seconds between two calls of `on_status`.
        on_progress: called wherever the work may be broken off; it does so by raising `errors.Interrupted`.

    Returns:
        The status at the end.

    Raises:
        UnknownOperation, WrongPhase: see `set_goal`.
        ShardwrightError: whatever stopped the work.
    """
    with _Eyes(catalog_dsn) as catalog:
        if goal is not None:
            catalog.ask(lambda connection: set_goal(connection, operation, goal))
        last = 0.0

        def report() -> None:
            nonlocal last
            on_progress()
            if on_status is not None and time.monotonic() - last >= every:
                last = time.monotonic()
                try:
                    seen = catalog.ask(lambda connection: status.of(connection, operation))
                except (errors.PreconditionError, psycopg.Error):
                    return  # a display that cannot be renewed must not end the work
                on_status(seen)

        while not _at_rest(catalog.ask(lambda connection: operations.get(connection, operation))):
            try:
                runner.run(catalog_dsn, operation, take_over=take_over, on_progress=report)
            except errors.LeaseHeld:
                _watch(catalog, operation, report)
        found = catalog.ask(lambda connection: status.of(connection, operation))
        if on_status is not None:
            on_status(found)
        return found


class _Eyes:
    """A connection to the catalog that only looks, and is opened anew when it broke: the work has its own."""

    def __init__(self, catalog_dsn: str) -> None:
        self._dsn = catalog_dsn
        self._connection: psycopg.Connection | None = None

    def ask(self, question: Callable[[psycopg.Connection], T]) -> T:
        """Ask, once more on a new connection where the old one turns out to be broken.

        Raises:
            CannotConnect: the catalog cannot be reached.
        """
        if self._connection is not None and not self._connection.closed:
            try:
                return question(self._connection)
            except psycopg.OperationalError:
                self._connection.close()
        self._connection = engines.connect_catalog(self._dsn, "shardwright look")
        return question(self._connection)

    def __enter__(self) -> _Eyes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()


def _at_rest(found: operations.Operation) -> bool:
    return next_event(Phase(found.phase), Goal(found.goal)) is None


def _watch(catalog: _Eyes, operation: int, report: Callable[[], None]) -> None:
    """Wait while another worker has the lease; its failure is ours to report."""
    while True:
        found = catalog.ask(lambda connection: operations.get(connection, operation))
        if found.error is not None:
            raise stored_error(found.error)
        if _at_rest(found) or found.lease_left is None or found.lease_left < 0:
            return
        report()
        time.sleep(0.1)


def stored_error(stored: Mapping[str, Any]) -> errors.ShardwrightError:
    """The error that a worker left with its operation, to be raised again."""
    for kind in errors.error_classes():
        if kind.code == stored.get("code"):
            return kind(
                str(stored["message"]),
                fix=str(stored.get("fix", "")),
                durable_change=bool(stored.get("durable_change")),
                ownership_known=stored.get("ownership_known") is not False,
                **stored.get("facts", {}),
            )
    return errors.StreamStalled(str(stored.get("message", "the worker failed")))


def verify(catalog_dsn: str, operation: int, on_progress: Callable[[], None] = lambda: None) -> Status:
    """Compare both sides of an operation once more, and keep the certificates.

    Args:
        catalog_dsn: where the catalog is.
        operation: its number.
        on_progress: called wherever the work may be broken off; it does so by raising `errors.Interrupted`.

    Raises:
        VerificationDiffers: they differ.
        WrongPhase: there is nothing to compare yet, or any more.
    """
    with engines.connect_catalog(catalog_dsn, "shardwright verify") as catalog:
        found = operations.get(catalog, operation)
        phase = Phase(found.phase)
        if phase not in (Phase.VERIFIED, Phase.REVERTED, Phase.SWITCHED):
            raise errors.WrongPhase(
                f"operation {operation} is {phase.value}: there are no two sides that must agree",
                fix=f"shardwright reshard status {operation}",
            )
        runner.run(catalog_dsn, operation, once=Event.VERIFY, on_progress=on_progress)
        return status.of(catalog, operation)
