"""Keyspaces: who gets which points, told to the shards, mended when a run broke off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import pytest

from fix_catalog import Found
from shardwright.catalog import keyspaces, maps
from shardwright.errors import BadOption, BadRange, InvariantFailed, UnknownShard, UnsupportedKeyType
from shardwright.routing.shard_map import ShardMap

pytestmark = pytest.mark.newest_postgres

Pieces = list[tuple[int | None, int | None, str]]


def pieces(shard_map: ShardMap, name: str) -> Pieces:
    return [(one.lo, one.hi, one.shard) for one in shard_map.ranges_of(name)]


def told(cluster: Found, shard: str) -> list[tuple[str, str, str]]:
    return (
        cluster.shard(shard)
        .execute("SELECT keyspace, points::text, state FROM shardwright.ranges ORDER BY keyspace, points")
        .fetchall()
    )


@pytest.mark.parametrize(
    ("weights", "buckets", "wanted"),
    [
        ((1, 1, 1), 4096, [(0, 1365, "s1"), (1365, 2730, "s2"), (2730, 4096, "s3")]),
        ((1, 0, 3), 16, [(0, 4, "s1"), (4, 16, "s3")]),
        ((1, 1, 1), 2, [(0, 1, "s2"), (1, 2, "s3")]),
    ],
)
def test_a_hash_keyspace_is_spread_by_weight(
    found: Callable[..., Found], weights: Sequence[int], buckets: int, wanted: Pieces
) -> None:
    cluster = found(3, joined=0, keyspace=None)
    for name, weight in zip(cluster.dsns.shards, weights, strict=True):
        cluster.add(name, weight=weight)
    keyspaces.create_keyspace(cluster.catalog, "k", buckets=buckets)
    assert pieces(maps.load_map(cluster.catalog), "k") == wanted
    for shard in cluster.dsns.shards:
        mine = [("k", f"[{lo},{hi})", "open") for lo, hi, owner in wanted if owner == shard]
        assert told(cluster, shard) == mine


@pytest.mark.parametrize(
    ("on", "splits", "wanted"),
    [
        (None, (), [(None, None, "s1")]),
        (("s2",), (), [(None, None, "s2")]),
        (None, (0,), [(None, 0, "s1"), (0, None, "s2")]),
        (("s2", "s1"), (-5, 10), [(None, -5, "s2"), (-5, 10, "s1"), (10, None, "s2")]),
    ],
)
def test_a_range_keyspace_is_cut_where_asked(
    found: Callable[..., Found], on: Sequence[str] | None, splits: Sequence[int], wanted: Pieces
) -> None:
    cluster = found(2, keyspace=None)
    keyspaces.create_keyspace(cluster.catalog, "r", strategy="range", key_type="int4", shards=on, splits=splits)
    shard_map = maps.load_map(cluster.catalog)
    assert pieces(shard_map, "r") == wanted
    assert sum(len(told(cluster, shard)) for shard in ("s1", "s2")) == len(wanted)
    for lo, hi, shard in wanted:
        inside = lo if lo is not None else (hi - 1 if hi is not None else 7)
        assert shard_map.route("r", inside).shard == shard


def test_only_the_shards_that_were_named(found: Callable[..., Found]) -> None:
    cluster = found(3, keyspace=None)
    keyspaces.create_keyspace(cluster.catalog, "k", buckets=8, shards=["s3", "s1", "s3"])
    assert pieces(maps.load_map(cluster.catalog), "k") == [(0, 4, "s3"), (4, 8, "s1")]


def test_again_it_tells_the_shards_what_they_missed(found: Callable[..., Found]) -> None:
    cluster = found(2)
    version = maps.map_version(cluster.catalog)
    cluster.shard("s2").execute("DELETE FROM shardwright.ranges")  # as after a crash right after the catalog's commit
    keyspaces.create_keyspace(cluster.catalog, "users")
    assert told(cluster, "s2") == [("users", "[2048,4096)", "open")]
    assert maps.map_version(cluster.catalog) == version


def test_its_rule_is_fixed(found: Callable[..., Found]) -> None:
    cluster = found(1)
    for different in ({"buckets": 8}, {"key_type": "text"}, {"strategy": "range"}):
        with pytest.raises(BadOption, match="keyspace users exists"):
            keyspaces.create_keyspace(cluster.catalog, "users", **different)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "Users"}, BadOption),
        ({"name": "us-ers"}, BadOption),
        ({"name": ""}, BadOption),
        ({"strategy": "list"}, BadOption),
        ({"key_type": "date"}, UnsupportedKeyType),
        ({"key_type": "numeric"}, UnsupportedKeyType),
        ({"strategy": "range", "key_type": "text"}, UnsupportedKeyType),
        ({"strategy": "range", "buckets": 16}, BadOption),
        ({"buckets": 0}, BadOption),
        ({"buckets": 100}, BadOption),
        ({"buckets": 131072}, BadOption),
        ({"splits": (1,)}, BadOption),
        ({"strategy": "range", "splits": (5, 5)}, BadRange),
        ({"strategy": "range", "splits": (5, 1)}, BadRange),
        ({"strategy": "range", "splits": (2**63,)}, BadRange),
        ({"strategy": "range", "splits": (-(2**63),)}, BadRange),
        ({"shards": ["nobody"]}, UnknownShard),
        ({"shards": []}, UnknownShard),
    ],
)
def test_bad_calls_change_nothing(
    found: Callable[..., Found], options: dict[str, object], error: type[Exception]
) -> None:
    cluster = found(1, keyspace=None)
    with pytest.raises(error):
        keyspaces.create_keyspace(cluster.catalog, **{"name": "k", **options})  # type: ignore[arg-type]
    assert maps.load_map(cluster.catalog) == ShardMap(0, (), ())


def test_a_cluster_without_shards(found: Callable[..., Found]) -> None:
    with pytest.raises(UnknownShard, match="no shard yet"):
        keyspaces.create_keyspace(found(1, joined=0, keyspace=None).catalog, "k")


def test_routers_are_told_of_each_version(found: Callable[..., Found]) -> None:
    cluster = found(1, keyspace=None)
    with psycopg.connect(cluster.dsns.catalog, autocommit=True) as listener:
        listener.execute("LISTEN shardwright_map")
        keyspaces.create_keyspace(cluster.catalog, "k")
        [told_now] = list(listener.notifies(timeout=10, stop_after=1))
    assert told_now.payload == "1"


def test_a_damaged_map_is_not_believed(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.catalog.execute("UPDATE shardwright.map_versions SET fingerprint = '0123456789abcdef'")
    with pytest.raises(InvariantFailed, match="damaged"):
        maps.load_map(cluster.catalog)
    cluster.catalog.execute("UPDATE shardwright.map_versions SET map = jsonb_set(map, '{ranges,0,shard}', '\"s9\"')")
    with pytest.raises((InvariantFailed, BadOption), match="damaged"):
        maps.load_map(cluster.catalog)
