"""A session without a key: each statement and each object finds its own shard.

Reads may touch any number of shards, each in a transaction of its own that lasts as long as the session's. Writes bind
the transaction to one shard: nothing would make two shards' commits one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from shardwright import errors
from shardwright.session import opening, spreading
from shardwright.session.explaining import Explanation, explain_refusal, explain_target
from shardwright.session.faults import ConnectionLost, EntryRefused
from shardwright.session.gathering import Gatherer
from shardwright.session.instances import MappedKey
from shardwright.session.pinned import as_rows, check_mapping
from shardwright.session.results import with_hidden, without_hidden
from shardwright.session.scatter import Scatter
from shardwright.session.targets import (
    Everywhere,
    Some,
    Spread,
    Target,
    find_target,
    home_of,
    local_to_each,
    one_shard_only,
    refuse_second_writer,
    within,
)
from shardwright.session.transactions import ShardTransactions
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
        two_phase: let a transaction write on several shards.
        lock_timeout: seconds for which such a one waits for a lock.
    """

    def __init__(
        self,
        session: ShardSession,
        strict: bool,
        options: dict[str, Any],
        *,
        two_phase: bool = False,
        lock_timeout: float | None = None,
    ) -> None:
        self._session = session
        self._cluster = session.cluster
        self._strict = strict
        self._shards = ShardTransactions(session, strict, options, two_phase, lock_timeout)
        self._gatherer = Gatherer(session, self._shards, strict)
        #: where the statement that is being executed was sent, and whether it may write
        self._current: opening.SessionEngine | Scatter | None = None
        self._current_writes = False

    @property
    def two_phase(self) -> bool:
        """Whether a transaction may write on several shards."""
        return self._shards.two_phase

    # ------------------------------------------------------------------ where SQLAlchemy asks

    def bind(self, mapper: Any) -> Any:
        """The engine for what SQLAlchemy does on the way: the current statement's, or the only one that is possible."""
        if self._current is not None:
            return self._current
        if (writer := self._shards.writer()) is not None:
            return self._shards.engine(writer)
        if mapper is not None:
            found = self._cluster.known.mapped_key(sa.inspect(mapper).mapper)
            if found.declaration.home is not None:
                return self._shards.engine(found.declaration.home)
        in_use = self._shards.in_use()
        if len(in_use) == 1:
            return self._shards.engine(in_use[0])
        raise errors.NoShardKey(
            "this session has no key, so it has no single shard",
            fix='name it: session.connection(bind_arguments={"shard": "s1"}) or {"key": 42}',
        )

    def bind_for(self, arguments: dict[str, Any]) -> Any:
        """The engine for what the caller asked of `Session.connection`; its transaction has begun."""
        if (bind := arguments.get("bind")) is not None:
            return bind
        if self._explicit(arguments) is None:
            return self.bind(arguments.get("mapper"))

        def where() -> tuple[str, Iterable[int]]:
            target = self._explicit(arguments)
            assert target is not None
            return target.shard, target.ranges

        return self._connected(where).engine

    def beginning_with(self, options: dict[str, Any]) -> AbstractContextManager[None]:
        """Let transactions that begin meanwhile have options of their own."""
        return self._shards.beginning_with(options)

    def check_use(self, bind: Any) -> None:
        """SQLAlchemy is about to use a bind: by now, what was pending has been flushed, perhaps to another shard."""
        if self._current_writes and bind is self._current and isinstance(bind, opening.SessionEngine):
            refuse_second_writer(self._shards.bound_to(), opening.shard_of(bind))

    def before_commit(self) -> None:
        """The transaction is about to be committed."""
        # What is pending may open another shard: look when it has.
        self._session.flush()
        self._shards.before_commit()

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
        before = self._current, self._shards.ahead, self._current_writes
        while True:
            target = self._target(statement, params, arguments)
            hidden = target.merging.hidden if isinstance(target, (Some, Everywhere)) else ()
            try:
                self._shards.ahead = True
                if isinstance(target, Spread):
                    return self._spread(call, target, statement, params, execution_options, arguments, more)
                may_miss = self._may_miss(statement, execution_options)
                self._current = self._bind_to(target, patience, may_miss)
                self._current_writes = target.writes and not _only_reads(statement)
                asked = with_hidden(statement, hidden)
                given = {**arguments, "bind": self._current}
                result = call(asked, params, execution_options=execution_options, bind_arguments=given, **more)
                result = without_hidden(result, statement, hidden)
                return self._tell_missing(result) if may_miss else result
            except (EntryRefused, ConnectionLost) as refused:
                if refused.had_run or (isinstance(refused, ConnectionLost) and target.writes):
                    # The next attempt begins with a map that knows.
                    self._session.waiting.aside(partial(self._cluster.refresh, target.version))
                    raise
                patience = patience or self._session.patience()
                self._shards.forget(str(refused.facts["shard"]))
                patience.after(refused, target.version)
            finally:
                self._current, self._shards.ahead, self._current_writes = before

    def _spread(
        self,
        call: Callable[..., Any],
        target: Spread,
        statement: Any,
        params: Any,
        execution_options: Any,
        arguments: dict[str, Any],
        more: dict[str, Any],
    ) -> Any:
        """Write on several shards: all of them are entered before anything is sent to one."""
        self._shards.open_all(target.ranges, whole=False)
        results = {}
        for shard, part, values in spreading.parts_of(self._cluster, target, statement, params):
            self._current = self._shards.engine(shard)
            given = {**arguments, "bind": self._current}
            results[shard] = Session.execute(
                self._session, part, values, execution_options=execution_options, bind_arguments=given, **more
            )
        whole = spreading.joined(target, statement, results)
        return whole if call.__name__ == "execute" else getattr(whole, call.__name__)()

    def explain(self, statement: Any, params: Any, arguments: Mapping[str, Any], *, brief: bool = False) -> Explanation:
        """Say where a statement would go, and unless `brief` how it would be merged."""
        named = "shard" in arguments or "key" in arguments
        try:
            target = self._target(statement, params, arguments)
        except errors.ShardwrightError as error:
            route: Literal["named", "routed"] = "named" if named else "routed"
            return explain_refusal(self._cluster, statement, as_rows(params), route, error)
        return explain_target(
            self._cluster, statement, as_rows(params), target,
            strict=self._strict, named=named, in_use=self._shards.in_use(), brief=brief,
        )  # fmt: skip

    def _target(self, statement: Any, params: Any, arguments: Mapping[str, Any]) -> Target | Some | Everywhere | Spread:
        target = self._explicit(arguments) or find_target(
            self._cluster, statement, as_rows(params), self._shards.in_use(), self._shards.bound_to(),
            may_spread=self._shards.two_phase,
        )  # fmt: skip
        points = arguments.get("points")
        return (
            within(self._cluster, target, points) if points is not None and isinstance(target, Everywhere) else target
        )

    def _may_miss(self, statement: Any, execution_options: Any) -> bool:
        """Whether a part of an answer is one, as the statement, the call or the session says."""
        own = getattr(statement, "_execution_options", {})
        wish = {**own, **(execution_options or {})}.get("partial", self._session.partial)
        if wish not in (None, "allow"):
            raise errors.BadOption(f"partial={wish!r} has no meaning", fix='give "allow", or leave it out')
        return wish == "allow"

    def _tell_missing(self, result: Any) -> Any:
        missing = tuple(sorted(self._current.missing)) if isinstance(self._current, Scatter) else ()
        self._session.missing_shards |= set(missing)
        if hasattr(result, "keys") or hasattr(result, "_real_result"):
            result.missing_shards = missing
        return result

    def _bind_to(
        self, target: Target | Some | Everywhere, patience: Patience | None, may_miss: bool
    ) -> opening.SessionEngine | Scatter:
        if isinstance(target, Some):
            return self._gatherer.some(target, may_miss)
        if isinstance(target, Everywhere):
            return self._gatherer.every(target, patience or self._session.patience(), may_miss)
        return self._shards.enter(target.shard, target.ranges)

    def _explicit(self, arguments: Mapping[str, Any]) -> Target | None:
        """The shard that the caller named, by `shard` or by `key` (and `keyspace`) among the bind arguments."""
        shard_map = self._cluster.map
        if (shard := arguments.get("shard")) is not None:
            return Target(self._cluster.directory.shard(shard).name, frozenset(), True, shard_map.version)
        if "key" not in arguments:
            return None
        keyspace = arguments.get("keyspace")
        if keyspace is None and len(shard_map.keyspaces) != 1:
            raise errors.BadOption("the cluster has several keyspaces", fix="give keyspace too")
        route = shard_map.route(keyspace or shard_map.keyspaces[0].name, arguments["key"])
        return Target(route.shard, frozenset({route.range_id}), True, route.map_version)

    def end(self) -> None:
        """The session gives its connections back: nobody reads on."""
        self._shards.close_streams()

    # ------------------------------------------------------------------ objects

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """While objects are flushed: a refusal could not be undone there, so transactions begin at once."""
        before = self._current, self._shards.ahead
        self._current, self._shards.ahead = None, False
        try:
            yield
        finally:
            self._current, self._shards.ahead = before

    def connection_for(self, mapper: Mapper[Any] | None = None, instance: Any = None, **_: Any) -> Connection:
        """The connection on which an object is written: its key's shard."""
        if mapper is None or instance is None:
            return Session.connection(self._session)
        found = self._cluster.known.mapped_key(mapper)
        key = found.of(instance_state(instance)) if found.declaration.kind == "sharded" else None

        def where() -> tuple[str, Iterable[int]]:
            if found.declaration.kind != "sharded":
                return self._home(found), ()
            route = self._cluster.map.route(found.declaration.keyspace or "", key)
            return route.shard, (route.range_id,)

        return self._connected_to_write(where)

    def connection_beside(self, keyspace: str, key: Any) -> Connection:
        """The connection of a key's shard, on which something is written beside the objects that are flushed."""

        def where() -> tuple[str, Iterable[int]]:
            route = self._cluster.map.route(keyspace, key)
            return route.shard, (route.range_id,)

        return self._connected_to_write(where)

    def _connected_to_write(self, where: Callable[[], tuple[str, Iterable[int]]]) -> Connection:
        def checked() -> tuple[str, Iterable[int]]:
            shard, ranges = where()
            refuse_second_writer(self._shards.bound_to(), shard)
            return shard, ranges

        before, self._shards.writes = self._shards.writes, True
        try:
            return self._connected(checked)
        finally:
            self._shards.writes = before

    def _home(self, found: MappedKey) -> str:
        """Where objects are written that no key places: of a local table, on the one shard that is in use."""
        if found.declaration.kind != "local":
            return home_of(found.declaration.home, found.table[1])
        in_use = self._shards.in_use()
        if len(in_use) != 1:
            raise local_to_each(found.table[1])
        return in_use[0]

    def _connected(self, where: Callable[[], tuple[str, Iterable[int]]]) -> Connection:
        """The connection of the shard that `where` gives, its transaction begun; asked again where it was refused."""
        patience: Patience | None = None
        while True:
            version = self._cluster.map.version
            engine = self._shards.enter(*where())
            try:
                found: Connection = Session._connection_for_bind(self._session, engine)
                return found
            except (EntryRefused, ConnectionLost) as refused:
                patience = patience or self._session.patience()
                patience.after(refused, version)

    @contextmanager
    def bulk(self, rows: Iterable[tuple[Any, Any]]) -> Iterator[None]:
        """For SQLAlchemy's older bulk methods: all rows go to one shard."""
        ranges: dict[str, set[int]] = {}

        def note(keyspace: str, key: Any) -> None:
            route = self._cluster.map.route(keyspace, key)
            ranges.setdefault(route.shard, set()).add(route.range_id)

        for entity, row in rows:
            found = self._cluster.known.mapped_key(sa.inspect(entity).mapper)
            if found.declaration.kind != "sharded":
                ranges.setdefault(self._home(found), set())
            elif isinstance(row, Mapping):
                check_mapping(found, row, note)
            else:
                note(found.declaration.keyspace or "", found.of(sa.inspect(row)))
        if len(ranges) > 1:
            raise one_shard_only(ranges)
        with self.flushing():
            for shard, ids in ranges.items():
                refuse_second_writer(self._shards.bound_to(), shard)
                self._current = self._connected(lambda s=shard, i=ids: (s, i)).engine  # type: ignore[misc,assignment]
            yield


def _only_reads(statement: Any) -> bool:
    text = getattr(statement, "text", None)
    return isinstance(text, str) and not may_write(text)
