"""Where the statements of an application would go that does not use shardwright yet: recorded from its plain engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import visitors

from shardwright.routing.proposing import propose
from shardwright.session.cluster import Cluster
from shardwright.session.imagining import imagine
from shardwright.session.targets import looks_through
from shardwright.testing.watching import Record


class Supposing:
    """Listens to every engine that is no cluster's, and records what would become of its statements.

    Each statement is judged by itself, as in a session without a key; that a transaction writes on two shards is not seen.

    Args:
        record: takes them.
        key: the column by which tables that declare nothing are taken to be sharded.
    """

    def __init__(self, record: Record, key: str) -> None:
        self._record = record
        self._key = key
        self._clusters: dict[int, tuple[sa.MetaData, int, Cluster]] = {}

    def listen(self) -> Callable[[], None]:
        """Begin; returns what ends it."""
        sa.event.listen(sa.Engine, "before_execute", self._before_execute)
        return lambda: sa.event.remove(sa.Engine, "before_execute", self._before_execute)

    def _before_execute(self, connection: Connection, statement: Any, many: Any, params: Any, options: Any) -> None:
        if "shardwright_shard" in connection.engine.__dict__ or isinstance(statement, sa.schema.ExecutableDDLElement):
            return
        if not looks_through(statement) and not isinstance(statement, sa.TextClause):
            return
        cluster = self._cluster(statement)
        with cluster.sessionmaker()() as session:
            self._record.count(statement, session.explain_route(statement, list(many) or params or None))

    def _cluster(self, statement: Any) -> Cluster:
        """The cluster that the statement's tables would be on."""
        tables = (one for one in visitors.iterate(statement) if isinstance(one, sa.Table))
        metadata = next((table.metadata for table in tables), None) or sa.MetaData()
        known = self._clusters.get(id(metadata))
        if known is None or known[1] != len(metadata.tables):
            # Tables may come while tests are collected.
            cluster = imagine(propose(metadata, self._key, "users"))
            known = self._clusters[id(metadata)] = (metadata, len(metadata.tables), cluster)
        return known[2]
