"""The shard map: which shard owns which points. Immutable, with a version and a fingerprint; look-up is in Rust."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from shardwright import core
from shardwright.errors import BadOption, BadRange, UnknownKeyspace
from shardwright.routing.multirange import Multirange


@dataclass(frozen=True, slots=True)
class Keyspace:
    """A line of points, and the rule that puts a shard key on it."""

    id: int
    name: str
    #: hash: a key's point is its bucket; range: it is the integer key itself
    strategy: Literal["hash", "range"]
    #: PostgreSQL's name of the keys' type
    key_type: str
    #: a power of two, fixed for life; None for range keyspaces
    buckets: int | None = None

    def points(self) -> Multirange:
        """All points that the keyspace has."""
        return Multirange(((None, None),) if self.buckets is None else ((0, self.buckets),))


@dataclass(frozen=True, slots=True)
class Range:
    """The points `[lo, hi)` of a keyspace and the shard that owns them; None is unbounded."""

    id: int
    keyspace: str
    lo: int | None
    hi: int | None
    shard: str

    def points(self) -> Multirange:
        """The range as a set of points."""
        return Multirange(((self.lo, self.hi),))


class Route(NamedTuple):
    """Where one key lives, by one version of the map."""

    keyspace: str
    key: object
    point: int
    range_id: int
    shard: str
    map_version: int


_new = tuple.__new__


class _Lane(NamedTuple):
    """One keyspace, ready for look-up: the table's positions are positions in `ranges`."""

    keyspace: Keyspace
    table: core.RangeTable
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class ShardMap:
    """All ranges of all keyspaces.

    Args:
        version: grows by one with each change of ownership.
        keyspaces: every keyspace; kept in the order of their ids.
        ranges: every range, in any order; kept in the order of their points.

    Raises:
        BadRange: the ranges of a keyspace overlap or leave a gap, or an id is used twice.
        UnknownKeyspace: a range names a keyspace that is not there.
        UnsupportedKeyType: a keyspace's type is not proven.
        BadOption: a keyspace's strategy, name or number of buckets is wrong.
    """

    version: int
    keyspaces: tuple[Keyspace, ...]
    ranges: tuple[Range, ...]
    #: xxh3 of everything but the version, 16 hexadecimal digits: equal contents have equal fingerprints
    fingerprint: str = field(init=False, compare=False)
    _lanes: dict[str, _Lane] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keyspaces = tuple(sorted(self.keyspaces, key=lambda keyspace: keyspace.id))
        _refuse_twins("keyspace id", (keyspace.id for keyspace in keyspaces))
        _refuse_twins("keyspace", (keyspace.name for keyspace in keyspaces))
        _refuse_twins("range id", (one.id for one in self.ranges))
        pieces: dict[str, list[Range]] = {keyspace.name: [] for keyspace in keyspaces}
        for one in self.ranges:
            if one.keyspace not in pieces:
                raise UnknownKeyspace(f"range {one.id} is of keyspace {one.keyspace}, which the map does not have")
            pieces[one.keyspace].append(one)
        lanes = {keyspace.name: _lane(keyspace, pieces[keyspace.name]) for keyspace in keyspaces}
        object.__setattr__(self, "keyspaces", keyspaces)
        object.__setattr__(self, "ranges", tuple(one for lane in lanes.values() for one in lane.ranges))
        object.__setattr__(self, "_lanes", lanes)
        object.__setattr__(self, "fingerprint", core.fingerprint(json.dumps(self._contents(), separators=(",", ":"))))

    def keyspace(self, name: str) -> Keyspace:
        """The keyspace of that name, or UnknownKeyspace."""
        return self._lane(name).keyspace

    def route(self, keyspace_name: str, key: object) -> Route:
        """Find the shard that owns a key.

        Args:
            keyspace_name: the keyspace of the key's table.
            key: a value of the keyspace's type; never converted from another type.

        Returns:
            The route, by this version of the map.

        Raises:
            UnknownKeyspace: the map has no such keyspace.
            BadKey: the key is None, of the wrong type or outside the range of its type.
        """
        lane = self._lanes.get(keyspace_name) or self._lane(keyspace_name)
        point, position = lane.table.locate(key)
        found = lane.ranges[position]
        # Spares the call of the named tuple's own __new__: this is the application's every statement.
        return _new(Route, (keyspace_name, key, point, found.id, found.shard, self.version))

    def route_point(self, keyspace_name: str, point: int) -> Range:
        """The range that holds a point; BadRange when the keyspace has no such point."""
        lane = self._lane(keyspace_name)
        return lane.ranges[lane.table.locate_point(point)]

    def route_many(self, keyspace_name: str, keys: Iterable[Any]) -> list[int]:
        """The range ids of many keys, in their order. Other threads run while they are hashed.

        Args:
            keyspace_name: the keyspace of the keys' table.
            keys: a list, a numpy array or another buffer of integers, or any iterable.

        Returns:
            One range id a key.

        Raises:
            UnknownKeyspace: the map has no such keyspace.
            BadKey: one of the keys is bad; the message says which.
        """
        return self._lane(keyspace_name).table.range_ids(keys)

    def table(self, keyspace_name: str) -> core.RangeTable:
        """The look-up table of a keyspace, for loops in which every nanosecond counts; UnknownKeyspace without it."""
        return self._lane(keyspace_name).table

    def range(self, range_id: int) -> Range:
        """The range of that id, or BadRange."""
        for one in self.ranges:
            if one.id == range_id:
                return one
        raise BadRange(f"version {self.version} of the map has no range {range_id}")

    def ranges_of(self, keyspace_name: str) -> tuple[Range, ...]:
        """The ranges of one keyspace in the order of their points."""
        return self._lane(keyspace_name).ranges

    def owned(self, keyspace_name: str, shard: str) -> Multirange:
        """All points of a keyspace that a shard owns; empty when it owns none."""
        ranges = self._lane(keyspace_name).ranges
        return Multirange(tuple((one.lo, one.hi) for one in ranges if one.shard == shard))

    def shards(self) -> tuple[str, ...]:
        """The names of the shards that own anything, sorted."""
        return tuple(sorted({one.shard for one in self.ranges}))

    def to_json(self) -> dict[str, Any]:
        """The map as JSON-ready values; `from_json` reads them."""
        return {"version": self.version, "fingerprint": self.fingerprint, **self._contents()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardMap:
        """Read what `to_json` gave.

        Args:
            value: the parsed JSON object.

        Returns:
            The map.

        Raises:
            BadOption: it is no shard map, or its contents do not have the fingerprint that it carries.
        """
        try:
            found = cls(
                value["version"],
                tuple(Keyspace(**keyspace) for keyspace in value["keyspaces"]),
                tuple(Range(**one) for one in value["ranges"]),
            )
            wanted = value["fingerprint"]
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise BadOption(f"this is no shard map: {error}", fix="save one with `shardwright map --json`") from error
        if type(found.version) is not int or found.version < 0:
            raise BadOption(f"this is no shard map: its version is {found.version!r}")
        if wanted != found.fingerprint:
            raise BadOption(f"the shard map is damaged: its fingerprint is {found.fingerprint}, not {wanted}")
        return found

    def _contents(self) -> dict[str, Any]:
        return {
            "keyspaces": [asdict(keyspace) for keyspace in self.keyspaces],
            "ranges": [asdict(one) for one in self.ranges],
        }

    def _lane(self, keyspace_name: str) -> _Lane:
        try:
            return self._lanes[keyspace_name]
        except KeyError:
            known = ", ".join(self._lanes) or "none"
            raise UnknownKeyspace(
                f"the map has no keyspace {keyspace_name}; it has {known}", keyspace=keyspace_name
            ) from None

    def __hash__(self) -> int:
        return hash((self.version, self.fingerprint))

    def __reduce__(self) -> tuple[type[ShardMap], tuple[int, tuple[Keyspace, ...], tuple[Range, ...]]]:
        return ShardMap, (self.version, self.keyspaces, self.ranges)


def _lane(keyspace: Keyspace, ranges: list[Range]) -> _Lane:
    table = core.RangeTable(
        keyspace.strategy,
        keyspace.key_type,
        keyspace.buckets,
        [(one.id, one.lo, one.hi) for one in ranges],
    )
    by_id = {one.id: one for one in ranges}
    return _Lane(keyspace, table, tuple(by_id[range_id] for range_id in table.ids))


def _refuse_twins(what: str, values: Iterable[object]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise BadRange(f"{what} {value} is there twice")
        seen.add(value)
