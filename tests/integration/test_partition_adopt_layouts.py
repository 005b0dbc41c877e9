"""Random layouts, as people make them: the list that adoption makes is what pg_catalog says, and every row stays where it was."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import sql

from fix_catalog import Found
from fix_handmade import NOW, adopted, attached, listed
from shardwright import errors
from shardwright.catalog import tables
from shardwright.partition import adopt, codecs, observed
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy

pytestmark = pytest.mark.newest_postgres

#: Column types, and what of them a bound may be: microseconds, rounded to what the type can hold.
TYPES = {
    "timestamptz": ("timestamptz", None, 1),
    "timestamp": ("timestamp", None, 1),
    "date": ("date", None, 86_400_000_000),
    "int8": ("epoch_ms", "epoch_ms", 1_000),
    "uuid": ("uuid7", None, 1_000),
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LETTERS = "abcö\"' .%$_1X"


def _cuts(rng: random.Random, step: int) -> list[int]:
    """Moments in order, between 2024 and 2027, with all kinds of distances."""
    at = int((datetime(2024, 1, 1, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))
    cuts = []
    for _ in range(rng.randint(2, 12)):
        at += rng.choice([1, 3_600_000_000, 86_400_000_000, 7 * 86_400_000_000, 31 * 86_400_000_000]) * rng.randint(
            1, 9
        )
        cuts.append(at - at % step)
    return sorted(set(cuts))


def _make(cluster: Found, rng: random.Random, table: str, kind: str) -> dict[str, list[Any]]:
    """A table with random partitions on both shards, and rows in each; the values of its rows by shard."""
    key, _, step = TYPES[kind]
    wish = _policy(key)
    cuts = _cuts(rng, step)
    spans = [pair for pair in itertools.pairwise(cuts) if rng.random() < 0.8] or [(cuts[0], cuts[0] + step)]
    if rng.random() < 0.3:
        spans.insert(0, (None, spans[0][0]))  # type: ignore[arg-type]
    names = []
    while len(names) < len(spans):
        name = "".join(rng.choices(LETTERS, k=rng.randint(3, 30)))
        if len(name.encode()) <= 63 and name.strip() and name not in names:
            names.append(name)
    rows: dict[str, list[Any]] = {}
    default = rng.random() < 0.4
    for shard in ("s1", "s2"):
        connection = cluster.shard(shard)
        parent = sql.Identifier(table)
        connection.execute(
            sql.SQL("CREATE TABLE {} (n int, at {} NOT NULL) PARTITION BY RANGE (at)").format(parent, sql.SQL(kind))
        )
        if default:
            connection.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(sql.Identifier(f"{table} rest"), parent)
            )
        values = []
        for name, (lower, upper) in zip(names, spans, strict=True):
            if shard == "s2" and rng.random() < 0.3 and name != names[-1]:
                continue
            low, high = (codecs.bound(wish, key, at, side) for at, side in ((lower, "lower"), (upper, "upper")))  # type: ignore[arg-type]
            connection.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(f"{table[:3]}{name}"), parent, sql.SQL(low), sql.SQL(high)
                )
            )
            values.append(codecs.value_at(wish, key, upper - step))
        if default:
            now = int((NOW - EPOCH) / timedelta(microseconds=1))
            values.append(codecs.value_at(wish, key, now))
        for number, value in enumerate(values):
            connection.execute(
                sql.SQL("INSERT INTO {} VALUES ({}, {})").format(parent, sql.Literal(number), sql.SQL(value))
            )
        rows[shard] = _rows(cluster, shard, table)
    return rows


def _is_too_much(cluster: Found, table: str, wish: Wish) -> bool:
    """The only thing that may be wrong with them: a DEFAULT partition would give way to too many windows at once."""
    try:
        adopt.plan(cluster.dsns.catalog, "public", table, wish, now=NOW)
    except errors.UnfitTable as error:
        if "under one lock" not in error.message:
            raise
        return True
    return False


def _policy(key: str) -> Policy:
    return Policy("at", "1 month", key=key if key.startswith("epoch") else None)


def _rows(cluster: Found, shard: str, table: str) -> list[Any]:
    statement = sql.SQL("SELECT n, at::text FROM {} ORDER BY 1, 2").format(sql.Identifier(table))
    return cluster.shard(shard).execute(statement).fetchall()


@pytest.mark.parametrize(
    "kind", [*list(TYPES)[:1], *(pytest.param(one, marks=pytest.mark.slow) for one in list(TYPES)[1:])]
)
def test_random_layouts(found: Callable[..., Found], rng: random.Random, kind: str) -> None:
    cluster = found(2)
    for number in range(3):
        table = f"t{number} {kind}"
        rows = _make(cluster, rng, table, kind)
        before = {shard: attached(cluster, shard, table) for shard in ("s1", "s2")}
        every = rng.choice(["1 month", "1 week", "1 quarter", "10 days"])
        wish = Wish(every=every, ahead=rng.randint(1, 4), holds=TYPES[kind][1])
        if _is_too_much(cluster, table, wish):
            continue
        adopted(cluster, wish, table)
        whole = observed.partitioned(tables.get_table(cluster.catalog, "public", table))
        for shard in ("s1", "s2"):
            assert _rows(cluster, shard, table) == rows[shard]
            after = attached(cluster, shard, table)
            for name, one in before[shard].items():
                if one[2] != "DEFAULT":
                    assert after[name][:3] == one[:3]
            wanted = {name: one[:2] for name, one in listed(cluster, table).items() if one[3] == "wanted"}
            assert {name: codecs.parse_bounds(whole.policy, whole.key, one[2]) for name, one in after.items()} == wanted
            assert all(one[4:6] == ("attached", True) for one in after.values())
            marked = cluster.shard(shard).execute(
                "SELECT name, lower(span), upper(span) FROM shardwright.partitions WHERE parent = %s", (table,)
            )
            assert {name: span for name, *span in marked.fetchall()} == {
                name: list(span) for name, span in wanted.items()
            }
