"""What pg_partman was told of a table: found whatever its version and schema, and said as a policy of ours.

pg_partman 4 and 5 keep one row a table in `part_config`, with or without the extension being installed as one. While
that row says automatic_maintenance = 'on', run_maintenance() (by its background worker, pg_cron or cron) goes on
creating and dropping partitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from shardwright.routing.policy import Span

_EPOCHS = {"seconds": "epoch_s", "milliseconds": "epoch_ms", "microseconds": "epoch_us"}

_TABLES = """
SELECT n.nspname, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = 'part_config' AND c.relkind = 'r' AND (
    SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid
       AND a.attname IN ('parent_table', 'control', 'partition_interval', 'premake', 'automatic_maintenance')) = 5
 ORDER BY 1
"""


@dataclass(frozen=True)
class PartmanSet:
    """One table in the care of pg_partman."""

    #: Schema of its objects.
    schema: str
    parent: str
    #: Whether run_maintenance() looks after it without being named.
    automatic: bool
    #: Whether it is being undone.
    undoing: bool = False
    #: What it says, in the words of our policy: column, every, keep, ahead, key.
    policy: Mapping[str, Any] = field(default_factory=dict)
    #: What of it is not taken over as it is, for people.
    notes: tuple[str, ...] = ()
    #: False where its table may not be read.
    readable: bool = True

    def statement(self, text: str) -> str:
        """An SQL statement about its row.

        Args:
            text: what comes before the WHERE; ``{config}`` stands for the table.
        """
        config = sql.Identifier(self.schema, "part_config").as_string(None)
        parent = self.parent.replace("'", "''")
        return f"{text.format(config=config)} WHERE parent_table = '{parent}'"

    @property
    def off(self) -> str:
        """The statement that makes run_maintenance() pass it over."""
        return self.statement("UPDATE {config} SET automatic_maintenance = 'off'")

    @property
    def forget(self) -> str:
        """The statement that takes the table out of its care."""
        return self.statement("DELETE FROM {config}")


def find(connection: psycopg.Connection, schema: str, table: str) -> PartmanSet | None:
    """Look whether pg_partman looks after a table.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: its name.
    """
    parent = f"{schema}.{table}"
    for place, readable in connection.execute(_TABLES).fetchall():
        if not readable:
            return PartmanSet(place, parent, True, readable=False)
        row = connection.execute(
            sql.SQL("SELECT to_jsonb(c) FROM {} c WHERE c.parent_table = %s").format(
                sql.Identifier(place, "part_config")
            ),
            (parent,),
        ).fetchone()
        if row is not None:
            found = row[0]
            policy, notes = _policy(connection, found)
            automatic = found["automatic_maintenance"] == "on"
            return PartmanSet(place, parent, automatic, bool(found.get("undo_in_progress")), policy, tuple(notes))
    return None


def _policy(connection: psycopg.Connection, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    policy: dict[str, Any] = {"column": found["control"], "ahead": found["premake"]}
    notes: list[str] = []
    every = _span(connection, found["partition_interval"])
    if every is None:
        notes.append(
            f"its partition_interval {found['partition_interval']} is no length of a window here: give --every"
        )
    else:
        policy["every"] = every
    epoch = found.get("epoch") or "none"
    if epoch in _EPOCHS:
        policy["key"] = _EPOCHS[epoch]
    elif epoch != "none":
        notes.append(f"its column counts {epoch}, which is no key here")
    retention = found.get("retention")
    if retention is not None:
        keep = _span(connection, retention)
        if keep is None:
            notes.append(f"its retention {retention} is not taken over: give --keep")
        elif found.get("retention_keep_table") or found.get("retention_schema"):
            # Ours drops after the grace what pg_partman would have left lying: never without being told to.
            notes.append(
                f'its retention of {retention} detaches tables and keeps them, ours drops them: give --keep "{keep}" '
                "for that, without it rows are kept for ever"
            )
        else:
            policy["keep"] = keep
    return policy, notes


def _span(connection: psycopg.Connection, text: str) -> str | None:
    """An interval as a span; None where it is none, such as that of a set by numbers."""
    try:
        row = connection.execute(
            "SELECT (12 * extract(year FROM i) + extract(month FROM i))::int8, extract(day FROM i)::int8, "
            "extract(epoch FROM i - date_trunc('day', i))::float8 FROM (SELECT %s::interval) AS t(i)",
            (text,),
        ).fetchone()
    except psycopg.DataError:
        return None
    assert row is not None
    return span_of(*row)


def span_of(months: int, days: int, seconds: float) -> str | None:
    """The span that an interval is; None where it is more than one unit, or finer than an hour.

    Args:
        months: of the interval.
        days: of the interval.
        seconds: the rest.
    """
    hours, rest = divmod(seconds, 3600)
    parts = [(months, "month"), (days, "day"), (int(hours), "hour")]
    given = [(count, unit) for count, unit in parts if count]
    if rest or len(given) != 1 or given[0][0] < 0:
        return None
    count, unit = given[0]
    for larger, smaller, many in (("year", "month", 12), ("week", "day", 7)):
        if unit == smaller and count % many == 0:
            return str(Span(count // many, larger))
    return str(Span(count, unit))
