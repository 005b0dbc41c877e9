"""``shardwright keyspace``: create and list keyspaces."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from shardwright.catalog import keyspaces, maps, overview
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table
from shardwright.errors import BadOption
from shardwright.routing.shard_map import ShardMap

app = App(name="keyspace", help="Create and list keyspaces.")


@app.command
def create(
    name: str,
    /,
    *,
    key_type: Annotated[str, Parameter(name="--type")],
    buckets: int | None = None,
    by_range: Annotated[bool, Parameter(name="--range", negative=())] = False,
    on: str | None = None,
    split: str | None = None,
    common: Common = DEFAULTS,
) -> Answer:
    """Create a keyspace and give all its points to shards.

    A hash keyspace is spread over the shards by their weights. A range keyspace belongs to the first shard, or is cut at
    --split and given to the shards in order.

    Args:
        name: lower-case letters, digits and _.
        key_type: int2, int4, int8, text, varchar, uuid or bytea; integers only with --range.
        buckets: of a hash keyspace, fixed for life: a power of two from 2 to 65536; 4096 unless given.
        by_range: ranges of the key itself instead of hash buckets.
        on: the shards that get points, such as s1,s2; all unless given.
        split: where a range keyspace is cut, such as 1000000,2000000.
    """
    with common.connect() as catalog:
        keyspaces.create_keyspace(
            catalog,
            name,
            strategy="range" if by_range else "hash",
            key_type=key_type,
            buckets=buckets,
            shards=_words(on) if on is not None else None,
            splits=_numbers(split) if split is not None else (),
        )
        shard_map = maps.load_map(catalog)
    return Answer(
        overview.keyspace_json(shard_map, name),
        _shown(shard_map, name),
        next_steps=["shardwright table register MODULE:METADATA"],
    )


@app.command(name="list")
def list_(*, common: Common = DEFAULTS) -> Answer:
    """List the keyspaces with their ranges."""
    with common.connect() as catalog:
        shard_map = maps.load_map(catalog)
    shown = [part for keyspace in shard_map.keyspaces for part in _shown(shard_map, keyspace.name)]
    return Answer(
        {
            "map_version": shard_map.version,
            "keyspaces": [overview.keyspace_json(shard_map, keyspace.name) for keyspace in shard_map.keyspaces],
        },
        shown or ["no keyspace yet"],
        next_steps=[] if shown else ["shardwright keyspace create users --type int8"],
    )


def _shown(shard_map: ShardMap, name: str) -> list[Part]:
    rows = [(r.id, r.points().literal().strip("{}"), r.shard) for r in shard_map.ranges_of(name)]
    return [f"{name}: {keyspaces.describe(shard_map.keyspace(name))}", Table(("range", "points", "shard"), rows)]


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise BadOption(f"not a list: {text!r}", fix="separate names with commas: s1,s2")
    return words


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise BadOption(f"not a list of numbers: {text!r}", fix="separate them with commas: 1000000,2000000") from None
