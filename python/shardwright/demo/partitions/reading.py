"""What a shard holds of the platform's tables, read from PostgreSQL's own catalog and from the rows; and writing to it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import psycopg
from psycopg import sql

from shardwright.demo.partitions.arrivals import Arrival
from shardwright.demo.partitions.judging import Leaf, Seen
from shardwright.demo.partitions.promise import Promise, Window

_BOUNDS = re.compile(r"FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)")

_PARTITIONS = """
    SELECT t.relname, c.relname, pg_get_expr(c.relpartbound, c.oid)
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class t ON t.oid = i.inhparent
     WHERE t.relnamespace = 'public'::regnamespace AND t.relname = ANY (%s) AND c.relkind = 'r'
"""


def write(connection: psycopg.Connection[Any], promises: Mapping[str, Promise], rows: Iterable[Arrival]) -> None:
    """Insert rows on one shard, in one round trip and one transaction.

    Args:
        connection: to the shard.
        promises: of the tables, by name.
        rows: what to insert.
    """
    by_table: dict[str, list[Arrival]] = defaultdict(list)
    for row in rows:
        by_table[row.table].append(row)
    with connection.pipeline(), connection.transaction():
        for table, some in by_table.items():
            promise = promises[table]
            names = [promise.column, "id", "name", *(["user_id"] if promise.is_sharded else [])]
            values: list[Any] = [[row.moment for row in some], [row.id for row in some], [row.name for row in some]]
            types = ["date[]" if promise.is_date else "timestamptz[]", "int8[]", "text[]"]
            if promise.is_date:
                values[0] = [row.moment.date() for row in some]
            if promise.is_sharded:
                values.append([row.user_id for row in some])
                types.append("int8[]")
            connection.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT * FROM unnest({})").format(
                    sql.Identifier("public", table),
                    sql.SQL(", ").join(map(sql.Identifier, names)),
                    sql.SQL(", ").join(sql.SQL("%s::" + kind) for kind in types),
                ),
                values,
            )


def see(connection: psycopg.Connection[Any], promises: Sequence[Promise], users: Sequence[int]) -> dict[str, Seen]:
    """What is there of each table, in one round trip and one snapshot.

    Args:
        connection: to the shard; its TimeZone is UTC.
        promises: of the tables.
        users: the keys of the simulation that the shard owns.
    """
    names = [promise.table for promise in promises]
    with connection.pipeline(), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        asked = [connection.execute(_PARTITIONS, (names,))]
        asked.append(
            connection.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
            )
        )
        for promise in promises:
            strangers = sql.SQL("count(*) FILTER (WHERE user_id <> ALL ({}))").format(list(users))
            asked.append(
                connection.execute(
                    sql.SQL(
                        "SELECT c.relname, x.* FROM (SELECT tableoid, count(*), min({c}), max({c}), {s} FROM {t} "
                        "GROUP BY tableoid) x JOIN pg_class c ON c.oid = x.tableoid"
                    ).format(
                        c=sql.Identifier(promise.column),
                        s=strangers if promise.is_sharded else sql.SQL("0::bigint"),
                        t=sql.Identifier("public", promise.table),
                    )
                )
            )
    partitions, tables, *counted = [answer.fetchall() for answer in asked]
    there = frozenset(name for (name,) in tables)
    found = {}
    for promise, counts in zip(promises, counted, strict=True):
        held = {name: (rows, _moment(least), _moment(most), far) for name, _, rows, least, most, far in counts}
        windows = {
            window: Leaf(name, *held.pop(name, (0, None, None, 0)))
            for table, name, text in partitions
            if table == promise.table and (window := _window(text)) is not None
        }
        found[promise.table] = Seen(windows, sum(rows for rows, *_ in held.values()), there)
    return found


def rows_of(connection: psycopg.Connection[Any], promise: Promise, name: str) -> set[tuple[Any, ...]] | None:
    """The rows of one partition: user (None where the table has none), moment, id and name; None if it is not attached.

    Args:
        connection: to the shard; its TimeZone is UTC.
        promise: of the table.
        name: of the partition.
    """
    if name not in {found for _, found, _ in connection.execute(_PARTITIONS, ([promise.table],))}:
        return None
    user = sql.SQL("user_id") if promise.is_sharded else sql.SQL("NULL::int8")
    rows = connection.execute(
        sql.SQL("SELECT {}, {}, id, name FROM ONLY {}").format(
            user, sql.Identifier(promise.column), sql.Identifier("public", name)
        )
    ).fetchall()
    return {(key, _moment(at), number, said) for key, at, number, said in rows}


def _window(bounds: str) -> Window | None:
    """A window's bounds as PostgreSQL prints them; None for what has no end on one side."""
    found = _BOUNDS.fullmatch(bounds)
    if found is None:
        return None
    lower, upper = (datetime.fromisoformat(text) for text in found.groups())
    return Window(lower.replace(tzinfo=lower.tzinfo or UTC), upper.replace(tzinfo=upper.tzinfo or UTC))


def _moment(value: date | datetime | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    return datetime(value.year, value.month, value.day, tzinfo=UTC)
