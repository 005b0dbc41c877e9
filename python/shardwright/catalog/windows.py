"""The declared partitions of each table: one list in the catalog, the same for every shard that has the table.

Bounds are microseconds of the policy's own axis; None is the axis' end. The database refuses two wanted windows of one
table that overlap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg

from shardwright import errors

#: What a partition is for: a window of the policy, a table that was there before, a guard at either end.
ROLES = ("window", "whole", "before", "after")


@dataclass(frozen=True)
class CatalogWindow:
    """One declared partition of one table."""

    table_id: int
    #: The leaf's name on every shard, in its parent's schema.
    name: str
    lower: int | None
    upper: int | None
    #: One of `ROLES`.
    role: str = "window"
    #: ``wanted``, or ``retired``: shards detach, archive and drop it.
    state: str = "wanted"
    retired_at: datetime | None = None
    #: Restored from an archive: not retired before this moment, though its time is over.
    kept_until: datetime | None = None

    @property
    def is_guard(self) -> bool:
        """Whether it takes the rows that no window takes."""
        return self.role in ("before", "after")


def span_text(lower: int | None, upper: int | None) -> str:
    """An int8range's text.

    Args:
        lower: its first point; None for none.
        upper: the point behind its last; None for none.
    """
    return f"[{'' if lower is None else lower},{'' if upper is None else upper})"


def list_windows(catalog: psycopg.Connection, table_id: int | None = None) -> list[CatalogWindow]:
    """Declared partitions, by table and lower bound; retired ones too.

    Args:
        catalog: connection to the catalog.
        table_id: of this table only.
    """
    rows = catalog.execute(
        "SELECT table_id, name, lower(span), upper(span), role, state, retired_at, kept_until "
        "FROM shardwright.windows WHERE %(table)s::int IS NULL OR table_id = %(table)s "
        "ORDER BY table_id, lower(span) NULLS FIRST, name",
        {"table": table_id},
    ).fetchall()
    return [CatalogWindow(*row) for row in rows]


def add(catalog: psycopg.Connection, table_id: int, windows: Iterable[CatalogWindow]) -> None:
    """Declare partitions. Those that are declared already, with the same span and role, stay.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        windows: what to declare.

    Raises:
        OperationConflict: another one was declared meanwhile that overlaps, or that has the name. Nothing was changed.
    """
    with _exclusion(table_id), catalog.transaction():
        for window in windows:
            catalog.execute(
                "INSERT INTO shardwright.windows AS w (table_id, name, span, role, state, retired_at) "
                "SELECT %(table)s, %(name)s, %(span)s::int8range, %(role)s, %(state)s, "
                "CASE %(state)s WHEN 'retired' THEN clock_timestamp() END "
                "WHERE NOT EXISTS (SELECT FROM shardwright.windows WHERE table_id = %(table)s AND name = %(name)s "
                "AND span = %(span)s::int8range AND role = %(role)s AND state = %(state)s)",
                {
                    "table": table_id,
                    "name": window.name,
                    "span": span_text(window.lower, window.upper),
                    "role": window.role,
                    "state": window.state,
                },
            )


def resize(catalog: psycopg.Connection, table_id: int, name: str, lower: int | None, upper: int | None) -> None:
    """Give a declared partition, a guard, another span.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        name: the partition.
        lower: its new lower bound.
        upper: its new upper bound.

    Raises:
        OperationConflict: another wanted partition overlaps, or it is not declared any more.
    """
    with _exclusion(table_id), catalog.transaction():
        done = catalog.execute(
            "UPDATE shardwright.windows SET span = %s::int8range WHERE table_id = %s AND name = %s",
            (span_text(lower, upper), table_id, name),
        )
        if done.rowcount != 1:
            raise _conflict(table_id, f"{name} is not declared any more")


def retire(catalog: psycopg.Connection, table_id: int, names: Collection[str], at: datetime | None = None) -> None:
    """Say that partitions' time is over: shards detach, archive and drop them. Those that are retired already stay so.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        names: the partitions.
        at: when; the database's clock unless given.
    """
    catalog.execute(
        "UPDATE shardwright.windows SET state = 'retired', retired_at = coalesce(%s, clock_timestamp()) "
        "WHERE table_id = %s AND name = ANY(%s) AND state = 'wanted'",
        (at, table_id, list(names)),
    )


def reinstate(catalog: psycopg.Connection, table_id: int, name: str) -> None:
    """Want a retired partition again.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        name: the partition.

    Raises:
        OperationConflict: another wanted partition overlaps.
    """
    with _exclusion(table_id), catalog.transaction():
        catalog.execute(
            "UPDATE shardwright.windows SET state = 'wanted', retired_at = NULL WHERE table_id = %s AND name = %s",
            (table_id, name),
        )


def keep(catalog: psycopg.Connection, table_id: int, name: str, until: datetime) -> None:
    """Let a partition not be retired before a moment, though its time is over.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        name: the partition.
        until: the moment.
    """
    catalog.execute(
        "UPDATE shardwright.windows SET kept_until = %s WHERE table_id = %s AND name = %s", (until, table_id, name)
    )


def forget(catalog: psycopg.Connection, table_id: int, names: Collection[str]) -> None:
    """Delete partitions from the list: no shard has them any more.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        names: the partitions.
    """
    catalog.execute("DELETE FROM shardwright.windows WHERE table_id = %s AND name = ANY(%s)", (table_id, list(names)))


def replace_whole(catalog: psycopg.Connection, table_id: int, name: str, windows: Sequence[CatalogWindow]) -> None:
    """Declare windows in the place of one partition, at once.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        name: the partition that goes.
        windows: what its span is cut into.

    Raises:
        OperationConflict: they overlap another one, or the partition is not declared any more. Nothing was changed.
    """
    with catalog.transaction():
        gone = catalog.execute(
            "DELETE FROM shardwright.windows WHERE table_id = %s AND name = %s RETURNING name", (table_id, name)
        ).fetchone()
        if gone is None:
            raise _conflict(table_id, f"{name} is not declared any more")
        add(catalog, table_id, windows)


@contextmanager
def _exclusion(table_id: int) -> Iterator[None]:
    """Says an overlap, which the database refuses, in our words."""
    try:
        yield
    except (psycopg.errors.ExclusionViolation, psycopg.errors.UniqueViolation) as error:
        raise _conflict(table_id, " ".join((error.diag.message_detail or str(error)).split())) from error


def _conflict(table_id: int, what: str) -> errors.OperationConflict:
    return errors.OperationConflict(
        f"the windows of table {table_id} were changed meanwhile: {what}", fix="shardwright partition plan"
    )
