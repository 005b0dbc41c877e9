"""Routing, per key, single and in batches: this library against uhashring, Python's xxhash + bisect, and a bare len().

Run as a script: python tests/bench/bench_routing.py [--json]. Times are the best of several rounds, in nanoseconds a key.
"""

from __future__ import annotations

import argparse
import bisect
import json
import random
import time
import uuid
from array import array
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import uhashring  # type: ignore[import-untyped]
import xxhash

import shardwright
from shardwright.routing.placement import spread
from shardwright.routing.shard_map import Keyspace, Range, ShardMap

SHARDS = [f"shard-{number}" for number in range(8)]
COUNT = 200_000
ROUNDS = 5


def shard_map(key_type: str) -> ShardMap:
    """Eight shards, 64 ranges: a cluster that has been resharded a few times."""
    hashed = Keyspace(1, "users", "hash", key_type, 4096)
    names = {f"{name}/{part}": 1 for name in SHARDS for part in range(8)}
    pieces = [(lo, hi, name) for name, points in spread(hashed, names) for lo, hi in points.pieces]
    ranges = [Range(number, "users", lo, hi, name.split("/")[0]) for number, (lo, hi, name) in enumerate(pieces, 1)]
    keyspaces = [hashed]
    if key_type == "int8":
        keyspaces.append(Keyspace(2, "orders", "range", key_type))
        cuts = [None, *range(1000, 64_000, 1000), None]
        ranges += [
            Range(1000 + number, "orders", lo, hi, SHARDS[number % 8]) for number, (lo, hi) in enumerate(pairwise(cuts))
        ]
    return ShardMap(1, tuple(keyspaces), tuple(ranges))


def per_key(keys: Any, one_pass: Callable[[Any], object]) -> float:
    """Nanoseconds a key of the fastest of several passes over all keys."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        one_pass(keys)
        best = min(best, time.perf_counter_ns() - begin)
    return best / len(keys)


def each(call: Callable[[Any], object]) -> Callable[[Iterable[Any]], None]:
    """A pass that calls a function with every key; the loop itself costs what it does for all that are compared."""

    def one_pass(keys: Iterable[Any]) -> None:
        for key in keys:
            call(key)

    return one_pass


def xxhash_bisect() -> Callable[[Any], str]:
    """A hash ring as people write it: xxhash of the key's text, then bisect."""
    owners = sorted((xxhash.xxh3_64_intdigest(f"{name}-{n}".encode()), name) for name in SHARDS for n in range(64))
    starts = [start for start, _ in owners]
    names = [name for _, name in owners]
    digest, find = xxhash.xxh3_64_intdigest, bisect.bisect_right

    def route(key: Any) -> str:
        return names[find(starts, digest(str(key).encode())) % len(names)]

    return route


def measure() -> dict[str, float]:
    """Every measurement, by name, in nanoseconds a key."""
    rng = random.Random(7)
    ints = [rng.getrandbits(62) for _ in range(COUNT)]
    few = ints[: COUNT // 20]
    texts = [f"user-{number}@example.org" for number in ints]
    uuids = [uuid.UUID(int=rng.getrandbits(128)) for _ in range(COUNT)]
    by_int, by_text, by_uuid = shard_map("int8"), shard_map("text"), shard_map("uuid")
    by_hand = xxhash_bisect()
    ring = uhashring.HashRing(nodes=SHARDS)
    return {
        "single: len()": per_key(texts, each(len)),
        "single: range_id of an int8": per_key(ints, each(by_int.table("users").range_id)),
        "single: range_id of an int8, range keyspace": per_key(ints, each(by_int.table("orders").range_id)),
        "single: range_id of a text": per_key(texts, each(by_text.table("users").range_id)),
        "single: range_id of a uuid": per_key(uuids, each(by_uuid.table("users").range_id)),
        "single: ShardMap.route of an int8": per_key(ints, each(partial(by_int.route, "users"))),
        "single: shardwright.point of an int8": per_key(ints, each(shardwright.point)),
        "single: xxhash + bisect": per_key(ints, each(by_hand)),
        "single: uhashring": per_key(few, each(ring.get_node)),
        "batch: [len(key) for key in keys]": per_key(texts, lambda keys: [len(key) for key in keys]),
        "batch: int8, list": per_key(ints, partial(by_int.route_many, "users")),
        "batch: int8, array.array": per_key(array("q", ints), partial(by_int.route_many, "users")),
        "batch: int8, numpy": per_key(np.array(ints), partial(by_int.route_many, "users")),
        "batch: int8, range keyspace": per_key(ints, partial(by_int.route_many, "orders")),
        "batch: text": per_key(texts, partial(by_text.route_many, "users")),
        "batch: uuid": per_key(uuids, partial(by_uuid.route_many, "users")),
        "batch: xxhash + bisect": per_key(ints, lambda keys: [by_hand(key) for key in keys]),
        "batch: uhashring": per_key(few, lambda keys: [ring.get_node(key) for key in keys]),
    }


def ratios(found: dict[str, float]) -> dict[str, float]:
    """How many times faster than the others (above 1), and how many len() a routed key costs.

    "ours" finds the range, as the others find a node; ShardMap.route makes a whole Route with it.
    """
    single, batch = found["single: range_id of an int8"], found["batch: int8, list"]
    route = found["single: ShardMap.route of an int8"]
    return {
        "single, uhashring / ours": found["single: uhashring"] / single,
        "single, xxhash + bisect / ours": found["single: xxhash + bisect"] / single,
        "single, ours / len()": single / found["single: len()"],
        "single, uhashring / ShardMap.route": found["single: uhashring"] / route,
        "single, xxhash + bisect / ShardMap.route": found["single: xxhash + bisect"] / route,
        "single, ShardMap.route / len()": route / found["single: len()"],
        "batch, uhashring / ours": found["batch: uhashring"] / batch,
        "batch, xxhash + bisect / ours": found["batch: xxhash + bisect"] / batch,
        "batch, ours / len()": batch / found["batch: [len(key) for key in keys]"],
    }


def main() -> None:
    """Measure, and print a table or one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = arguments.parse_args().json
    found = measure()
    compared = ratios(found)
    if as_json:
        print(json.dumps({"ns_per_key": found, "ratios": compared}))
        return
    print("routing, nanoseconds a key")
    for name, value in found.items():
        print(f"  {name:<48}{value:>10.1f}")
    print("ratios")
    for name, value in compared.items():
        print(f"  {name:<48}{value:>10.1f}")


if __name__ == "__main__":
    main()
