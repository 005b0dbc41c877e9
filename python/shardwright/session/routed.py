"""A session without a key: each statement and each object finds its own shard.

Reads may touch any number of shards, each in a transaction of its own that lasts as long as the session's. Writes bind
the transaction to one shard: nothing would make two shards' commits one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session

from shardwright import errors
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap
from shardwright.session import opening
from shardwright.session.faults import ConnectionLost, EntryRefused, translate
from shardwright.session.pinned import as_rows, check_mapping, forget_connections
from shardwright.session.scatter import Scatter, check_tiling, in_parallel
from shardwright.session.targets import (
    Everywhere,
    Some,
    Target,
    find_target,
    home_of,
    no_key,
    one_shard_only,
    refuse_second_writer,
)
from shardwright.session.wire import may_write

if TYPE_CHECKING:
    from shardwright.session.retries import Patience
    from shardwright.session.session import ShardSession


class Routed:
    """How a routed session finds connections, and what it refuses.

    Args:
        session: the session.
        strict: check each range's ownership before it is used.
        options: execution options of its transactions.
    """

    def __init__(self, session: ShardSession, strict: bool, options: dict[str, Any]) -> None:
        self._session = session
        self._cluster = session.cluster
        self._strict = strict
        self._options = options
        self._ahead = False
        self._engines: dict[str, opening.SessionEngine] = {}
        self._open: dict[str, Connection] = {}
        self._ready: dict[str, Connection] = {}
        self._wanted: dict[str, set[int]] = {}
        #: what a statement that is being executed was sent to
        self._current: opening.SessionEngine | Scatter | None = None
        self._current_writes = False

    # ------------------------------------------------------------------ where SQLAlchemy asks

    def bind(self, mapper: Any) -> Any:
        """The engine for what SQLAlchemy does on the way: the current statement's, or the only one that is possible."""
        if self._current is not None:
            return self._current
        if (writer := self._writer()) is not None:
            return self._engine(writer)
        if mapper is not None:
            found = self._cluster.mapped_key(sa.inspect(mapper).mapper)
            if found.declaration.home is not None:
                return self._engine(found.declaration.home)
        in_use = self._in_use()
        if len(in_use) == 1:
            return self._engine(in_use[0])
        raise errors.NoShardKey(
            "this session has no key, so it has no single shard",
            fix='name it: session.connection(bind_arguments={"shard": "s1"}) or {"key": 42}',
        )

    def bind_for(self, arguments: dict[str, Any]) -> Any:
        """The engine for what the caller asked of `Session.connection`."""
        if (bind := arguments.get("bind")) is not None:
            return bind
        target = self._explicit(arguments)
        if target is None:
            return self.bind(arguments.get("mapper"))
        engine = self._enter(target.shard, target.ranges)
        patience = None
        while not self._is_open(target.shard):
            try:
                Session._connection_for_bind(self._session, engine)
            except (EntryRefused, ConnectionLost) as refused:
                patience = patience or self._cluster.patience()
                patience.after(refused, target.version)
                target = self._explicit(arguments) or target
                engine = self._enter(target.shard, target.ranges)
        return engine

    @contextmanager
    def beginning_with(self, options: dict[str, Any]) -> Iterator[None]:
        """Let transactions that begin meanwhile have options of their own."""
        before, self._options = self._options, self._options | options
        try:
            yield
        finally:
            self._options = before

    def _connect(self, engine: opening.SessionEngine) -> Connection:
        """Begin on a shard, with the ranges that are wanted there; what was opened in advance is handed over."""
        shard = opening.shard_of(engine)
        connection = self._ready.pop(shard, None)
        if connection is None:
            connection = engine.checkout(self._options)
            opening.begin(connection, self._wanted.pop(shard, ()), ahead=self._ahead)
        self._open[shard] = connection
        return connection

    # ------------------------------------------------------------------ statements

    def run(
        self,
        call: Callable[..., Any],
        statement: Any,
        params: Any,
        execution_options: Any,
        bind_arguments: Any,
        more: dict[str, Any],
    ) -> Any:
        """Execute a statement on the shard or shards that its keys name."""
        arguments = dict(bind_arguments or {})
        if arguments.get("bind") is not None:
            return call(statement, params, execution_options=execution_options, bind_arguments=arguments, **more)
        patience: Patience | None = None
        before = self._current, self._ahead, self._current_writes
        while True:
            target: Target | Some | Everywhere = self._explicit(arguments) or find_target(
                self._cluster, statement, as_rows(params), self._in_use(), self._writer()
            )
            try:
                self._ahead = True
                self._current = self._bind_to(target, patience)
                self._current_writes = target.writes and not _only_reads(statement)
                given = {**arguments, "bind": self._current}
                asked = statement if isinstance(target, Target) else _with_hidden(statement, target.merging.hidden)
                result = call(asked, params, execution_options=execution_options, bind_arguments=given, **more)
                return _stripped(result, target, statement)
            except (EntryRefused, ConnectionLost) as refused:
                if refused.had_run or (isinstance(refused, ConnectionLost) and target.writes):
                    raise
                patience = patience or self._cluster.patience()
                self._forget(str(refused.facts["shard"]))
                patience.after(refused, target.version)
            finally:
                self._current, self._ahead, self._current_writes = before

    def check_use(self, bind: Any) -> None:
        """SQLAlchemy is about to use a bind: by now, what was pending has been flushed, perhaps to another shard."""
        if self._current_writes and bind is self._current and isinstance(bind, opening.SessionEngine):
            refuse_second_writer(self._writer(), opening.shard_of(bind))

    def before_commit(self) -> None:
        """Only one shard may have been written on, by whatever means; the others' COMMITs decide nothing."""
        drivers = {shard: opening.driver_of(self._open[shard]) for shard in self._in_use()}
        if len(drivers) < 2:
            return
        for driver in drivers.values():
            # Under the other levels the check itself takes a number.
            if not driver.wrote and not driver.takes_snapshot and driver.ask_xact_id() is not None:
                driver.wrote = True
        writers = [shard for shard, driver in drivers.items() if driver.wrote]
        if len(writers) > 1:
            raise one_shard_only(writers)
        for driver in drivers.values():
            driver.only_read = not driver.wrote

    def _bind_to(self, target: Target | Some | Everywhere, patience: Patience | None) -> opening.SessionEngine | Scatter:
        if isinstance(target, Some):
            return self._scatter(target)
        if isinstance(target, Everywhere):
            return self._scatter_whole(target, patience or self._cluster.patience())
        return self._enter(target.shard, target.ranges)

    def _explicit(self, arguments: dict[str, Any]) -> Target | None:
        """The shard that the caller named, by `shard` or by `key` (and `keyspace`) among the bind arguments."""
        shard_map = self._cluster.map
        if (shard := arguments.get("shard")) is not None:
            return Target(self._cluster.directory.shard(shard).name, frozenset(), True, shard_map.version)
        if (key := arguments.get("key")) is None:
            return None
        keyspace = arguments.get("keyspace")
        if keyspace is None and len(shard_map.keyspaces) != 1:
            raise errors.BadOption("the cluster has several keyspaces", fix="give keyspace too")
        route = shard_map.route(keyspace or shard_map.keyspaces[0].name, key)
        return Target(route.shard, frozenset({route.range_id}), True, route.map_version)

    # ------------------------------------------------------------------ several shards

    def _scatter(self, target: Some) -> Scatter:
        """Shards that serve some keys each: they are read through the ranges that were entered."""
        self._open_all({shard: set(ranges) for shard, ranges in target.ranges.items()}, whole=False)
        shard_map = self._cluster.map
        points = {
            shard: _points(shard_map, target.plan.root_keyspace, ranges) for shard, ranges in target.ranges.items()
        }
        connections = {shard: self._open[shard] for shard in target.ranges}
        return Scatter(self._cluster, target.plan, target.merging, connections, points)

    def _scatter_whole(self, target: Everywhere, patience: Patience) -> Scatter:
        """Every shard that serves a part of the keyspace."""
        keyspace = target.plan.root_keyspace
        while True:
            shard_map = self._cluster.map
            shards = sorted({one.shard for one in shard_map.ranges_of(keyspace)})
            if not self._strict:
                self._open_all(dict.fromkeys(shards, set()), whole=False)
                narrow = {shard: shard_map.owned(keyspace, shard) for shard in shards}
                break
            opened = self._open_all(dict.fromkeys(shards, set()), whole=True)
            served = {
                shard: (opening.driver_of(self._open[shard]).served or {}).get(keyspace, (_NOTHING, True))
                for shard in shards
            }
            if check_tiling(self._cluster, keyspace, {shard: points for shard, (points, _) in served.items()}):
                narrow = {shard: points for shard, (points, strangers) in served.items() if strangers}
                break
            for shard in opened:
                self._forget(shard)
            for shard in set(shards) - set(opened):
                opening.driver_of(self._open[shard]).served = None
            patience.after(_handed_over(keyspace), shard_map.version)
        return Scatter(
            self._cluster, target.plan, target.merging, {shard: self._open[shard] for shard in shards}, narrow
        )

    def _open_all(self, wanted: Mapping[str, set[int]], *, whole: bool) -> list[str]:
        """Have a transaction on each shard, with its ranges or the whole shard entered; returns the new ones."""
        new = [shard for shard in sorted(wanted) if not self._is_open(shard)]
        made: dict[str, Connection] = {}
        try:
            # One after the other and in one order: two sessions cannot wait for each other's pools in a circle.
            for shard in new:
                made[shard] = self._engine(shard).checkout(self._options)
            in_parallel(self._cluster, [self._opener(shard, made.get(shard), wanted[shard], whole) for shard in sorted(wanted)])
        except BaseException:
            for connection in made.values():
                connection.close()
            raise
        for shard, connection in made.items():
            self._ready[shard] = connection
            Session._connection_for_bind(self._session, self._engine(shard))
        return new

    def _opener(self, shard: str, new: Connection | None, ranges: set[int], whole: bool) -> Callable[[], None]:
        ranges = ranges if self._strict else set()

        def enter() -> None:
            if new is not None:
                opening.begin(new, ranges, ahead=False, whole=whole)
                return
            driver = opening.driver_of(self._open[shard])
            try:
                if whole and driver.served is None:
                    driver.enter_all()
                elif not driver.has_begun:
                    driver.want(ranges)
                    driver.begin()
                else:
                    driver.want(ranges)
            except psycopg.Error as error:
                raise translate(shard, error, driver) or error from error

        return enter

    # ------------------------------------------------------------------ one shard

    def _engine(self, shard: str) -> opening.SessionEngine:
        parent = self._cluster.engine(shard)
        found = self._engines.get(shard)
        if found is None or (found.parent is not parent and not self._is_open(shard)):
            found = self._engines[shard] = opening.SessionEngine(parent, self._connect)
        return found

    def _enter(self, shard: str, ranges: Iterable[int]) -> opening.SessionEngine:
        """Let the next statement on a shard enter ranges, together with BEGIN where it is the first."""
        wanted = set(ranges) if self._strict else set()
        if self._is_open(shard):
            opening.driver_of(self._open[shard]).want(wanted)
        else:
            self._wanted[shard] = wanted
        return self._engine(shard)

    def _is_open(self, shard: str) -> bool:
        connection = self._open.get(shard)
        if connection is None:
            return False
        if connection.closed or connection.invalidated or not connection.in_transaction():
            del self._open[shard]
            return False
        return True

    def _in_use(self) -> list[str]:
        """Shards with an open transaction, the one that was written on first."""
        found = [shard for shard in list(self._open) if self._is_open(shard)]
        writer = next((shard for shard in found if opening.driver_of(self._open[shard]).wrote), None)
        return sorted(found, key=lambda shard: shard != writer)

    def _writer(self) -> str | None:
        """The shard that the transaction has written on."""
        return next((s for s in list(self._open) if self._is_open(s) and opening.driver_of(self._open[s]).wrote), None)

    def _forget(self, shard: str) -> None:
        connection = self._open.pop(shard, None)
        if connection is not None:
            forget_connections(self._session, connection)

    # ------------------------------------------------------------------ objects

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """While objects are flushed: a refusal could not be undone there, so transactions begin at once."""
        before = self._current, self._ahead
        self._current, self._ahead = None, False
        try:
            yield
        finally:
            self._current, self._ahead = before

    def connection_for(self, mapper: Mapper[Any] | None = None, instance: Any = None, **_: Any) -> Connection:
        """The connection on which an object is written: its key's shard."""
        if mapper is None or instance is None:
            return Session.connection(self._session)
        found = self._cluster.mapped_key(mapper)
        patience: Patience | None = None
        while True:
            version = self._cluster.map.version
            if found.declaration.kind == "sharded":
                route = self._cluster.map.route(found.declaration.keyspace or "", found.of(sa.inspect(instance)))
                shard, ranges = route.shard, {route.range_id}
            else:
                shard, ranges = home_of(found.declaration.home, found.table[1]), set()
            refuse_second_writer(self._writer(), shard)
            engine = self._enter(shard, ranges)
            try:
                return Session._connection_for_bind(self._session, engine)
            except (EntryRefused, ConnectionLost) as refused:
                patience = patience or self._cluster.patience()
                patience.after(refused, version)

    @contextmanager
    def bulk(self, rows: Iterable[tuple[Any, Any]]) -> Iterator[None]:
        """For SQLAlchemy's older bulk methods: all rows go to one shard."""
        ranges: dict[str, set[int]] = {}

        def note(keyspace: str, key: Any) -> None:
            route = self._cluster.map.route(keyspace, key)
            ranges.setdefault(route.shard, set()).add(route.range_id)

        for entity, row in rows:
            found = self._cluster.mapped_key(sa.inspect(entity).mapper)
            if found.declaration.kind != "sharded":
                ranges.setdefault(home_of(found.declaration.home, found.table[1]), set())
            elif isinstance(row, Mapping):
                check_mapping(found, row, note)
            else:
                note(found.declaration.keyspace or "", found.of(sa.inspect(row)))
        if len(ranges) > 1:
            raise one_shard_only(ranges)
        with self.flushing():
            for shard, ids in ranges.items():
                refuse_second_writer(self._writer(), shard)
                self._current = self._enter(shard, ids)
            yield


_NOTHING = Multirange(())


def _points(shard_map: ShardMap, keyspace: str, ids: Iterable[int]) -> Multirange:
    wanted = set(ids)
    return Multirange(tuple((one.lo, one.hi) for one in shard_map.ranges_of(keyspace) if one.id in wanted))


def _handed_over(keyspace: str) -> errors.ShardMoved:
    return errors.ShardMoved(f"a range of keyspace {keyspace} is being handed over", fix="run the transaction again")


def _only_reads(statement: Any) -> bool:
    text = getattr(statement, "text", None)
    return isinstance(text, str) and not may_write(text)


def _with_hidden(statement: Any, hidden: Sequence[Any]) -> Any:
    """A statement that also asks for the columns by which answers are merged."""
    return getattr(statement, "_resolved", statement).add_columns(*hidden) if hidden else statement


def _stripped(result: Any, target: Target | Some | Everywhere, statement: Any) -> Any:
    """A result without the columns that were added for the merge."""
    hidden: tuple[Any, ...] = () if isinstance(target, Target) else target.merging.hidden
    if not hidden or not hasattr(result, "keys"):
        return result
    visible = len(result.keys()) - len(hidden)
    result = result.columns(*range(visible))
    if visible == 1 and getattr(statement, "is_select", False) and _is_entity(statement):
        # What `Query` looks at to give objects instead of rows.
        result._attributes = result._attributes.union({"is_single_entity": True})
    return result


def _is_entity(statement: Any) -> bool:
    described: Any = getattr(statement, "column_descriptions", ())
    return len(described) == 1 and described[0].get("entity") is described[0].get("expr") is not None
