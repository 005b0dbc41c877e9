"""Which windows have rows in a partition, found by the index on its column or by one scan."""

from __future__ import annotations

import uuid

import psycopg
from psycopg import sql

from shardwright.partition import calendar, codecs
from shardwright.partition.calendar import Window
from shardwright.partition.clocks import FIRST, LAST
from shardwright.partition.site import PartitionSite

#: Bounds that one scan sorts rows by.
_MOST = 20_000

_ALL = sql.SQL("")


def position(site: PartitionSite, text: str) -> int:
    """The moment of a value of the partition column, on the policy's axis.

    Args:
        site: the table and shard.
        text: the value as PostgreSQL prints it.
    """
    if site.key == "uuid7":
        return (uuid.UUID(text).int >> 80) * 1000
    if site.key == "snowflake":
        bits = site.policy.snowflake_bits
        return codecs.parse_value(site.policy, site.key, str(int(text) >> bits << bits))
    return codecs.parse_value(site.policy, site.key, text)


def windows(site: PartitionSite, partition: str) -> list[Window]:
    """The policy's windows that have rows in a partition, in order. What lies outside of the calendar is in none.

    Args:
        site: the table and shard.
        partition: its name.
    """
    if _has_index(site.connection, site, partition):
        return _by_index(site, partition)
    return _by_scan(site, partition)


def extent(site: PartitionSite, partition: str) -> tuple[int, int] | None:
    """Positions of the first and the last row of a partition; None where it has none.

    Args:
        site: the table and shard.
        partition: its name.
    """
    least, most = _end(site, partition, "ASC"), _end(site, partition, "DESC")
    return None if least is None or most is None else (position(site, least), position(site, most))


def _has_index(connection: psycopg.Connection, site: PartitionSite, partition: str) -> bool:
    row = connection.execute(
        "SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] JOIN pg_class ic ON ic.oid = i.indexrelid "
        "JOIN pg_am m ON m.oid = ic.relam WHERE n.nspname = %s AND c.relname = %s AND a.attname = %s AND i.indisvalid "
        "AND i.indpred IS NULL AND m.amname = 'btree'",
        (site.schema, partition, site.policy.column),
    ).fetchone()
    return row is not None


def _end(site: PartitionSite, partition: str, direction: str, where: sql.Composable = _ALL) -> str | None:
    row = site.connection.execute(
        sql.SQL("SELECT {column}::text FROM ONLY {leaf}{where} ORDER BY {column} {direction} LIMIT 1").format(
            column=site.column, leaf=site.leaf(partition), where=where, direction=sql.SQL(direction)
        )
    ).fetchone()
    return row[0] if row is not None else None


def _by_index(site: PartitionSite, partition: str) -> list[Window]:
    found: list[Window] = []
    where: sql.Composable = _ALL
    while (text := _end(site, partition, "ASC", where)) is not None:
        at = position(site, text)
        if at >= LAST:
            break
        if at < FIRST:
            upper = FIRST
        else:
            window = calendar.window_at(site.policy, site.key, at)
            found.append(window)
            upper = window.upper
        bound = codecs.bound(site.policy, site.key, upper, "lower", site.column_type)
        where = sql.SQL(" WHERE {} >= {}").format(site.column, sql.SQL(bound))
    return found


def _by_scan(site: PartitionSite, partition: str) -> list[Window]:
    least, most = _end(site, partition, "ASC"), _end(site, partition, "DESC")
    if least is None or most is None:
        return []
    low, high = max(position(site, least), FIRST), min(position(site, most) + 1, LAST)
    every: list[Window] = []
    for window in calendar.windows(site.policy, site.key, low, high):
        every.append(window)
        if len(every) > _MOST:
            # Far more windows than anybody keeps: a scan for each of those that have rows.
            return _by_index(site, partition)
    if not every:
        return []
    bounds = ", ".join(codecs.bound(site.policy, site.key, window.lower, "lower", site.column_type) for window in every)
    rows = site.connection.execute(
        sql.SQL("SELECT DISTINCT width_bucket({}, ARRAY[{}]::{}[]) FROM ONLY {} ORDER BY 1").format(
            site.column, sql.SQL(bounds), sql.SQL(site.column_type), site.leaf(partition)
        )
    ).fetchall()
    return [every[number - 1] for (number,) in rows if number > 0]
