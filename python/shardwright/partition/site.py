"""One table on one shard while its partitions are worked on: connection, policy, lock, and how locks are waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar, cast

import psycopg
from psycopg import sql

from shardwright import errors
from shardwright.catalog import ddl, locking
from shardwright.catalog.roster import Shard
from shardwright.catalog.tables import RegisteredTable
from shardwright.partition import codecs, marks
from shardwright.partition.shapes import Partition
from shardwright.routing.policy import Policy

_Result = TypeVar("_Result")

#: Class of the advisory lock of whoever works on the partitions of a table, on a shard: (this, table's number).
LOCK_CLASS = 1397249861

#: How long one try for a table's lock may wait, and so make others wait; then a pause of random length.
LOCK_TIMEOUT_MS = 100

#: Seconds of tries before a step is deferred.
PATIENCE = 10.0

#: Rows that are moved out of a guard in the transaction that changes it, at most, unless a person says otherwise.
MOST_MOVED = 10_000


@dataclass
class PartitionSite:
    """One table on one shard."""

    shard: Shard
    table: RegisteredTable
    policy: Policy
    #: One of `policy.KEYS`, as the column's type resolves it.
    key: str
    #: To the shard, in autocommit mode.
    connection: psycopg.Connection
    #: To the catalog, in autocommit mode; for this site's thread only.
    catalog: psycopg.Connection
    #: Called between sub-steps; it may raise to stop the work.
    on_progress: Callable[[], None] = field(default=lambda: None)
    patience: float = PATIENCE
    #: The moment that is taken for now; the shard's own clock where None.
    now: datetime | None = None
    #: Rows that a step may move while the table is locked.
    most_moved: int = MOST_MOVED

    def clock(self) -> datetime:
        """Now: by the shard's clock, unless a moment was given."""
        row = self.connection.execute("SELECT coalesce(%s::timestamptz, clock_timestamp())", (self.now,)).fetchone()
        assert row is not None
        return cast(datetime, row[0])

    @property
    def schema(self) -> str:
        """Schema of the table and its partitions."""
        return self.table.schema_name

    @property
    def parent(self) -> sql.Identifier:
        """The partitioned table, quoted."""
        return self.leaf(self.table.table_name)

    @property
    def column(self) -> sql.Identifier:
        """The partition key's column, quoted."""
        return sql.Identifier(self.policy.column)

    def leaf(self, name: str) -> sql.Identifier:
        """A partition, quoted.

        Args:
            name: its name.
        """
        return sql.Identifier(self.schema, name)

    @property
    def column_type(self) -> str:
        """The partition key's type, as format_type prints it."""
        return next(column.type for column in self.table.layout.columns if column.name == self.policy.column)

    def bounds(self, lower: int | None, upper: int | None) -> sql.SQL:
        """``FOR VALUES FROM (..) TO (..)`` of a partition, the same text on every shard.

        Args:
            lower: microseconds of the policy's axis; None: MINVALUE.
            upper: microseconds of the policy's axis; None: MAXVALUE.

        Raises:
            BadOption: the column's type cannot express a bound.
        """
        low = codecs.bound(self.policy, self.key, lower, "lower", self.column_type)
        high = codecs.bound(self.policy, self.key, upper, "upper", self.column_type)
        return ddl.printed(f"FOR VALUES FROM ({low}) TO ({high})")

    def mark(self, one: Partition, state: str) -> None:
        """Mark a table that is there as a partition of ours; a mark that it has is replaced.

        Args:
            one: the partition.
            state: ``made``, ``attached``, ``detached`` or ``archived``.
        """
        marks.write(
            self.connection,
            self.schema,
            one.name,
            parent=self.table.table_name,
            lower=one.lower,
            upper=one.upper,
            role=one.role,
            state=state,
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of whoever works on this table's partitions here.

        Raises:
            LockTimeout: another session has it.
            NotPrimary: the server is a standby by now.
        """
        row = self.connection.execute(
            "SELECT pg_is_in_recovery(), pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, self.table.id)
        ).fetchone()
        if row is None or row[0]:
            raise errors.NotPrimary(f"shard {self.shard.name} is a standby", fix="give the primary's address")
        if not row[1]:
            holder = self.connection.execute(
                "SELECT l.pid, a.application_name FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
                "WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s::bigint AND l.objid = %s::bigint "
                "AND l.objsubid = 2 AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                (LOCK_CLASS, self.table.id),
            ).fetchone()
            who = f"pid {holder[0]} ({holder[1]})" if holder else "another session"
            raise errors.LockTimeout(
                f"{who} works on the partitions of {self.table.name} on shard {self.shard.name}",
                fix="wait for it, then run this again",
                blockers=[who],
            )
        try:
            yield
        finally:
            if not self.connection.closed:
                self.connection.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCK_CLASS, self.table.id))

    def patiently(
        self, work: Callable[[], _Result], *, also: Sequence[str] = (), readers: bool = False, patience: float = 0
    ) -> _Result:
        """Run `work` in a transaction under a short lock_timeout, again until it gets its locks, within a bound.

        Args:
            work: takes locks and does something short; rolled back before each new try.
            also: partitions that it locks besides the parent, for naming who is in the way.
            readers: True when it takes ACCESS EXCLUSIVE locks.
            patience: seconds after which no new try is begun; the site's own where 0.

        Returns:
            What `work` returned.

        Raises:
            LockTimeout: no try got its locks; the message names who was in the way. Nothing was changed.
        """
        return locking.patiently(
            self.connection,
            [(self.schema, name) for name in (self.table.table_name, *also)],
            work,
            lock_timeout_ms=LOCK_TIMEOUT_MS,
            patience=patience or self.patience,
            readers=readers,
        )
