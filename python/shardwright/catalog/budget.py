"""Connections to each shard: how many there may be, and how many the processes of all applications may open.

A limit of connections belongs to a server, not to a process. Each process that follows the map says in the catalog how
many it may open to each shard; together with what else is on the server they must fit into its max_connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright import engines, errors
from shardwright.catalog import roster

#: Connections to each shard that are kept for one of our workers: its own, a guard, copying on two threads, and to spare.
WORKER_CONNECTIONS = 8

_SERVER = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true), '0')::int,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
       (SELECT count(*) FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend'
           AND datid IS NOT NULL AND application_name NOT LIKE 'shardwright%'),
       (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shardwright%'
           AND datname = current_database() AND pid <> pg_backend_pid())
"""
_PROCESSES = """
SELECT application, host, count(*), connections FROM shardwright.routers
WHERE seen_at > clock_timestamp() - interval '1 minute' GROUP BY application, host, connections ORDER BY 1, 2, 4
"""


@dataclass(frozen=True)
class Processes:
    """Processes of one application on one host."""

    application: str
    host: str
    count: int
    #: connections that each of them may open to each shard, by driver; None: without a limit
    connections: Mapping[str, int | None]

    @property
    def may_open(self) -> int | None:
        """Connections that all of them may open to each shard; None: without a limit."""
        limits = list(self.connections.values())
        return None if any(limit is None for limit in limits) else self.count * sum(one for one in limits if one)


@dataclass(frozen=True)
class Room:
    """What one shard's server has room for."""

    shard: str
    #: the server, which several shards may share
    system_identifier: str
    max_connections: int
    #: kept for superusers and the like
    reserved: int
    #: the database's own limit; None: none
    database_limit: int | None
    #: connections of others now, on the whole server
    others: int
    #: connections of applications and of ours now, to this shard
    in_use: int


@dataclass(frozen=True)
class Verdict:
    """Whether the connections to one shard fit."""

    shard: str
    #: what was found; None: the shard cannot be reached
    room: Room | None
    #: stored for the shard; None: none
    budget: int | None
    #: kept for our workers
    workers: int
    #: connections that applications may have to it
    allowed: int | None
    #: connections that applications may open to it; None: without a limit
    may_open: int | None
    #: what does not fit, and what to do about it; empty where it fits
    problem: str = ""
    fix: str = ""

    @property
    def fits(self) -> bool:
        """Whether they do."""
        return not self.problem


def list_processes(catalog: psycopg.Connection) -> list[Processes]:
    """The processes that have been heard of within a minute.

    Args:
        catalog: connection to the catalog.
    """
    return [Processes(*row) for row in catalog.execute(_PROCESSES).fetchall()]


def measure(shard: roster.Shard) -> Room:
    """Ask a shard's server.

    Args:
        shard: which.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary: it cannot be asked.
    """
    with engines.connect_shard(shard, "shardwright doctor") as there:
        row = there.execute(_SERVER).fetchone()
    assert row is not None
    most, reserved, limit, others, in_use = row
    return Room(shard.name, shard.system_identifier, most, reserved, limit if limit >= 0 else None, others, in_use)


def judge(
    shards: Sequence[roster.Shard],
    rooms: Mapping[str, Room | errors.ShardwrightError],
    processes: Sequence[Processes],
    *,
    workers: int,
    more: int,
) -> list[Verdict]:
    """Say for each shard whether the connections fit that may be opened to it.

    Args:
        shards: the cluster's.
        rooms: what each shard's server said, or why it could not be asked.
        processes: those that live.
        workers: worker processes of ours that may run an operation at the same time.
        more: connections that applications will need besides, to each shard.
    """
    limits = [one.may_open for one in processes]
    asked = None if None in limits else sum(one for one in limits if one) + more
    ours = workers * WORKER_CONNECTIONS
    found = []
    for shard in shards:
        room = rooms[shard.name]
        if isinstance(room, errors.ShardwrightError):
            found.append(Verdict(shard.name, None, shard.connections, ours, None, asked, room.message, room.fix))
            continue
        neighbours = [
            other
            for other in shards
            if other.name != shard.name
            and isinstance(beside := rooms[other.name], Room)
            and beside.system_identifier == room.system_identifier
        ]
        left = room.max_connections - room.reserved - room.others - ours * (1 + len(neighbours))
        # A server's room is shared by its shards: those that have a budget take it, the others share the rest alike.
        left -= sum(other.connections for other in neighbours if other.connections is not None)
        sharing = 1 + sum(other.connections is None for other in neighbours) if shard.connections is None else 1
        left = max(0, left // sharing)
        if room.database_limit is not None:
            left = min(left, max(0, room.database_limit - ours))
        found.append(_verdict(shard, room, ours, left, asked, processes))
    return found


def _verdict(
    shard: roster.Shard, room: Room, ours: int, left: int, asked: int | None, processes: Sequence[Processes]
) -> Verdict:
    allowed = left if shard.connections is None else min(left, shard.connections)

    def verdict(problem: str = "", fix: str = "") -> Verdict:
        return Verdict(shard.name, room, shard.connections, ours, allowed, asked, problem, fix)

    count = sum(one.count for one in processes)
    if shard.connections is not None and shard.connections > left:
        return verdict(
            f"the budget of {shard.connections} is more than the {left} that the server has left",
            f"shardwright shard budget {shard.name} --connections {left}"
            if left
            else _raise_it(room, shard.connections),
        )
    if asked is None:
        return verdict(
            "processes open connections without a limit", "give pool_size above 0 and max_overflow of 0 or more"
        )
    if asked > allowed:
        each = allowed // count if count else 0
        smaller = (
            f"let pool_size + max_overflow of each of {count} processes be {each} at most" if each else "run fewer"
        )
        larger = (
            _raise_it(room, asked - allowed)
            if shard.connections is None or shard.connections >= left
            else f"`shardwright shard budget {shard.name} --connections {min(asked, left)}`"
        )
        return verdict(f"{asked} connections may be opened, and {allowed} fit", f"{smaller}; or {larger}")
    return verdict()


def _raise_it(room: Room, by: int) -> str:
    if room.database_limit is not None and room.database_limit <= room.max_connections - room.reserved - room.others:
        return f"ALTER DATABASE .. CONNECTION LIMIT {room.database_limit + by}"
    return f"ALTER SYSTEM SET max_connections = {room.max_connections + by}, then restart the server"


def set_budget(catalog: psycopg.Connection, name: str, connections: int | None) -> roster.Shard:
    """Store how many connections all applications together may have to a shard.

    Args:
        catalog: connection to the catalog.
        name: the shard's name.
        connections: how many; None: as many as its server's max_connections leaves.

    Raises:
        UnknownShard: there is none of that name.
        BadOption: the number is below 1.
    """
    if connections is not None and connections < 1:
        raise errors.BadOption(f"a budget of {connections} connections", fix="give 1 or more")
    roster.get_shard(catalog, name)
    catalog.execute("UPDATE shardwright.shards SET connections = %s WHERE name = %s", (connections, name))
    return roster.get_shard(catalog, name)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict, for ``--json``.

    Args:
        verdict: which.
    """
    room = verdict.room
    return {
        "shard": verdict.shard,
        "fits": verdict.fits,
        "max_connections": room.max_connections if room else None,
        "reserved": room.reserved if room else None,
        "database_limit": room.database_limit if room else None,
        "others": room.others if room else None,
        "in_use": room.in_use if room else None,
        "workers": verdict.workers,
        "budget": verdict.budget,
        "allowed": verdict.allowed,
        "may_open": verdict.may_open,
        "problem": verdict.problem,
        "fix": verdict.fix,
    }
