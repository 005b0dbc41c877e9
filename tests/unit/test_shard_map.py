from __future__ import annotations

import copy
import itertools
import json
import pickle
import sys
import threading
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardwright
from shardwright.errors import BadKey, BadOption, BadRange, UnknownKeyspace, UnsupportedKeyType
from shardwright.routing.multirange import INT8_MAX, INT8_MIN, Multirange
from shardwright.routing.shard_map import Keyspace, Range, Route, ShardMap

USERS = Keyspace(1, "users", "hash", "int8", 16)
ORDERS = Keyspace(2, "orders", "range", "int4")
RANGES = (
    Range(4, "orders", None, -5, "s2"),
    Range(3, "orders", -5, None, "s1"),
    Range(2, "users", 6, 16, "s3"),
    Range(1, "users", 0, 6, "s1"),
)


@pytest.fixture
def shard_map() -> ShardMap:
    return ShardMap(5, (ORDERS, USERS), RANGES)


def test_routes(shard_map: ShardMap) -> None:
    for key in range(100):
        point = shardwright.point(key, buckets=16)
        range_id, shard = (1, "s1") if point < 6 else (2, "s3")
        assert shard_map.route("users", key) == Route("users", key, point, range_id, shard, 5)
    assert shard_map.route("orders", -6) == Route("orders", -6, -6, 4, "s2", 5)
    assert shard_map.route("orders", -5) == Route("orders", -5, -5, 3, "s1", 5)


def test_many_routes(shard_map: ShardMap) -> None:
    assert shard_map.route_many("users", range(100)) == [shard_map.route("users", n).range_id for n in range(100)]
    assert shard_map.route_many("orders", [-6, -5, 0]) == [4, 3, 3]


def test_points_have_ranges(shard_map: ShardMap) -> None:
    assert shard_map.route_point("users", 5).id == 1
    assert shard_map.route_point("users", 6).id == 2
    assert shard_map.route_point("orders", INT8_MIN).id == 4
    assert shard_map.route_point("orders", INT8_MAX).id == 3
    for point in (16, -1, 2**64):
        with pytest.raises(BadRange):
            shard_map.route_point("users", point)


def test_order_and_parts(shard_map: ShardMap) -> None:
    assert [one.id for one in shard_map.ranges] == [1, 2, 4, 3]
    assert shard_map.keyspaces == (USERS, ORDERS)
    assert shard_map.keyspace("orders") is ORDERS
    assert shard_map.shards() == ("s1", "s2", "s3")
    assert shard_map.owned("users", "s3").literal() == "{[6,16)}"
    assert shard_map.owned("users", "s2") == Multirange()
    assert shard_map.owned("orders", "s1").literal() == "{[-5,)}"
    assert shard_map.range(4).shard == "s2"
    assert [one.id for one in shard_map.ranges_of("orders")] == [4, 3]
    with pytest.raises(BadRange):
        shard_map.range(9)


def test_unknown_keyspaces(shard_map: ShardMap) -> None:
    for call in (
        lambda: shard_map.keyspace("x"),
        lambda: shard_map.route("x", 1),
        lambda: shard_map.route_many("x", [1]),
        lambda: shard_map.route_point("x", 1),
        lambda: shard_map.owned("x", "s1"),
    ):
        with pytest.raises(UnknownKeyspace, match="no keyspace x; it has users, orders"):
            call()


def test_bad_keys(shard_map: ShardMap) -> None:
    for key in (None, True, "1", 2**63):
        with pytest.raises(BadKey):
            shard_map.route("users", key)
    with pytest.raises(BadKey):
        shard_map.route("orders", 2**31)


def test_fingerprint_is_of_the_contents(shard_map: ShardMap) -> None:
    assert len(shard_map.fingerprint) == 16
    assert ShardMap(6, (USERS, ORDERS), RANGES[::-1]).fingerprint == shard_map.fingerprint
    others = {
        ShardMap(5, (USERS, ORDERS), (*RANGES[1:], replace(RANGES[0], shard="s9"))).fingerprint,
        ShardMap(5, (USERS, ORDERS), (*RANGES[1:], replace(RANGES[0], id=9))).fingerprint,
        ShardMap(5, (USERS, replace(ORDERS, key_type="int8")), RANGES).fingerprint,
        ShardMap(5, (USERS, ORDERS), (*RANGES[2:], replace(RANGES[0], hi=1), replace(RANGES[1], lo=1))).fingerprint,
        shard_map.fingerprint,
    }
    assert len(others) == 5


def test_json_and_copies(shard_map: ShardMap) -> None:
    text = json.dumps(shard_map.to_json())
    for other in (
        ShardMap.from_json(json.loads(text)),
        pickle.loads(pickle.dumps(shard_map)),
        copy.deepcopy(shard_map),
    ):
        assert other == shard_map
        assert hash(other) == hash(shard_map)
        assert other.fingerprint == shard_map.fingerprint
        assert other.route("users", 3) == shard_map.route("users", 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("version"),
        lambda value: value.pop("fingerprint"),
        lambda value: value.update(version="5"),
        lambda value: value.update(version=True),
        lambda value: value.update(fingerprint="0" * 16),
        lambda value: value.update(ranges=None),
        lambda value: value.update(keyspaces=[{"name": "x"}]),
        lambda value: value["ranges"][0].update(shard="s2"),
        lambda value: value["ranges"][0].update(lo="0"),
        lambda value: value["ranges"][0].update(id=2**70),
        lambda value: value["ranges"][0].update(color="red"),
    ],
)
def test_damaged_json(shard_map: ShardMap, damage: Any) -> None:
    value = json.loads(json.dumps(shard_map.to_json()))
    damage(value)
    with pytest.raises(BadOption):
        ShardMap.from_json(value)


@pytest.mark.parametrize("value", [None, [], 5, "x"])
def test_json_that_is_no_map(value: Any) -> None:
    with pytest.raises(BadOption):
        ShardMap.from_json(value)


@pytest.mark.parametrize(
    "ranges",
    [
        RANGES[:-1],
        RANGES[1:],
        (*RANGES, Range(9, "users", 3, 4, "s1")),
        (*RANGES, Range(9, "orders", 3, 4, "s1")),
        (*RANGES[:-1], Range(1, "users", 0, 5, "s1")),
        (*RANGES[:-1], Range(1, "users", None, 6, "s1")),
        (*RANGES[:-1], Range(2, "users", 0, 6, "s1")),
    ],
)
def test_gaps_overlaps_and_twins_are_refused(ranges: tuple[Range, ...]) -> None:
    with pytest.raises(BadRange):
        ShardMap(1, (USERS, ORDERS), ranges)


def test_bad_keyspaces_are_refused() -> None:
    whole = (Range(1, "k", 0, 16, "s"),)
    with pytest.raises(UnsupportedKeyType):
        ShardMap(1, (Keyspace(1, "k", "hash", "date", 16),), whole)
    with pytest.raises(BadOption):
        ShardMap(1, (Keyspace(1, "k", "hash", "int8", 15),), whole)
    with pytest.raises(BadOption):
        ShardMap(1, (Keyspace(1, "k", "list", "int8", 16),), whole)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedKeyType):
        ShardMap(1, (Keyspace(1, "k", "range", "text"),), (Range(1, "k", None, None, "s"),))
    with pytest.raises(UnknownKeyspace):
        ShardMap(1, (), whole)
    with pytest.raises(BadRange, match="twice"):
        ShardMap(1, (USERS, replace(USERS, id=7)), RANGES)
    assert ShardMap(1, (), ()).shards() == ()


def test_nothing_can_be_changed(shard_map: ShardMap) -> None:
    with pytest.raises(FrozenInstanceError):
        shard_map.version = 6  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        shard_map.ranges[0].shard = "x"  # type: ignore[misc]


cuts = st.lists(st.integers(-1000, 1000), unique=True, max_size=20).map(sorted)


@given(cuts=cuts, keys=st.lists(st.integers(-1100, 1100)))
def test_lines_route_like_bisection(cuts: list[int], keys: list[int]) -> None:
    bounds = [None, *cuts, None]
    ranges = tuple(Range(number, "orders", lo, hi, "s") for number, (lo, hi) in enumerate(itertools.pairwise(bounds)))
    shard_map = ShardMap(1, (ORDERS,), ranges)
    expected = [sum(cut <= key for cut in cuts) for key in keys]
    assert shard_map.route_many("orders", keys) == expected
    assert [shard_map.route("orders", key).range_id for key in keys] == expected


def test_threads_share_a_map(shard_map: ShardMap) -> None:
    keys = list(range(20_000))
    expected = shard_map.route_many("users", keys)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(shard_map.route_many("users", keys))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_other_threads_run_while_keys_are_hashed(shard_map: ShardMap) -> None:
    """With a switch interval of hours the other thread gets its turn only where the GIL is given away."""
    keys = np.arange(2_000_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        # The other thread must be awake in time, which a busy machine may fail to do once, but not twenty times.
        assert any(_other_thread_ran(shard_map, keys) for _ in range(20))
    finally:
        sys.setswitchinterval(interval)


def _other_thread_ran(shard_map: ShardMap, keys: Any) -> bool:
    gate, order = threading.Lock(), []

    def other() -> None:
        with gate:
            order.append("other")

    gate.acquire()
    thread = threading.Thread(target=other)
    thread.start()
    gate.release()
    shard_map.route_many("users", keys)
    order.append("main")
    thread.join()
    return order == ["other", "main"]
