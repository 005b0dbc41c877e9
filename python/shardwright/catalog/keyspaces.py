"""Keyspaces: made once with all their ranges, and told to the shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import psycopg

from shardwright import engines, errors
from shardwright.catalog import maps, roster
from shardwright.catalog.roster import Shard
from shardwright.routing.multirange import INT8_MAX, INT8_MIN, Piece
from shardwright.routing.shard_map import Keyspace, ShardMap

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_HASH_TYPES = ("int2", "int4", "int8", "text", "varchar", "uuid", "bytea")
_RANGE_TYPES = ("int2", "int4", "int8")
_MAX_BUCKETS = 65536


def create_keyspace(
    catalog: psycopg.Connection,
    name: str,
    *,
    strategy: str = "hash",
    key_type: str = "int8",
    buckets: int | None = None,
    shards: Sequence[str] | None = None,
    splits: Sequence[int] = (),
) -> Keyspace:
    """Make a keyspace and give all its points to shards.

    A hash keyspace is spread over the shards in one contiguous piece each, as large as their weights say. A range
    keyspace is cut at `splits`, and the pieces are given to the shards in order (from the first again where there are
    more pieces than shards); without splits the first shard owns it all.

    Run again with the same arguments, it tells the shards what they may have missed, and changes nothing else.

    Args:
        catalog: connection to the catalog.
        name: lower-case letters, digits and ``_``; at most 31.
        strategy: ``hash`` or ``range``.
        key_type: PostgreSQL's name of the keys' type.
        buckets: of a hash keyspace: a power of two from 2 to 65536, fixed for life; 4096 unless given.
        shards: names of the shards that get points; all by default.
        splits: of a range keyspace: where to cut, ascending.

    Returns:
        The keyspace.

    Raises:
        BadOption: an argument is wrong, or the keyspace exists and is different.
        UnsupportedKeyType: keys of that type are not proven.
        BadRange: the splits are not ascending.
        UnknownShard: there is no such shard, or none at all.
        CannotConnect, PasswordMissing, NotPrimary: a shard cannot be reached.
    """
    wanted = _checked(name, strategy, key_type, buckets, splits)
    with roster.changing(catalog):
        known = roster.list_shards(catalog)
        chosen = known if shards is None else [roster.get_shard(catalog, shard) for shard in dict.fromkeys(shards)]
        if not chosen:
            raise errors.UnknownShard("the cluster has no shard yet", fix="shardwright shard add NAME DSN")
        current = maps.load_map(catalog)
        existing = next((keyspace for keyspace in current.keyspaces if keyspace.name == name), None)
        if existing is None:
            pieces = _spread(wanted, chosen, splits)
            existing = _insert(catalog, wanted, pieces)
        elif (existing.strategy, existing.key_type, existing.buckets) != (strategy, key_type, wanted.buckets):
            raise errors.BadOption(
                f"keyspace {name} exists: {describe(existing)}, not {describe(wanted)}",
                fix="a keyspace's rule is fixed for life; choose another name",
                keyspace=name,
            )
        if not _claimed(catalog, existing):
            tell_shards(catalog, known, name)
    return existing


def list_keyspaces(catalog: psycopg.Connection) -> ShardMap:
    """The newest shard map, which has every keyspace with its ranges.

    Args:
        catalog: connection to the catalog.
    """
    return maps.load_map(catalog)


def describe(keyspace: Keyspace) -> str:
    """A keyspace's rule in a few words: ``hash of int8, 4096 buckets``.

    Args:
        keyspace: which.
    """
    if keyspace.strategy == "range":
        return f"range of {keyspace.key_type}"
    return f"hash of {keyspace.key_type}, {keyspace.buckets} buckets"


def _claimed(catalog: psycopg.Connection, keyspace: Keyspace) -> bool:
    """Whether a live operation works on the keyspace: it tells the shards what is theirs."""
    row = catalog.execute("SELECT FROM shardwright.claims WHERE keyspace = %s", (keyspace.id,)).fetchone()
    return row is not None


def tell_shards(catalog: psycopg.Connection, shards: Sequence[Shard], keyspace: str) -> None:
    """Write each shard's ranges to it where it does not have them, open. No operation may work on the keyspace.

    Args:
        catalog: connection to the catalog.
        shards: whom to tell.
        keyspace: whose ranges.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary: a shard cannot be reached.
    """
    shard_map = maps.load_map(catalog)
    ranges = shard_map.ranges_of(keyspace)
    for shard in shards:
        own = [
            (one.id, one.keyspace, one.points().pieces[0], shard_map.version)
            for one in ranges
            if one.shard == shard.name
        ]
        with engines.connect_shard(shard, "shardwright keyspace") as there:
            _tell(there, own)


def _tell(there: psycopg.Connection, own: Sequence[tuple[int, str, Piece, int]]) -> None:
    with there.transaction(), there.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO shardwright.ranges (id, keyspace, points, state, map_version) "
            "VALUES (%s, %s, int8range(%s, %s), 'open', %s) ON CONFLICT (id) DO NOTHING",
            [(number, keyspace, lo, hi, version) for number, keyspace, (lo, hi), version in own],
        )


def _checked(name: str, strategy: str, key_type: str, buckets: int | None, splits: Sequence[int]) -> Keyspace:
    if not _NAME.fullmatch(name):
        raise errors.BadOption(
            f"not a keyspace's name: {name!r}", fix="lower-case letters, digits and _, a letter first, at most 31"
        )
    if strategy not in ("hash", "range"):
        raise errors.BadOption(f"there is no strategy {strategy!r}", fix="hash or range")
    allowed = _HASH_TYPES if strategy == "hash" else _RANGE_TYPES
    if key_type not in allowed:
        raise errors.UnsupportedKeyType(
            f"{key_type} cannot be the key of a {strategy} keyspace", fix=f"use one of {', '.join(allowed)}"
        )
    if strategy == "range":
        if buckets is not None:
            raise errors.BadOption("a range keyspace has no buckets", fix="leave --buckets out")
        if any(low >= high for low, high in pairwise(splits)):
            raise errors.BadRange("the splits do not ascend", fix="give each point once, in ascending order")
        if any(not INT8_MIN < split <= INT8_MAX for split in splits):
            raise errors.BadRange("a split is outside of int8", fix="give points above -2^63 and below 2^63")
        return Keyspace(0, name, "range", key_type, None)
    if splits:
        raise errors.BadOption("a hash keyspace is not split at keys", fix="leave --split out, or use --range")
    buckets = 4096 if buckets is None else buckets
    if not 2 <= buckets <= _MAX_BUCKETS or buckets & (buckets - 1):
        raise errors.BadOption(
            f"{buckets} buckets: not a power of two from 2 to {_MAX_BUCKETS}", fix="4096 is right for most"
        )
    return Keyspace(0, name, "hash", key_type, buckets)


def _spread(keyspace: Keyspace, shards: Sequence[Shard], splits: Sequence[int]) -> list[tuple[Piece, str]]:
    """Who gets which piece."""
    if keyspace.buckets is None:
        borders: list[int | None] = [None, *splits, None]
        return [(piece, shards[at % len(shards)].name) for at, piece in enumerate(pairwise(borders))]
    total = sum(shard.weight for shard in shards)
    if total == 0:
        raise errors.BadOption("all shards have weight 0", fix="shardwright shard add NAME DSN --weight 1")
    pieces: list[tuple[Piece, str]] = []
    before = 0
    for shard in shards:
        after = before + shard.weight
        piece = (keyspace.buckets * before // total, keyspace.buckets * after // total)
        if piece[0] < piece[1]:
            pieces.append((piece, shard.name))
        before = after
    return pieces


def _insert(catalog: psycopg.Connection, wanted: Keyspace, pieces: Sequence[tuple[Piece, str]]) -> Keyspace:
    with catalog.transaction():
        row = catalog.execute(
            "INSERT INTO shardwright.keyspaces (name, strategy, key_type, buckets) VALUES (%s, %s, %s, %s) RETURNING id",
            (wanted.name, wanted.strategy, wanted.key_type, wanted.buckets),
        ).fetchone()
        assert row is not None
        for (lo, hi), shard in pieces:
            catalog.execute(
                "INSERT INTO shardwright.ranges (keyspace, points, shard) VALUES (%s, int8range(%s, %s), %s)",
                (row[0], lo, hi, shard),
            )
        maps.write_version(catalog, f"keyspace {wanted.name} made")
    return Keyspace(row[0], wanted.name, wanted.strategy, wanted.key_type, wanted.buckets)
