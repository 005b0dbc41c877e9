"""What there is, as values: tables with a policy, and what each shard has of their partitions. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from shardwright.routing.policy import Policy


@dataclass(frozen=True)
class PartitionedTable:
    """One registered table with a policy, as far as planning goes."""

    id: int
    schema: str
    name: str
    #: ``sharded``, ``reference``, ``global`` or ``local``.
    kind: str
    policy: Policy
    #: One of `policy.KEYS`, as the column's type resolves it.
    key: str
    keyspace: str | None = None
    #: Where a reference table is written or a global one lives.
    home: str | None = None

    @property
    def full_name(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema}.{self.name}"

    def is_on(self, shard: str) -> bool:
        """Whether the table exists on a shard.

        Args:
            shard: the shard's name.
        """
        return self.kind != "global" or self.home == shard


@dataclass(frozen=True, order=True)
class Partition:
    """One partition by name, bounds (microseconds of the policy's axis, None: its end) and role."""

    name: str
    lower: int | None
    upper: int | None
    #: ``window``, ``whole``, ``before`` or ``after``.
    role: str = "window"

    @property
    def is_guard(self) -> bool:
        """Whether it takes the rows that no window takes."""
        return self.role in ("before", "after")

    @property
    def span(self) -> tuple[int | None, int | None]:
        """Its bounds."""
        return self.lower, self.upper


@dataclass(frozen=True)
class Leaf:
    """A table that is a partition of ours, or was one, or will be one, on one shard."""

    name: str
    #: Bounds as the server has them; those of the mark where it is not attached.
    lower: int | None
    upper: int | None
    #: In pg_inherits.
    attached: bool
    #: A DETACH CONCURRENTLY of it broke off.
    pending: bool = False
    #: A DEFAULT partition.
    default: bool = False
    #: ``r`` table, ``p`` partitioned itself, ``f`` foreign; empty where the table is gone and only the mark is there.
    relkind: str = "r"
    #: Role and state of our mark, where it has one with this very relid; else empty.
    role: str = ""
    state: str = ""
    detached_at: datetime | None = None
    #: A mark has its name and another relid.
    stranger: bool = False
    #: Pages and rows as of the last VACUUM or ANALYZE; a guess, for people.
    pages: int = 0
    rows: float = -1

    @property
    def marked(self) -> bool:
        """Whether it carries our mark."""
        return bool(self.role)

    @property
    def span(self) -> tuple[int | None, int | None]:
        """Its bounds."""
        return self.lower, self.upper


@dataclass(frozen=True)
class GuardRows:
    """Rows in a guard partition, counted up to a bound."""

    name: str
    count: int
    #: Whether there are more than were counted.
    more: bool
    #: Positions of the first and the last finite one; None where there is none, or where the value has none.
    least: int | None = None
    most: int | None = None
    #: The first and the last as PostgreSQL prints them, ``infinity`` perhaps.
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key to a partitioned table of ours."""

    name: str
    #: Schema and name of the referencing table.
    schema: str
    table: str
    #: Number of the referencing table, where it is one of the partitioned ones.
    table_id: int | None
    #: Number of the referenced one.
    to_id: int
    columns: tuple[str, ...] = ()
    to_columns: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """``schema.table`` of the referencing table, for messages."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Needed:
    """A window that cannot go from a shard: rows of another table refer to rows in it."""

    shard: str
    table_id: int
    window: str
    #: The referencing table and its constraint.
    by: str
    constraint: str


@dataclass(frozen=True)
class TableShape:
    """What one shard has of one table."""

    #: ``p`` partitioned, ``r`` plain, ...; None: there is no such table.
    relkind: str | None
    #: As pg_get_partkeydef prints it: ``RANGE (created_at)``.
    partition_by: str | None = None
    leaves: tuple[Leaf, ...] = ()
    guard_rows: tuple[GuardRows, ...] = ()
    #: Names in the table's schema that begin like the table's and are no partitions.
    taken: frozenset[str] = frozenset()
    #: Whether it has a barrier against old snapshots, and nobody is known to have such a one any more.
    idle_barrier: bool = False


@dataclass(frozen=True)
class ShardShape:
    """What one shard has, and how its clock stands; or why it could not be asked."""

    name: str
    #: None where it could not be asked.
    clock: datetime | None = None
    #: Seconds by which its clock is ahead of the caller's.
    skew: float = 0.0
    tables: dict[int, TableShape] = field(default_factory=dict)
    foreign_keys: tuple[ForeignKey, ...] = ()
    #: Why it could not be asked: kind of the error, and its message.
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class LiveMove:
    """A part of a live reshard."""

    operation: int
    keyspace: str
    source: str
    target: str
