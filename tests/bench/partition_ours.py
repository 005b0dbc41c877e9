"""Our own manager behind the face of `partition_peers`, and clusters for the figures that only we have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shardwright import engines
from shardwright.catalog import adoption
from shardwright.catalog.adoption import Wanted
from shardwright.partition.outcomes import Report
from shardwright.partition.tick import tick
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready


class Unfinished(Exception):
    """A run that did not do all that it planned, and why."""


def checked(report: Report) -> Report:
    """The report of a run that did everything.

    Raises:
        Unfinished: something was deferred or failed.
    """
    left = [one for one in report.outcomes if one.outcome != "done"]
    if left:
        raise Unfinished(f"{left[0].outcome}: {left[0].reason.get('message')}")
    return report


class Ours:
    """shardwright: a library with a catalog beside the database. Guards at both ends unless told otherwise."""

    def __init__(self, catalog_dsn: str, dsn: str, *, guards: bool = True, name: str = "shardwright") -> None:
        self.name, self.catalog_dsn, self.guards = name, catalog_dsn, guards
        make_ready(catalog_dsn, {"s1": dsn}, keyspace="")
        self.wanted: dict[str, dict[str, int | None]] = {}

    def _register(self, table: str) -> None:
        wanted = self.wanted[table]
        keep = f"{wanted['keep']} months" if wanted["keep"] is not None else None
        policy = Policy("created_at", "1 month", keep, ahead=wanted["ahead"] or 1, grace=None, guards=self.guards)
        with engines.connect_catalog(self.catalog_dsn, "bench") as catalog:
            adoption.adopt(catalog, [Wanted("public", table, Declaration("local", policy=policy))])

    def create(self, table: str, *, ahead: int, behind: int) -> None:
        self.wanted[table] = {"ahead": ahead + behind, "keep": None}
        self._register(table)
        then = _months_ago(datetime.now(UTC), behind) if behind else None
        checked(tick(self.catalog_dsn, [("public", table)], now=then))
        if behind:
            self.wish(table, ahead=ahead)

    def wish(self, table: str, *, ahead: int | None = None, keep: int | None = None) -> None:
        for what, value in (("ahead", ahead), ("keep", keep)):
            if value is not None:
                self.wanted[table][what] = value
        self._register(table)

    def run(self, table: str) -> None:
        checked(tick(self.catalog_dsn, [("public", table)]))


def _months_ago(now: datetime, months: int) -> datetime:
    index = now.year * 12 + now.month - 1 - months
    return now.replace(year=index // 12, month=index % 12 + 1, day=1)


@dataclass
class Fleet:
    """A catalog and shards in one server, with one table."""

    catalog_dsn: str
    dsns: dict[str, str]
    server: Server
    names: list[tuple[str, str]] = field(default_factory=list)

    def register(self, table: str, policy: Policy) -> None:
        """Register a table that is there on all shards, or give it another policy."""
        with engines.connect_catalog(self.catalog_dsn, "bench") as catalog:
            adoption.adopt(catalog, [Wanted("public", table, Declaration("local", policy=policy))])


@contextmanager
def fleet(directory: Path, shards: int, bin_dir: Path | None = None, **settings: Any) -> Iterator[Fleet]:
    """Start a server with a cluster in it, with PostgreSQL's own defaults for locks and connections."""
    defaults = {"max_connections": "100", "max_prepared_transactions": "0", "max_locks_per_transaction": "64"}
    server = Server(directory / "fleet", bin_dir=bin_dir, fsync=False, settings={**defaults, **settings})
    with ExitStack() as stack:
        stack.callback(server.stop, "immediate")
        server.start()
        dsns = {f"s{n}": server.create_database(f"s{n}") for n in range(1, shards + 1)}
        made = Fleet(server.create_database("catalog"), dsns, server)
        make_ready(made.catalog_dsn, dsns, keyspace="")
        yield made
