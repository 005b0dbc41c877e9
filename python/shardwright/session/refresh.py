"""The router's copy of the catalog: shard map, shards and tables, kept fresh without ever being in a transaction's way.

What is current is one immutable value behind one attribute, swapped whole: readers take no lock. It is brought up to
date by NOTIFY, by a jittered poll, and by whoever was refused by a shard. A catalog that cannot be reached changes
nothing: the old copy stays in use, and the shards' own checks keep it harmless.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from shardwright import engines, errors
from shardwright.catalog import maps, migrations, roster
from shardwright.routing.shard_map import ShardMap
from shardwright.routing.tables import Declaration
from shardwright.session.waiting import Bell

Mode = Literal["listen", "poll", "never"]

_log = logging.getLogger(__name__)

_TABLES = (
    "SELECT t.schema_name, t.table_name, t.kind, t.key_column, k.name, t.home_shard "
    "FROM shardwright.tables t LEFT JOIN shardwright.keyspaces k ON k.id = t.keyspace"
)
_BEAT = (
    "INSERT INTO shardwright.routers (id, application, host, pid, map_version, connections) "
    "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET map_version = excluded.map_version, "
    "connections = excluded.connections, seen_at = clock_timestamp()"
)


@dataclass(frozen=True, slots=True)
class Directory:
    """What a router knows: who owns what, where the shards are, what the tables are. Immutable."""

    map: ShardMap
    shards: Mapping[str, roster.Shard]
    #: what the catalog says of each registered table, by schema and name
    tables: Mapping[tuple[str, str], Declaration]

    def shard(self, name: str) -> roster.Shard:
        """One shard, or UnknownShard."""
        try:
            return self.shards[name]
        except KeyError:
            known = ", ".join(sorted(self.shards)) or "none"
            raise errors.UnknownShard(f"there is no shard {name}", fix=f"shards are: {known}", shard=name) from None


def read_directory(catalog: psycopg.Connection[Any]) -> Directory:
    """Read everything that a router needs from the catalog.

    Args:
        catalog: connection to the catalog.
    """
    with catalog.transaction():
        catalog.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tables = {
            (schema, table): Declaration(kind, key_column, keyspace, home)
            for schema, table, kind, key_column, keyspace, home in catalog.execute(_TABLES).fetchall()
        }
        shards = {shard.name: shard for shard in roster.list_shards(catalog)}
        return Directory(maps.load_map(catalog), shards, tables)


class Router:
    """One process's copy of the catalog, and the thread that keeps it fresh.

    Args:
        catalog_dsn: how to reach the catalog.
        application: who we are, for people who look at routers and connections.
        mode: listen (NOTIFY and poll), poll, or never (only when a shard refuses us).
        poll_seconds: between polls and heartbeats, jittered.
        connections: how many this process may open to each shard, by driver; None: without a limit.

    Raises:
        CannotConnect, PasswordMissing, NotPrimary, BadOption: the catalog cannot be reached.
        CatalogNewer, CatalogOlder: its schema is not this program's.
    """

    def __init__(
        self,
        catalog_dsn: str,
        application: str,
        mode: Mode,
        poll_seconds: float,
        connections: Mapping[str, int | None] | None = None,
    ) -> None:
        if mode not in ("listen", "poll", "never"):
            raise errors.BadOption(f"refresh={mode!r} has no meaning", fix='give "listen", "poll" or "never"')
        if not poll_seconds > 0:
            raise errors.BadOption(f"poll_seconds={poll_seconds!r} has no meaning", fix="give seconds above 0")
        self.id = uuid.uuid4()
        #: how many connections this process may open to each shard, by driver; replaced as a whole
        self.connections: Mapping[str, int | None] = dict(connections or {})
        #: how to reach the catalog
        self.catalog_dsn = catalog_dsn
        self._application = application
        self._mode = mode
        self._poll_seconds = poll_seconds
        self._asking = threading.Lock()
        self._catalog: psycopg.Connection[Any] | None = None
        self._changing = threading.Lock()
        self._bells: set[Bell] = set()
        self._stopping = threading.Event()
        self._read_at = 0.0
        self._down_until = 0.0
        self._beats = True
        self._tells = True
        #: timelines that the catalog is still to be told
        self._timelines: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._is_to_start = False
        try:
            with self._asking:
                catalog = self._connect()
                migrations.check(catalog, "catalog")
                #: what is known now; replaced as a whole
                self.now = read_directory(catalog)
                if mode != "never":
                    self._beat(catalog)
        except BaseException:
            self._disconnect()
            raise
        if mode != "never":
            # Idle from here on: the thread has a connection of its own.
            self._disconnect()
            self._start()

    def _start(self) -> None:
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._keep_fresh, name="shardwright-map", daemon=True)
        self._thread.start()

    def begin_anew(self) -> None:
        """In the child of a fork: be a router of one's own, with the parent's map. Its thread starts when it is needed."""
        self.id = uuid.uuid4()
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        self._catalog = None
        self._read_at = self._down_until = 0.0
        if self._thread is not None:
            for end in (self._wake, self._woken):
                end.close()
        self._thread = None
        self._is_to_start = self._mode != "never" and not self._stopping.is_set()
        self._stopping = threading.Event() if self._is_to_start else self._stopping

    def wake_up(self) -> None:
        """Start the thread, if a fork has left this process without it."""
        if self._is_to_start:
            with self._asking:
                if self._is_to_start:
                    self._is_to_start = False
                    self._start()

    def refresh(self, beyond: int | None = None) -> Directory:
        """Ask the catalog now, unless another thread has done so meanwhile.

        Args:
            beyond: the version that was found wanting; nothing is asked where a higher one is here already.

        Returns:
            What is known then; the old copy where the catalog cannot be reached.
        """
        with self._asking:
            if beyond is not None and (self.now.map.version > beyond or time.monotonic() < self._down_until):
                return self.now
            try:
                catalog = self._connect()
                # Many sessions wait for one handover: they look at the number only.
                if beyond is None or maps.map_version(catalog) > self.now.map.version:
                    self._adopt(read_directory(catalog))
            except (psycopg.Error, errors.ShardwrightError) as error:
                self._disconnect()
                # Connecting may have taken long: let the others wait for their own deadlines, not for the catalog.
                self._down_until = time.monotonic() + 1
                _log.warning("cannot refresh the shard map, keeping version %d: %s", self.now.map.version, error)
        return self.now

    def wait(self, bell: Bell, beyond: int, seconds: float) -> None:
        """Wait for a higher version of the map to arrive by itself.

        Args:
            bell: of whoever waits.
            beyond: the version that is not enough.
            seconds: at most.
        """
        with self._changing:
            self._bells.add(bell)
        try:
            if self.now.map.version <= beyond:
                bell.wait(seconds)
        finally:
            with self._changing:
                self._bells.discard(bell)

    def note_timeline(self, shard: str, timeline: int) -> None:
        """Have the catalog remember on which timeline a shard's primary was seen; soon, and by the thread, if there is one.

        Args:
            shard: its name.
            timeline: higher than what the catalog is known to know.
        """
        self._timelines[shard] = timeline
        if self._thread is not None and not self._stopping.is_set():
            self._wake.send(b"t")

    def close(self) -> None:
        """Stop the thread, close the connections, and take this router off the catalog's list."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._thread is not None:
            self._wake.send(b"x")
            self._thread.join(10)
            self._wake.close()
            self._woken.close()
        with self._asking:
            self._disconnect()

    # ------------------------------------------------------------------ the thread

    def _keep_fresh(self) -> None:
        complained = False
        while not self._stopping.is_set():
            try:
                with self._open() as catalog:
                    self._follow(catalog)
                    complained = False
                    if self._stopping.is_set():
                        catalog.execute("DELETE FROM shardwright.routers WHERE id = %s", (self.id,))
            except (psycopg.Error, errors.ShardwrightError) as error:
                if not complained and not self._stopping.is_set():
                    _log.warning("the catalog does not answer, keeping map %d: %s", self.now.map.version, error)
                complained = True
                self._stopping.wait(min(self._poll_seconds, 1) * random.uniform(0.5, 1.5))

    def _follow(self, catalog: psycopg.Connection[Any]) -> None:
        """Refresh and report until told to stop, over one connection."""
        if self._mode == "listen":
            catalog.execute("LISTEN shardwright_map")
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if self._mode == "listen":
                selector.register(catalog.fileno(), selectors.EVENT_READ)
            while not self._stopping.is_set():
                # What was notified is not read: a notification only says that it is time to look.
                # Shards and tables change without a new map: they are read again once a poll.
                is_due = time.monotonic() - self._read_at >= self._poll_seconds
                if is_due or maps.map_version(catalog) > self.now.map.version:
                    self._adopt(read_directory(catalog))
                self._beat(catalog)
                self._tell_timelines(catalog)
                for key, _ in selector.select(self._poll_seconds * random.uniform(0.8, 1.2)):
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                for _ in catalog.notifies(timeout=0):
                    pass

    def _beat(self, catalog: psycopg.Connection[Any]) -> None:
        if not self._beats:
            return
        try:
            who = (self.id, self._application, socket.gethostname(), os.getpid())
            catalog.execute(_BEAT, (*who, self.now.map.version, Jsonb(dict(self.connections))))
        except psycopg.errors.InsufficientPrivilege as error:
            # Less is known of who is there, and nothing is less safe.
            self._beats = False
            _log.warning("this router is not listed in the catalog: %s", error.diag.message_primary)

    def _tell_timelines(self, catalog: psycopg.Connection[Any]) -> None:
        """What is known here only."""
        for shard, timeline in list(self._timelines.items()):
            known = self.now.shards.get(shard)
            try:
                if known is not None and known.timeline < timeline and self._tells:
                    roster.note_timeline(catalog, shard, timeline)
            except psycopg.errors.InsufficientPrivilege as error:
                self._tells = False
                _log.warning("the catalog does not learn the shards' timelines: %s", error.diag.message_primary)
            except psycopg.errors.ForeignKeyViolation:
                pass  # the shard has left the cluster
            if self._timelines[shard] == timeline:
                del self._timelines[shard]

    # ------------------------------------------------------------------ both

    def _adopt(self, found: Directory) -> None:
        self._read_at = time.monotonic()
        with self._changing:
            # A standby or a restored backup may be behind: versions only grow here.
            if found.map.version >= self.now.map.version:
                self.now = found
                for bell in self._bells:
                    bell.ring()

    def _open(self) -> psycopg.Connection[Any]:
        return engines.connect_catalog(self.catalog_dsn, f"shardwright router {self._application}")

    def _connect(self) -> psycopg.Connection[Any]:
        if self._catalog is None or self._catalog.closed:
            self._catalog = self._open()
        return self._catalog

    def _disconnect(self) -> None:
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None
