"""Opening the shards for one read of several: all entered before one is asked, and what they serve tiles the keyspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from shardwright import errors
from shardwright.routing.multirange import Multirange
from shardwright.session.faults import ConnectionLost
from shardwright.session.scatter import Scatter
from shardwright.session.targets import Everywhere, Some
from shardwright.session.transactions import ShardTransactions

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.retries import Patience
    from shardwright.session.session import ShardSession

_NOTHING = Multirange(())


class Gatherer:
    """Opens them for a routed session.

    Args:
        session: the session.
        shards: its transactions.
        strict: check what each shard serves.
    """

    def __init__(self, session: ShardSession, shards: ShardTransactions, strict: bool) -> None:
        self._session = session
        self._cluster = session.cluster
        self._shards = shards
        self._strict = strict

    def some(self, target: Some, may_miss: bool) -> Scatter:
        """Shards that serve some keys each: they are read through the ranges that were entered.

        Args:
            target: what serves which keys.
            may_miss: shards that cannot be reached are left out.
        """
        _, missing = self._open_there(target.ranges, whole=False, may_miss=may_miss)
        there = [shard for shard in target.ranges if shard not in missing]
        return self._scatter(target, there, target.points, missing if may_miss else None)

    def _open_there(
        self, wanted: Mapping[str, Iterable[int]], *, whole: bool, may_miss: bool
    ) -> tuple[list[str], dict[str, errors.ShardUnavailable]]:
        """Open shards; where some may be missing, also the reason why each of those is."""
        if not may_miss:
            return self._shards.open_all(wanted, whole=whole), {}
        missing: dict[str, errors.ShardUnavailable] = {}
        opened = self._shards.open_all(wanted, whole=whole, missing=missing)
        if any(isinstance(error, ConnectionLost) for error in missing.values()):
            # The pool kept connections of a server that has been started anew since: those are gone now.
            again, missing = missing, {}
            opened += self._shards.open_all({one: wanted[one] for one in again}, whole=whole, missing=missing)
        if len(missing) == len(wanted):
            raise next(iter(missing.values()))
        return opened, missing

    def every(self, target: Everywhere, patience: Patience, may_miss: bool) -> Scatter:
        """Every shard that serves a part of the keyspace.

        Args:
            target: the plan.
            patience: how to wait while a range is being handed over.
            may_miss: shards that cannot be reached are left out.
        """
        keyspace = target.plan.root_keyspace
        while True:
            shard_map = self._cluster.map
            shards = sorted({one.shard for one in shard_map.ranges_of(keyspace)})
            opened, missing = self._open_there(dict.fromkeys(shards, ()), whole=self._strict, may_miss=may_miss)
            away = [shard_map.owned(keyspace, shard) for shard in missing]
            shards = [shard for shard in shards if shard not in missing]
            if not self._strict:
                narrow = {shard: shard_map.owned(keyspace, shard) for shard in shards}
                break
            served = {
                shard: (self._shards.driver(shard).served or {}).get(keyspace, (_NOTHING, True)) for shard in shards
            }
            if _tile(self._cluster, keyspace, {shard: points for shard, (points, _) in served.items()}, away):
                narrow = {shard: points for shard, (points, strangers) in served.items() if strangers}
                if not missing and any(points != shard_map.owned(keyspace, one) for one, (points, _) in served.items()):
                    # What is held is newer than the map, by which the transaction's next statements would go astray.
                    self._session.waiting.aside(partial(self._cluster.refresh, shard_map.version))
                break
            for shard in shards:
                if shard in opened:
                    self._shards.forget(shard)
                else:
                    self._shards.driver(shard).served = None
            patience.after(_handed_over(keyspace), shard_map.version)
        return self._scatter(target, shards, narrow, missing if may_miss else None)

    def _scatter(
        self,
        target: Some | Everywhere,
        there: Iterable[str],
        narrow: Mapping[str, Multirange],
        missing: Mapping[str, errors.ShardUnavailable] | None,
    ) -> Scatter:
        shards, plan, merging = self._shards, target.plan, target.merging
        connections = {shard: shards.connection(shard) for shard in there}
        made = Scatter(
            self._cluster, self._session.waiting, plan, merging, connections, narrow, shards.note_stream, shards.forget
        )
        made.may_miss = missing is not None
        made.missing = set(missing or ())
        return made


def _tile(cluster: Cluster, keyspace: str, served: Mapping[str, Multirange], away: Sequence[Multirange] = ()) -> bool:
    """Whether the points that shards serve are those of the keyspace, each once.

    Args:
        cluster: knows the keyspace.
        keyspace: its name.
        served: the points, by shard.
        away: the points of shards that cannot be asked.

    Returns:
        False where a point is served by nobody: it is being handed over.

    Raises:
        InvariantFailed: a point is served by two.
    """
    found = Multirange(())
    for shard, points in served.items():
        if found & points:
            raise errors.InvariantFailed(
                f"points {(found & points).literal()} of keyspace {keyspace} are served by {shard} and by another shard",
                ownership_known=False,
            )
        found |= points
    for points in away:
        found |= points
    return not (cluster.map.keyspace(keyspace).points() - found)


def _handed_over(keyspace: str) -> errors.ShardMoved:
    return errors.ShardMoved(f"a range of keyspace {keyspace} is being handed over", fix="run the transaction again")
