"""How the rows of the data set fared: every one of them is compared with what the servers hold at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from shardwright import engines
from shardwright.catalog.roster import Shard
from shardwright.demo.dataset import Dataset, Rows
from shardwright.routing.shard_map import ShardMap


@dataclass
class Originals:
    """How the rows of the data set fared.

    Attributes:
        missing: rows of the source that no shard has.
        surplus: rows that a shard has and the source has not, or that lie on a second shard.
        misplaced: rows on a shard that does not own their key.
        evidence: a few of them.
    """

    missing: int = 0
    surplus: int = 0
    misplaced: int = 0
    evidence: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep one piece of evidence while there is room."""
        if len(self.evidence) < 20:
            self.evidence.append(text)


def compare_originals(
    data: Dataset, shard_map: ShardMap, keyspace: str, shards: Sequence[Shard], homes: Mapping[str, str]
) -> Originals:
    """Compare every row of the data set with what the shards hold, byte by byte.

    Sharded rows must be on their owner and nowhere else, global ones on their home, reference ones on every shard.

    Args:
        data: the source.
        shard_map: the final one.
        keyspace: of the sharded tables.
        shards: all shards.
        homes: table -> shard, for the tables with one home.
    """
    found = Originals()
    connections = {shard.name: engines.connect_shard(shard, "shardwright demo check") for shard in shards}
    try:
        for rows in data.tables():
            if rows.keys:
                compare_sharded(rows, connections, shard_map, keyspace, found)
            elif rows.table in (data.airlines.table, data.airports.table):
                for shard, connection in connections.items():
                    _compare(rows, set(rows.lines), _lines(connection, rows), shard, found)
            else:
                home = homes[rows.table]
                _compare(rows, set(rows.lines), _lines(connections[home], rows), home, found)
    finally:
        for connection in connections.values():
            connection.close()
    return found


def compare_sharded(
    rows: Rows,
    connections: Mapping[str, psycopg.Connection[Any]],
    shard_map: ShardMap,
    keyspace: str,
    found: Originals,
) -> None:
    """Compare a sharded table: each row must be on the owner of its key and nowhere else.

    Args:
        rows: all of them, in the form in which servers give them back; column `tailnum` is the key.
        connections: to the shards, by name.
        shard_map: who owns what.
        keyspace: of the table.
        found: gets what is found.
    """
    owner = {one.id: one.shard for one in shard_map.ranges}
    at = rows.columns.index("tailnum")
    left = set(rows.lines)
    for shard, connection in connections.items():
        lines = list(_lines(connection, rows))
        keys = [line.split(b"\t", at + 1)[at].decode() for line in lines]
        for number, key in zip(shard_map.route_many(keyspace, keys), keys, strict=True):
            if owner[number] != shard:
                found.misplaced += 1
                found.say(f"{rows.table} {key} lies on {shard}, {owner[number]} owns it")
        _take(rows, left, lines, shard, found)
    _report_left(rows, left, "every shard", found)


def _compare(rows: Rows, left: set[bytes], lines: Iterator[bytes], shard: str, found: Originals) -> None:
    _take(rows, left, lines, shard, found)
    _report_left(rows, left, shard, found)


def _take(rows: Rows, left: set[bytes], lines: Iterator[bytes] | list[bytes], shard: str, found: Originals) -> None:
    for line in lines:
        if line in left:
            left.remove(line)
        else:
            found.surplus += 1
            found.say(f"{rows.table} on {shard} has a row too many: {line.decode(errors='replace')}")


def _report_left(rows: Rows, left: set[bytes], where: str, found: Originals) -> None:
    found.missing += len(left)
    for line in sorted(left)[:5]:
        found.say(f"{rows.table} is missing on {where}: {line.decode(errors='replace')}")


def _lines(connection: psycopg.Connection[Any], rows: Rows) -> Iterator[bytes]:
    """A table's rows as COPY text, in the columns of the source."""
    statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
        sql.SQL(", ").join(map(sql.Identifier, rows.columns)), sql.Identifier("public", rows.table)
    )
    rest = b""
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy:
            *whole, rest = (rest + bytes(block)).split(b"\n")
            yield from whole
