"""Loading the data set: each row straight to the shard that owns it, by COPY, all shards at once.

This is how an application loads in bulk: route all keys in one call, then copy to each shard. The guards are on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from psycopg import sql

from shardwright import engines
from shardwright.catalog.roster import Shard
from shardwright.demo.dataset import Dataset, Rows
from shardwright.routing.shard_map import ShardMap

#: Lines that are handed to libpq at once.
_BLOCK = 4000


@dataclass(frozen=True)
class Loaded:
    """What a load did."""

    rows: int
    seconds: float
    #: shard -> its rows of the sharded tables.
    per_shard: Mapping[str, int]


def load(
    data: Dataset,
    shard_map: ShardMap,
    keyspace: str,
    shards: Sequence[Shard],
    homes: Mapping[str, str],
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Loaded:
    """Load every table of the data set.

    Args:
        data: what to load.
        shard_map: who owns what.
        keyspace: of the sharded tables.
        shards: all shards of the cluster.
        homes: table -> shard, for the tables that have one home.
        on_rows: told now and then how many more rows were sent; called from several threads.
    """
    started = time.monotonic()
    shares: dict[str, list[Rows]] = {shard.name: [] for shard in shards}
    per_shard = dict.fromkeys(shares, 0)
    for rows in data.tables():
        if not rows.keys:
            shares[homes[rows.table]].append(rows)
            continue
        for shard, share in split(rows, shard_map, keyspace).items():
            shares[shard].append(share)
            per_shard[shard] += len(share.lines)
    with ThreadPoolExecutor(max_workers=max(1, len(shares))) as pool:
        for done in [pool.submit(copy, shard, shares[shard.name], on_rows) for shard in shards]:
            done.result()
    total = sum(len(rows.lines) for rows in data.tables())
    return Loaded(total, time.monotonic() - started, per_shard)


def split(rows: Rows, shard_map: ShardMap, keyspace: str) -> dict[str, Rows]:
    """The rows of each shard, by one routing call for all keys.

    Args:
        rows: of a sharded table.
        shard_map: who owns what.
        keyspace: of the table.
    """
    owner = {one.id: one.shard for one in shard_map.ranges}
    shares = {shard: Rows(rows.table, rows.columns, [], []) for shard in shard_map.shards()}
    for number, line, key in zip(shard_map.route_many(keyspace, rows.keys), rows.lines, rows.keys, strict=True):
        share = shares[owner[number]]
        share.lines.append(line)
        share.keys.append(key)
    return shares


def copy(shard: Shard, tables: Sequence[Rows], on_rows: Callable[[int], None] = lambda rows: None) -> None:
    """Copy rows to one shard, in one transaction.

    Args:
        shard: whom they belong to.
        tables: its rows of each table.
        on_rows: told now and then how many more rows were sent.
    """
    with engines.connect_shard(shard, "shardwright demo load") as connection, connection.transaction():
        for rows in tables:
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
                sql.Identifier("public", rows.table), sql.SQL(", ").join(map(sql.Identifier, rows.columns))
            )
            with connection.cursor() as cursor, cursor.copy(statement) as lines:
                for first in range(0, len(rows.lines), _BLOCK):
                    block = rows.lines[first : first + _BLOCK]
                    lines.write(b"\n".join(block) + b"\n")
                    on_rows(len(block))
        for rows in tables:
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("public", rows.table)))
