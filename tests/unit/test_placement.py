from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright.errors import BadOption, UnknownKeyspace
from shardwright.routing.placement import Move, rebalance, spread
from shardwright.routing.shard_map import Keyspace, Range, ShardMap


def map_of(buckets: int, pieces: list[tuple[int, int, str]]) -> ShardMap:
    keyspace = Keyspace(1, "users", "hash", "int8", buckets)
    ranges = tuple(Range(number, "users", lo, hi, shard) for number, (lo, hi, shard) in enumerate(pieces, 1))
    return ShardMap(1, (keyspace,), ranges)


def owners(shard_map: ShardMap) -> list[str]:
    return [one.shard for one in shard_map.ranges for _ in range((one.hi or 0) - (one.lo or 0))]


def after(shard_map: ShardMap, moves: list[Move]) -> ShardMap:
    """The map after the moves, one range a run of buckets with one owner."""
    found = owners(shard_map)
    for move in moves:
        for lo, hi in move.points.pieces:
            assert lo is not None
            assert hi is not None
            assert found[lo:hi] == [move.source] * (hi - lo)
            found[lo:hi] = [move.target] * (hi - lo)
    cuts = [0, *(n for n in range(1, len(found)) if found[n] != found[n - 1]), len(found)]
    return map_of(len(found), [(lo, hi, found[lo]) for lo, hi in itertools.pairwise(cuts)])


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ShardMap, dict[str, int]]:
    buckets = 2 ** draw(st.integers(1, 9))
    names = [f"s{number}" for number in range(draw(st.integers(1, 6)))]
    cuts = sorted(draw(st.sets(st.integers(1, buckets - 1), max_size=12)))
    bounds = [0, *cuts, buckets]
    pieces = [(lo, hi, draw(st.sampled_from(names))) for lo, hi in itertools.pairwise(bounds)]
    weights = {name: draw(st.integers(0, 9)) for name in names}
    weights[draw(st.sampled_from(names))] += 1
    return map_of(buckets, pieces), weights


@given(clusters())
def test_shares_and_fewest_moves(cluster: tuple[ShardMap, dict[str, int]]) -> None:
    shard_map, weights = cluster
    moves = rebalance(shard_map, "users", weights)
    before, then = owners(shard_map), owners(after(shard_map, moves))
    total = sum(weights.values())
    surplus = 0
    for name, weight in weights.items():
        share = Fraction(len(before) * weight, total)
        assert abs(then.count(name) - share) < 1
        # nobody both gives and takes: no bucket moves that need not
        assert not ({move.source for move in moves} & {move.target for move in moves})
        surplus += max(0, before.count(name) - then.count(name))
    assert surplus == sum(one != two for one, two in zip(before, then, strict=True))
    # the fewest: with the best choice of who is rounded up, nobody keeps less than it could
    lower = sum(max(0, before.count(name) - -(-len(before) * weight // total)) for name, weight in weights.items())
    assert surplus >= lower
    rounded_down = [name for name, weight in weights.items() if then.count(name) < len(before) * weight / total]
    rounded_up = [name for name, weight in weights.items() if then.count(name) > len(before) * weight / total]
    if any(before.count(name) > then.count(name) for name in rounded_down):
        assert all(before.count(name) >= then.count(name) for name in rounded_up)
    # as few pairs as possible exchange anything, and each pair once
    givers, takers = {move.source for move in moves}, {move.target for move in moves}
    assert len(moves) <= max(0, len(givers) + len(takers) - 1)
    assert len({(move.source, move.target) for move in moves}) == len(moves)


@given(clusters())
def test_balanced_clusters_stay(cluster: tuple[ShardMap, dict[str, int]]) -> None:
    shard_map, weights = cluster
    balanced = after(shard_map, rebalance(shard_map, "users", weights))
    assert rebalance(balanced, "users", weights) == []
    assert rebalance(balanced, "users", {name: weight * 7 for name, weight in weights.items()}) == []


@given(clusters())
def test_moves_do_not_depend_on_the_order_of_weights(cluster: tuple[ShardMap, dict[str, int]]) -> None:
    shard_map, weights = cluster
    assert rebalance(shard_map, "users", weights) == rebalance(shard_map, "users", dict(reversed(weights.items())))


@given(st.integers(1, 12), st.sampled_from([64, 4096]))
def test_one_more_shard_takes_its_part_and_no_more(shards: int, buckets: int) -> None:
    keyspace = Keyspace(1, "users", "hash", "int8", buckets)
    names = [f"s{number:02}" for number in range(shards)]
    pieces = [
        (lo or 0, hi or 0, name)
        for name, points in spread(keyspace, dict.fromkeys(names, 1))
        for lo, hi in points.pieces
    ]
    shard_map = map_of(buckets, pieces)
    moves = rebalance(shard_map, "users", dict.fromkeys([*names, "new"], 1))
    moved = sum(move.points.count() or 0 for move in moves)
    assert moved in (buckets // (shards + 1), buckets // (shards + 1) + 1)
    assert {move.target for move in moves} <= {"new"}
    # a bucket that did not go to the new shard did not go anywhere
    then = after(shard_map, moves)
    assert all(two in (one, "new") for one, two in zip(owners(shard_map), owners(then), strict=True))
    assert len(then.ranges) <= 2 * shards + 1
    back = after(then, rebalance(then, "users", {**dict.fromkeys(names, 1), "new": 0}))
    assert "new" not in owners(back)


def test_three_of_two_and_back() -> None:
    two = map_of(4096, [(0, 2048, "s1"), (2048, 4096, "s2")])
    moves = rebalance(two, "users", {"s1": 1, "s2": 1, "s3": 1})
    assert [(move.source, move.target, move.points.literal()) for move in moves] == [
        ("s1", "s3", "{[1366,2048)}"),
        ("s2", "s3", "{[2048,2731)}"),
    ]
    three = after(two, moves)
    assert owners(after(three, rebalance(three, "users", {"s1": 1, "s2": 1, "s3": 0}))) == owners(two)


def test_drain_to_one() -> None:
    two = map_of(16, [(0, 4, "a"), (4, 8, "b"), (8, 12, "a"), (12, 16, "b")])
    assert [move.points.literal() for move in rebalance(two, "users", {"a": 1, "b": 0})] == ["{[4,8),[12,16)}"]


@pytest.mark.parametrize(
    "weights",
    [{}, {"a": 0}, {"b": 1}, {"a": -1}, {"a": 1.0}, {"a": True}, {"a": 2**31}, {"a": None}],
)
def test_bad_weights(weights: Any) -> None:
    with pytest.raises(BadOption):
        rebalance(map_of(16, [(0, 16, "a")]), "users", weights)


def test_range_keyspaces_are_placed_by_hand() -> None:
    keyspace = Keyspace(1, "orders", "range", "int8")
    shard_map = ShardMap(1, (keyspace,), (Range(1, "orders", None, None, "a"),))
    with pytest.raises(BadOption, match="range keyspace") as caught:
        rebalance(shard_map, "orders", {"a": 1, "b": 1})
    assert "--move" in caught.value.fix
    with pytest.raises(BadOption):
        spread(keyspace, {"a": 1})
    with pytest.raises(UnknownKeyspace):
        rebalance(shard_map, "users", {"a": 1})


def test_spread() -> None:
    keyspace = Keyspace(1, "users", "hash", "int8", 16)
    found = spread(keyspace, {"b": 1, "a": 2, "c": 0, "d": 1})
    assert [(name, points.literal()) for name, points in found] == [
        ("a", "{[0,8)}"),
        ("b", "{[8,12)}"),
        ("d", "{[12,16)}"),
    ]
    assert spread(keyspace, {"a": 1})[0][1].literal() == "{[0,16)}"
    for bad in ({}, {"a": 0}):
        with pytest.raises(BadOption):
            spread(keyspace, bad)
