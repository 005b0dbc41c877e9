"""What a step may touch: the catalog, the shards, and the operation with its fencing token.

A step gets one `World` and nothing else. Each change on a shard is made in `World.change`, which checks the operation's
op_epoch in the same transaction: a worker that was paused, superseded and woken can change nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg

from shardwright import engines, errors
from shardwright.catalog import maps, operations, roster, tables
from shardwright.catalog.operations import Move, Operation
from shardwright.catalog.windows import CatalogWindow
from shardwright.reshard import layouts
from shardwright.routing.predicates import GuardedTable
from shardwright.routing.shard_map import Keyspace

log = logging.getLogger("shardwright.reshard")

#: Class of the two-key advisory locks; the same number stands in enter().
LOCK_CLASS = 1397249860


class World:
    """One worker's view of one operation."""

    def __init__(self, catalog_dsn: str, operation: Operation, on_progress: Callable[[], None] = lambda: None) -> None:
        """Open the catalog.

        Args:
            catalog_dsn: where the catalog is.
            operation: as taken over; its op_epoch is the fencing token.
            on_progress: called now and then while a step works; it may raise to stop the work.
        """
        self.catalog_dsn = catalog_dsn
        self.catalog = engines.connect_catalog(catalog_dsn, f"shardwright op {operation.id} epoch {operation.op_epoch}")
        self.operation = operation
        self.on_progress = on_progress
        self.shards = {shard.name: shard for shard in roster.list_shards(self.catalog)}
        self.keyspaces = {keyspace.name: keyspace for keyspace in maps.load_map(self.catalog).keyspaces}
        self.registered = tables.list_tables(self.catalog)
        self.cluster = roster.cluster_id(self.catalog)
        self._connections: dict[tuple[str, bool], psycopg.Connection] = {}

    def close(self) -> None:
        """Close every connection."""
        for connection in (*self._connections.values(), self.catalog):
            connection.close()
        self._connections.clear()

    def reconnect_catalog(self) -> None:
        """Open the catalog's connection anew after it broke.

        Raises:
            CannotConnect: the catalog cannot be reached.
        """
        self.catalog.close()
        self.catalog = engines.connect_catalog(self.catalog_dsn, self.application_name)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- the operation

    def refresh(self) -> Operation:
        """Read the operation anew.

        Raises:
            Superseded: another worker took it over.
        """
        found = operations.get(self.catalog, self.operation.id)
        if found.op_epoch != self.operation.op_epoch:
            raise errors.Superseded(
                f"operation {found.id} was taken over by another worker", fix=f"shardwright reshard watch {found.id}"
            )
        self.operation = found
        return found

    def move(self, number: int) -> Move:
        """The move of that number, as last read."""
        return next(move for move in self.operation.moves if move.id == number)

    def keyspace(self, move: Move) -> Keyspace:
        """The keyspace of a move."""
        return self.keyspaces[move.keyspace]

    def guarded(self, keyspace: str) -> list[GuardedTable]:
        """The sharded tables of a keyspace, in the order of their numbers."""
        return [
            GuardedTable(table.id, table.schema_name, table.table_name, self.keyspaces[keyspace], table.key_column)
            for table in self.registered
            if table.kind == "sharded" and table.keyspace == keyspace
        ]

    def require_same_windows(
        self, move: Move, kind: type[errors.ShardwrightError], declared: Sequence[CatalogWindow] = ()
    ) -> None:
        """See that a move's source and target have the same partitions.

        Args:
            move: whose shards and tables.
            kind: what to raise.
            declared: the catalog's windows, where they are to be there too.

        Raises:
            ShardwrightError: of that kind, where they have not; every difference is in ``facts["windows"]``.
        """
        moving = [table for table in self.registered if table.kind == "sharded" and table.keyspace == move.keyspace]
        shards = (move.source, move.target)
        found = layouts.look({name: self.shard(name) for name in shards}, moving, declared)
        if found:
            raise kind(
                f"the partitions on {' and '.join(shards)} are not the same: {layouts.describe(found)}",
                fix=f"{found[0].fix} (or attach again what was detached), "
                f"then: shardwright reshard resume {self.operation.id}",
                windows=layouts.matrix(found),
            )

    # ---------------------------------------------------------------- shards

    def shard(self, name: str, *, replica_role: bool = False) -> psycopg.Connection:
        """A connection to a shard, kept open; a broken one is opened anew. For the step's own thread only."""
        kept = self._connections.get((name, replica_role))
        if kept is None or kept.closed:
            kept = self.open(name, replica_role=replica_role)
            self._connections[name, replica_role] = kept
        return kept

    def open(self, name: str, *, replica_role: bool = False) -> psycopg.Connection:
        """A connection of the caller's own to a shard."""
        return engines.connect_shard(self.shards[name], self.application_name, replica_role=replica_role)

    @property
    def application_name(self) -> str:
        """How this worker's connections are named on the shards."""
        return f"shardwright op {self.operation.id} epoch {self.operation.op_epoch}"

    def shard_names(self) -> list[str]:
        """The shards that the operation works on."""
        return sorted({name for move in self.operation.moves for name in (move.source, move.target)})

    def claim_shards(self) -> None:
        """Announce the fencing token on the operation's shards, and end what superseded workers left connected.

        Raises:
            Superseded: another worker took the operation over.
        """
        if self.operation.phase in ("done", "aborted"):
            return
        for name in self.shard_names():
            connection = self.shard(name)
            # a paused worker may sit in an open transaction; its token is void, so its connections may go
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name ~ %s "
                "AND substring(application_name FROM '[0-9]+$')::int < %s",
                (f"^shardwright op {self.operation.id} epoch [0-9]{{1,9}}$", self.operation.op_epoch),
            )
            with self._superseded_as_error():
                connection.execute("SELECT shardwright.claim(%s, %s)", (self.operation.id, self.operation.op_epoch))
        # only a token that is still the catalog's may act: a successor may have come and gone meanwhile
        self.refresh()

    @contextlib.contextmanager
    def change(
        self, name: str, *, lock_timeout_ms: int = 0, replica_role: bool = False, pipelined: bool = False
    ) -> Iterator[psycopg.Connection]:
        """A transaction on a shard that checks the operation's fencing token first.

        Args:
            name: the shard.
            lock_timeout_ms: how long each lock may be waited for; 0 waits for ever.
            replica_role: run with session_replication_role = replica.
            pipelined: send statements without waiting for their answers, except where one is fetched. Only for a
                change that nothing else waits for before it is committed.

        Raises:
            Superseded: a higher op_epoch was seen there.
            LockTimeout: a lock was not had in time; everything is rolled back.
        """
        connection = self.shard(name, replica_role=replica_role)
        try:
            with (
                self._superseded_as_error(),
                connection.pipeline() if pipelined else contextlib.nullcontext(),
                connection.transaction(),
            ):
                if lock_timeout_ms:
                    connection.execute(f"SET LOCAL lock_timeout = {int(lock_timeout_ms)}".encode())
                    # autovacuum steps aside for who has waited this long, where the role may set it (superusers may)
                    connection.execute(
                        "SELECT set_config('deadlock_timeout', '20ms', true) "
                        "WHERE has_parameter_privilege('deadlock_timeout', 'SET')"
                    )
                connection.execute("SELECT shardwright.hold(%s, %s)", (self.operation.id, self.operation.op_epoch))
                yield connection
        except psycopg.errors.LockNotAvailable as error:
            raise errors.LockTimeout(
                f"a lock on shard {name} was not had in {lock_timeout_ms} ms",
                fix=f"let the transactions that write there end, then: shardwright reshard resume {self.operation.id}",
            ) from error

    @contextlib.contextmanager
    def _superseded_as_error(self) -> Iterator[None]:
        try:
            yield
        except psycopg.DatabaseError as error:
            if error.sqlstate != "SH009":
                raise
            raise errors.Superseded(
                f"operation {self.operation.id} was taken over by another worker",
                fix=f"shardwright reshard watch {self.operation.id}",
            ) from None

    def wait_until(self, what: str, ready: Callable[[], bool], *, seconds: float, poll: float = 0.02) -> None:
        """Wait for a condition, polling, with progress reported meanwhile.

        Raises:
            StreamStalled: it did not come true in time.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise errors.StreamStalled(
                    f"waited {seconds:.0f} s: {what}", fix="look at the servers' logs, then resume"
                )
            self.on_progress()
            time.sleep(poll)
