"""Which points move when shards are added, drained or weighted anew. The arithmetic is in Rust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shardwright import core
from shardwright.errors import BadOption
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import Keyspace, ShardMap


class Move(NamedTuple):
    """Points that go from one shard to another."""

    source: str
    target: str
    points: Multirange


def rebalance(shard_map: ShardMap, keyspace_name: str, weights: Mapping[str, int]) -> list[Move]:
    """The fewest moves after which every shard owns its weighted share of a hash keyspace, within one bucket.

    Nothing moves between shards that both keep what they have, so adding one of N equal shards moves 1/N of the buckets.
    Pieces are taken where they touch what the target owns, else from the end of the source's last piece.

    Args:
        shard_map: who owns what now.
        keyspace_name: the keyspace to be balanced.
        weights: every shard's weight; 0 drains it, and a shard that owns nothing yet is added.

    Returns:
        At most one move a pair of shards, sorted by source and target; none when all is balanced.

    Raises:
        UnknownKeyspace: the map has no such keyspace.
        BadOption: it is a range keyspace, all weights are 0, one is negative, or an owner has none.
    """
    keyspace = shard_map.keyspace(keyspace_name)
    buckets = _buckets(keyspace)
    pieces = [(one.lo or 0, one.hi or 0, one.shard) for one in shard_map.ranges_of(keyspace_name)]
    moves = core.place(pieces, _checked(weights), buckets)
    return [Move(source, target, Multirange(tuple(found))) for source, target, found in moves]


def spread(keyspace: Keyspace, weights: Mapping[str, int]) -> list[tuple[str, Multirange]]:
    """The first placement of a new hash keyspace: one contiguous piece a shard, sized by its weight.

    Args:
        keyspace: the keyspace that is to be made.
        weights: every shard's weight; those with 0 get nothing.

    Returns:
        (shard, points) in the order of the points; the shards are in the order of their names.

    Raises:
        BadOption: it is a range keyspace, all weights are 0, or one is negative.
    """
    buckets = _buckets(keyspace)
    checked = _checked(weights)
    if not checked:
        raise BadOption("a keyspace needs a shard")
    first = checked[0][0]
    sizes = dict.fromkeys((name for name, _ in checked), 0)
    sizes[first] = buckets
    for source, target, found in core.place([(0, buckets, first)], checked, buckets):
        moved = sum(hi - lo for lo, hi in found)
        sizes[source] -= moved
        sizes[target] += moved
    pieces: list[tuple[str, Multirange]] = []
    lo = 0
    for name, size in sizes.items():
        if size:
            pieces.append((name, Multirange(((lo, lo + size),))))
            lo += size
    return pieces


def _buckets(keyspace: Keyspace) -> int:
    if keyspace.buckets is None:
        raise BadOption(
            f"keyspace {keyspace.name} is a range keyspace: nobody but its owner knows where its keys are dense",
            fix=f"say what moves: --move '{keyspace.name}:[LO,HI)' --to SHARD",
            keyspace=keyspace.name,
        )
    return keyspace.buckets


def _checked(weights: Mapping[str, int]) -> list[tuple[str, int]]:
    for name, weight in weights.items():
        if type(weight) is not int or not 0 <= weight < 2**31:
            raise BadOption(
                f"the weight of shard {name} is {weight!r}: an integer from 0 to 2147483647 is one", shard=name
            )
    return sorted(weights.items())
