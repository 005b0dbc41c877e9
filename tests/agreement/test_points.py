"""100,000 random keys of each type: Rust's buckets, the SQL that guards and filters use, and the server's own hash
partitioning must be one.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql

import shardwright
from shardwright.routing.predicates import point_sql
from shardwright.routing.shard_map import Keyspace
from shardwright.servers import Endpoint

COUNT = 100_000
BUCKETS = (2, 512, 4096, 65536)


def integers(bits: int) -> Callable[[random.Random], list[Any]]:
    def draw(rng: random.Random) -> list[Any]:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        uniform = [rng.randint(low, high) for _ in range(COUNT // 2)]
        # small numbers and neighbours of powers of two, where the folding of the high half shows
        powers = [rng.choice((1, -1)) * (1 << rng.randrange(bits - 1)) + rng.randint(-2, 2) for _ in range(COUNT // 2)]
        return uniform + [min(max(key, low), high) for key in powers]

    return draw


def every_int2(rng: random.Random) -> list[Any]:
    return [*range(-32768, 32768), *(rng.randint(-32768, 32767) for _ in range(COUNT - 65536))]


def texts(rng: random.Random) -> list[Any]:
    def draw(alphabet: str) -> str:
        return "".join(rng.choices(alphabet, k=min(int(rng.expovariate(1 / 14)), 300)))

    wide = "".join(chr(rng.randrange(0xA0, 0xD800)) for _ in range(400)) + "🦀🐘\U0010ffff"
    narrow = "".join(chr(code) for code in range(1, 128))
    return [draw(narrow) for _ in range(COUNT // 2)] + [draw(wide + narrow) for _ in range(COUNT // 2)]


def uuids(rng: random.Random) -> list[Any]:
    return [uuid.UUID(int=rng.getrandbits(128)) for _ in range(COUNT)]


def byteas(rng: random.Random) -> list[Any]:
    return [rng.randbytes(min(int(rng.expovariate(1 / 14)), 300)) for _ in range(COUNT)]


KEYS: dict[str, Callable[[random.Random], list[Any]]] = {
    "int2": every_int2,
    "int4": integers(32),
    "int8": integers(64),
    "text": texts,
    "varchar": texts,
    "uuid": uuids,
    "bytea": byteas,
}


@pytest.mark.newest_postgres
@pytest.mark.parametrize("key_type", KEYS)
def test_random_keys_have_the_servers_points(server: Endpoint, rng: random.Random, key_type: str) -> None:
    keys = KEYS[key_type](rng)
    assert len(keys) == COUNT
    type_sql = sql.SQL(key_type)
    with server.connect() as conn:
        conn.execute(sql.SQL("CREATE TEMP TABLE parent (k {}) PARTITION BY HASH (k)").format(type_sql))
        conn.execute(sql.SQL("CREATE TEMP TABLE keys (n int, k {})").format(type_sql))
        insert = sql.SQL("INSERT INTO keys SELECT n, k FROM unnest(%s::{}[]) WITH ORDINALITY AS u (k, n)")
        conn.execute(insert.format(type_sql), (keys,), binary=True)
        for buckets in BUCKETS:
            found = shardwright.points(keys, key_type, buckets)
            keyspace = Keyspace(1, "k", "hash", key_type, buckets)
            differing = conn.execute(
                sql.SQL(
                    """
                    SELECT count(*), min(n) FILTER (WHERE bad), count(*) FILTER (WHERE bad)
                      FROM (SELECT n, satisfies_hash_partition('parent'::regclass, %(buckets)s, point, k) IS NOT TRUE
                                   OR {point} <> point AS bad
                              FROM keys JOIN unnest(%(points)s::int[]) WITH ORDINALITY AS p (point, n) USING (n)) AS x
                    """
                ).format(point=sql.SQL(point_sql(keyspace, "k"))),
                {"buckets": buckets, "points": found},
            ).fetchone()
            assert differing is not None
            rows, first, bad = differing
            assert rows == COUNT
            assert not bad, f"{bad} of {rows} keys differ with {buckets} buckets; the first is {keys[first - 1]!r}"


def test_single_keys_have_the_points_of_batches(rng: random.Random) -> None:
    for key_type, draw in KEYS.items():
        keys = rng.sample(draw(rng), 2000)
        assert [shardwright.point(key, key_type) for key in keys] == shardwright.points(keys, key_type)
