"""A process's engines, one for each shard and driver: made when first asked for, and their connections vetted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from shardwright import engines, errors
from shardwright.catalog.roster import Shard
from shardwright.session.opening import announce_commits, translate_errors
from shardwright.session.refresh import Router
from shardwright.session.wire_psycopg import GuardedConnection

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

#: How a shard is spoken to; each has pools of its own.
Driver = Literal["psycopg"]

#: What a new connection is asked, before it may be used: which database is it, and on which timeline?
WHO = """
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
       (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN ''
            ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END
"""


class ShardEngines:
    """The engines of one process.

    Args:
        router: knows where the shards are.
        options: for every engine: what `engines.session_engine` and `sqlalchemy.create_engine` take.
    """

    def __init__(self, router: Router, options: dict[str, Any]) -> None:
        self._router = router
        self._options = options
        self._made: dict[tuple[str, Driver], tuple[Shard, Engine]] = {}
        self._making = threading.Lock()
        self._timelines: dict[str, int] = {}
        #: how the engine of a driver is made for a shard; it vets its new connections by `admit`
        self._makers: dict[Driver, Callable[[Shard], Engine]] = {"psycopg": self._psycopg}

    def engine(self, shard: str, driver: Driver = "psycopg") -> Engine:
        """The engine of a shard, leading to where the catalog says that the shard is now.

        Args:
            shard: the shard's name.
            driver: how it is spoken to.

        Raises:
            UnknownShard: there is none of that name.
        """
        found = self._made.get((shard, driver))
        if found is not None and self._router.now.shards.get(shard) is found[0]:
            return found[1]
        return self._make(self._router.now.shard(shard), driver)

    def close(self) -> None:
        """Close the connections that are not in use; those in use are closed when they are given back."""
        with self._making:
            found, self._made = self._made, {}
        for _, engine in found.values():
            engine.dispose()

    def admit(self, shard: Shard, answer: tuple[str, int, str]) -> int:
        """Let a new connection in, if it leads to the primary of the database that the catalog knows.

        Args:
            shard: where it should lead to.
            answer: what was answered to `WHO`.

        Returns:
            The server's timeline; 0 for a standby, which only a shard's own connection string can have asked for.

        Raises:
            ShardUnavailable: it is another database, or a primary of old.
        """
        system_identifier, database_oid, hexadecimal = answer
        timeline = int(hexadecimal or "0", 16)
        if (system_identifier, database_oid) != (shard.system_identifier, shard.database_oid):
            raise errors.ShardUnavailable(
                f"what answers at the address of shard {shard.name} is another database",
                fix="`shardwright shard list` shows the address; `shardwright shard add` stores a new one",
                shard=shard.name,
            )
        highest = self._timelines.setdefault(shard.name, timeline)
        if 0 < timeline < highest:
            # Two servers say that they are the primary; the one that was promoted later is.
            raise errors.ShardUnavailable(
                f"the server of shard {shard.name} is on timeline {timeline}, and {highest} was seen before",
                fix="a former primary is still running: stop it, or make it a standby",
                shard=shard.name,
            )
        self._timelines[shard.name] = max(highest, timeline)
        return timeline

    # ------------------------------------------------------------------ making them

    def _make(self, shard: Shard, driver: Driver) -> Engine:
        with self._making:
            old = self._made.get((shard.name, driver))
            if old is not None:
                if old[0] == shard:
                    # The same place, read again from the catalog.
                    self._made[shard.name, driver] = (shard, old[1])
                    return old[1]
                old[1].dispose()
            engine = self._makers[driver](shard)
            engine.__dict__["shardwright_shard"] = shard.name
            translate_errors(engine, shard.name, self._refresh)
            announce_commits(engine)
            self._made[shard.name, driver] = (shard, engine)
            return engine

    def _psycopg(self, shard: Shard) -> Engine:
        def vet(connection: GuardedConnection) -> None:
            answer = connection.execute(WHO).fetchone()
            assert answer is not None
            connection.timeline = self.admit(shard, answer)

        return engines.session_engine(shard, GuardedConnection, vet, **self._options)

    def _refresh(self) -> None:
        self._router.refresh(beyond=self._router.now.map.version)
