"""What an operation will do: a pure value made from the shard map and what was asked for."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardwright import core, errors
from shardwright.routing import placement
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap

#: Shares of a move's points after which a batch ends, the first batch being a single point.
BATCH_SHARES = (0.01, 0.11, 1.0)


@dataclass(frozen=True)
class PlannedMove:
    """Points of one keyspace that go from one shard to another, in batches."""

    keyspace: str
    source: str
    target: str
    points: Multirange
    batches: tuple[Multirange, ...]
    #: Estimates from the source's statistics.
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What `reshard start` would do. It is valid while the shard map stands."""

    request: Mapping[str, Any]
    map_version: int
    map_fingerprint: str
    moves: tuple[PlannedMove, ...]
    #: Points that each shard owns before and after, by keyspace: {keyspace: {shard: (before, after)}}; None: unbounded.
    shares: Mapping[str, Mapping[str, tuple[int | None, int | None]]]
    #: Seconds that the copy is expected to take, and what the guess rests on.
    estimated_seconds: float | None = None
    weights: Mapping[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the map, the moves or the batches."""
        text = json.dumps(
            [
                self.map_fingerprint,
                [[m.keyspace, m.source, m.target, *(b.literal() for b in m.batches)] for m in self.moves],
            ],
            separators=(",", ":"),
        )
        return core.fingerprint(text)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data."""
        return {
            "plan": self.fingerprint,
            "request": dict(self.request),
            "map_version": self.map_version,
            "moves": [
                {
                    "keyspace": move.keyspace,
                    "source": move.source,
                    "target": move.target,
                    "points": move.points.literal(),
                    "batches": [batch.literal() for batch in move.batches],
                    "rows": move.rows,
                    "bytes": move.bytes,
                }
                for move in self.moves
            ],
            "shares": {
                keyspace: {shard: {"before": b, "after": a} for shard, (b, a) in shards.items()}
                for keyspace, shards in self.shares.items()
            },
            "rows": sum(move.rows for move in self.moves),
            "bytes": sum(move.bytes for move in self.moves),
            "estimated_seconds": self.estimated_seconds,
        }


def make_batches(points: Multirange, shares: Sequence[float] = BATCH_SHARES) -> tuple[Multirange, ...]:
    """Cut a move's points into batches: one point, then up to each share of the whole.

    Args:
        points: what moves. An unbounded set is one batch.
        shares: ends of the further batches as shares of the whole, rising to 1.

    Raises:
        BadOption: the shares do not rise to 1.
    """
    if not shares or shares[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(shares)) or shares[0] <= 0:
        raise errors.BadOption(f"batch shares {list(shares)} do not rise to 1", fix="for example 0.01,0.11,1")
    total = points.count()
    if total is None:
        return (points,)
    ends = sorted({1, *(max(1, round(total * share)) for share in shares)})
    batches = []
    rest, taken = points, 0
    for end in ends:
        piece = _take(rest, end - taken)
        batches.append(piece)
        rest, taken = rest - piece, end
    return tuple(batches)


def _take(points: Multirange, count: int) -> Multirange:
    pieces = []
    for lo, hi in points.pieces:
        if count <= 0 or lo is None or hi is None:
            break
        size = min(count, hi - lo)
        pieces.append((lo, lo + size))
        count -= size
    return Multirange(tuple(pieces))


def make_plan(
    shard_map: ShardMap,
    weights: Mapping[str, int],
    *,
    add: str | None = None,
    drain: str | None = None,
    new_weights: Mapping[str, int] | None = None,
    move: str | None = None,
    to: str | None = None,
    batch_shares: Sequence[float] = BATCH_SHARES,
) -> Plan:
    """Make a plan from exactly one of `add`, `drain`, `new_weights`, or `move` with `to`.

    Args:
        shard_map: who owns what now.
        weights: every shard's weight, those included that own nothing.
        add: give this shard its share; it is in the catalog already and owns nothing.
        drain: take everything from this shard.
        new_weights: weights that replace the present ones.
        move: ``KEYSPACE:[LO,HI)``; an open end is left out.
        to: the shard that gets what `move` names.
        batch_shares: see `make_batches`.

    Raises:
        BadOption: not exactly one was asked for, or nothing would move.
        UnknownShard, UnknownKeyspace, BadRange: as their names say.
    """
    asked = [
        name for name, value in (("add", add), ("drain", drain), ("weights", new_weights), ("move", move)) if value
    ]
    if len(asked) != 1 or (move is None) != (to is None):
        raise errors.BadOption(
            "a plan is made from exactly one of --add, --drain, --weights, or --move with --to",
            fix="shardwright reshard plan --add s3",
        )
    wanted = dict(weights)
    for name in (add, drain, to, *(new_weights or {})):
        if name is not None and name not in wanted:
            raise errors.UnknownShard(
                f"there is no shard {name}; known are {', '.join(sorted(wanted)) or 'none'}",
                fix="shardwright shard add",
            )
    request: dict[str, Any]
    if move is not None and to is not None:
        found = [_named_move(shard_map, move, to)]
        moves = [m for group in found for m in group]
        request = {"move": move, "to": to}
    else:
        if drain is not None:
            wanted[drain] = 0
            request = {"drain": drain}
        elif add is not None:
            # all others keep their weight: a shard that was drained once gets its share again
            wanted[add] = max(1, wanted[add])
            request = {"add": add}
        else:
            wanted.update(new_weights or {})
            request = {"weights": dict(new_weights or {})}
        moves = [
            (keyspace.name, m.source, m.target, m.points)
            for keyspace in shard_map.keyspaces
            for m in _moves_of(shard_map, keyspace.name, wanted, drain)
        ]
    if not moves:
        raise errors.BadOption("nothing would move: every shard owns its share already", fix="shardwright status")
    shares: dict[str, dict[str, tuple[int | None, int | None]]] = {}
    for keyspace_name in dict.fromkeys(m[0] for m in moves):
        shares[keyspace_name] = {}
        for shard in sorted(wanted):
            before = shard_map.owned(keyspace_name, shard)
            after = before
            for name, source, target, points in moves:
                if name == keyspace_name:
                    after = after - points if source == shard else after | points if target == shard else after
            shares[keyspace_name][shard] = (before.count(), after.count())
    return Plan(
        request=request,
        map_version=shard_map.version,
        map_fingerprint=shard_map.fingerprint,
        moves=tuple(
            PlannedMove(name, source, target, points, make_batches(points, batch_shares))
            for name, source, target, points in moves
        ),
        shares=shares,
        weights=wanted,
    )


def _moves_of(
    shard_map: ShardMap, keyspace: str, weights: Mapping[str, int], drain: str | None
) -> list[placement.Move]:
    if shard_map.keyspace(keyspace).strategy == "hash":
        return placement.rebalance(shard_map, keyspace, weights)
    # A range keyspace has no shares; draining is the one request that names what moves.
    if drain is None:
        return []
    owned = shard_map.owned(keyspace, drain)
    if not owned:
        return []
    others = [name for name, weight in sorted(weights.items()) if weight > 0]
    if len(others) != 1:
        raise errors.BadOption(
            f"{drain} owns ranges of the range keyspace {keyspace}, and nobody can tell to whom they should go",
            fix=f"shardwright reshard plan --move '{keyspace}:[LO,HI)' --to SHARD",
        )
    return [placement.Move(drain, others[0], owned)]


_MOVE = re.compile(r"^(?P<keyspace>[a-z][a-z0-9_]*):\[(?P<lo>-?\d*),(?P<hi>-?\d*)\)$")


def _named_move(shard_map: ShardMap, move: str, to: str) -> list[tuple[str, str, str, Multirange]]:
    found = _MOVE.match(move.replace(" ", ""))
    if found is None:
        raise errors.BadRange(f"{move!r} is not KEYSPACE:[LO,HI)", fix="for example --move 'users:[0,128)' --to s2")
    keyspace = shard_map.keyspace(found["keyspace"])
    lo = int(found["lo"]) if found["lo"] else None
    hi = int(found["hi"]) if found["hi"] else None
    if lo is not None and hi is not None and lo >= hi:
        raise errors.BadRange(
            f"[{lo},{hi}) is empty: a range is half-open and must contain a point", fix="give LO < HI"
        )
    points = Multirange(((lo, hi),)).bounds_within(keyspace)
    moves = []
    for source in shard_map.shards():
        part = shard_map.owned(keyspace.name, source) & points
        if part and source != to:
            moves.append((keyspace.name, source, to, part))
    if not moves:
        raise errors.BadOption(f"{to} owns {move} already: nothing would move", fix="shardwright status")
    return moves
