"""A session that is pinned to one key: every transaction runs on the shard that serves the key's range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from shardwright import errors
from shardwright.routing.shard_map import Range
from shardwright.routing.statement import Plan
from shardwright.session import opening
from shardwright.session.explaining import Explanation, explain_pinned, explain_refusal
from shardwright.session.faults import ConnectionLost, EntryRefused
from shardwright.session.instances import unknown_table

if TYPE_CHECKING:
    from shardwright.session.retries import Patience
    from shardwright.session.session import ShardSession

Call = Callable[..., Any]


class Pinned:
    """How a pinned session finds its connection, and what it refuses.

    Args:
        session: the session.
        key: the shard key.
        keyspace: its keyspace.
        strict: check the range's ownership with each BEGIN.
        options: execution options of its transactions.
    """

    def __init__(self, session: ShardSession, key: Any, keyspace: str, strict: bool, options: dict[str, Any]) -> None:
        self._session = session
        self._cluster = session.cluster
        self._key = key
        self._keyspace = keyspace
        self._strict = strict
        self._options = options
        self._ahead = self._writes = self._explaining = False
        self._map = self._cluster.map
        self._route = self._map.route(keyspace, key)
        #: the range that the transaction holds, or that the next one will ask for
        self._held: Range | None = None
        self._engine = opening.SessionEngine(self._session.engine(self._route.shard), self._connect)
        #: for a flush: begun before SQLAlchemy has asked for it; and in use before it is known whether the check holds
        self._early: opening.ShardConnection | None = None
        self._unsure: opening.ShardConnection | None = None
        self._patience: Patience | None = None

    # ------------------------------------------------------------------ connections

    def bind(self, mapper: Any) -> opening.SessionEngine:
        """The engine for whatever the session does."""
        return self._engine

    def bind_for(self, arguments: Mapping[str, Any]) -> Any:
        """The engine for what the caller asked of `Session.connection`."""
        return arguments.get("bind") or self._engine

    @contextmanager
    def beginning_with(self, options: dict[str, Any]) -> Iterator[None]:
        """Let a transaction that begins meanwhile have options of its own."""
        before = self._options
        self._options = before | options
        try:
            yield
        finally:
            self._options = before

    def _connect(self, engine: opening.SessionEngine) -> Connection:
        """Begin on the shard that serves the key, wherever that is by now."""
        restarts = self._writes and self._may_restart
        patience, connection = None, self._take_early()
        while True:
            try:
                if connection is None:
                    self._follow_map()
                    connection = self._begun(ahead=self._ahead or restarts, writes=self._writes)
                if restarts:
                    self._unsure, connection.restart = connection, self._restart
                return connection
            except (EntryRefused, ConnectionLost) as refused:
                patience = patience or self._session.patience()
                patience.after(refused, self._route.map_version)

    def _begun(self, *, ahead: bool, writes: bool) -> opening.ShardConnection:
        self._engine.follow(self._session.engine(self._route.shard))
        connection = self._engine.checkout(self._options)
        opening.begin(connection, self._ranges, ahead=ahead, writes=writes)
        return connection

    @property
    def _ranges(self) -> tuple[int, ...]:
        return (self._route.range_id,) if self._strict else ()

    def _take_early(self) -> opening.ShardConnection | None:
        """What was begun for a flush, unless it is asked for something that must know at once whether the check holds."""
        early, self._early = self._early, None
        if early is not None and not self._writes and not self._ahead:
            early.close()
            return None
        return early

    @property
    def _may_restart(self) -> bool:
        """Whether a flush's transaction could go on with another connection: one like any other."""
        return not opening.TRANSACTION_OPTIONS & self._options.keys()

    def _restart(self, refused: errors.SessionError) -> Iterable[int]:
        """A flush's first write was refused before anything had run: what to enter instead."""
        self._patience = self._patience or self._session.patience()
        self._patience.after(refused, self._route.map_version)
        self._follow_map()
        self._engine.follow(self._session.engine(self._route.shard))
        return self._ranges

    def _follow_map(self) -> None:
        if self._map is not self._cluster.map:
            self._map = self._cluster.map
            self._route = self._map.route(self._keyspace, self._key)
            self._held = None

    # ------------------------------------------------------------------ statements

    def run(
        self, call: Call, statement: Any, params: Any, execution_options: Any, bind_arguments: Any, more: dict[str, Any]
    ) -> Any:
        """Execute a statement; BEGIN, the check and the statement travel together where it is the first."""
        plan = self._check(statement, params)
        patience = None
        while True:
            version = self._cluster.map.version
            before, self._ahead = self._ahead, True
            try:
                return call(
                    statement, params, execution_options=execution_options, bind_arguments=bind_arguments, **more
                )
            except (EntryRefused, ConnectionLost) as refused:
                lost = isinstance(refused, ConnectionLost)
                if lost and (refused.had_run or plan is None or plan.writes):
                    raise
                patience = patience or self._session.patience()
                forget_connections(self._session)
                patience.after(refused, version)
            finally:
                self._ahead = before
            self._check(statement, params)

    def explain(self, statement: Any, params: Any, arguments: Mapping[str, Any], *, brief: bool = False) -> Explanation:
        """Say where a statement would go: by the transaction's range, else by the newest map."""
        given, self._explaining = as_rows(params), True
        try:
            if not self._session.in_transaction():
                self._follow_map()
            self._check(statement, params)
        except errors.ShardwrightError as error:
            return explain_refusal(self._cluster, statement, given, "pinned", error)
        finally:
            self._explaining = False
        return explain_pinned(self._cluster, statement, given, self._route)

    def _check(self, statement: Any, params: Any) -> Plan | None:
        """Refuse what does not belong to the session's range; the plan of what can be looked through."""
        given = as_rows(params)
        if not isinstance(statement, (sa.sql.expression.SelectBase, sa.sql.expression.UpdateBase)) and not hasattr(
            statement, "_resolved"
        ):
            # text(), DDL, calls of functions: the caller has said which key it is for.
            return None
        plan, binds = self._cluster.known.planner.plan(statement, given)
        for keyspace, key in plan.keys(binds, given):
            self._check_key(keyspace, key)
        if plan.unknown:
            raise unknown_table(plan.unknown[0])
        if plan.unbound is not None and plan.opaque is None:
            raise errors.NoShardKey(
                f"the statement could touch keys beyond {self._key!r}, which this session is pinned to: {plan.unbound}",
                fix="name the shard key in it, or use a session without a key",
            )
        for schema, name, declared in plan.others:
            if declared.kind == "global" and declared.home != self._route.shard:
                raise errors.KeyOutsideSession(
                    f"table {name} lives on shard {declared.home}; this session is pinned to key {self._key!r} "
                    f"on shard {self._route.shard}",
                    fix="use a session without a key",
                )
            if (
                plan.target is not None
                and plan.target[:2] == (schema, name)
                and declared.kind != "local"
                and declared.home != self._route.shard
            ):
                raise _away_from_home(name, declared.home, self._route.shard)
        return plan

    def _check_key(self, keyspace: str, key: Any) -> None:
        if key == self._key and keyspace == self._keyspace and type(key) is type(self._key):
            return
        if keyspace == self._keyspace:
            if self._strict and not self._explaining:
                # What is held counts and not the newest map: begin, so that it cannot change between here and there.
                connection = self._session.connection()
                if connection is self._unsure:
                    self._unsure.hold()
            if self._held is None:
                self._held = self._map.route_point(keyspace, self._route.point)
            if self._map.route(keyspace, key).point in self._held.points():
                return
        raise errors.KeyOutsideSession(
            f"key {key!r} of keyspace {keyspace} is in another range than key {self._key!r} of keyspace "
            f"{self._keyspace}, which this session is pinned to",
            fix="use a session of its own for each key, or one without a key",
            key=str(key),
            pinned_to=str(self._key),
            keyspace=keyspace,
        )

    # ------------------------------------------------------------------ objects

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """While objects are flushed: a refusal could not be undone there, so the first write begins anew by itself.

        Where rows come or go for sure, the server is asked already while SQLAlchemy finds out what to write.
        """
        before, self._ahead = self._ahead, False
        session = self._session
        try:
            if (session._new or session._deleted) and self._may_restart and not has_connection(session):
                self._follow_map()
                with suppress(EntryRefused, ConnectionLost):
                    self._early = self._begun(ahead=True, writes=True)
            yield
        finally:
            self._ahead, self._patience = before, None
            if self._early is not None:
                self._early.close()
                self._early = None
            if self._unsure is not None:
                self._unsure.restart = None
                self._unsure = None

    def connection_for(self, mapper: Mapper[Any] | None = None, instance: Any = None, **_: Any) -> Connection:
        """The connection on which an object is written, once its key was found to belong here."""
        if mapper is not None and instance is not None:
            self._check_instance(mapper, instance)
        self._writes = True
        try:
            found: Connection = Session._connection_for_bind(self._session, self._engine)
            return found
        finally:
            self._writes = False

    def _check_instance(self, mapper: Mapper[Any], instance: Any) -> None:
        found = self._cluster.known.mapped_key(mapper)
        if found.declaration.kind == "sharded":
            self._check_key(found.declaration.keyspace or "", found.of(instance_state(instance)))
        elif found.declaration.kind != "local" and found.declaration.home != self._route.shard:
            raise _away_from_home(found.table[1], found.declaration.home, self._route.shard)

    def check_use(self, bind: Any) -> None:
        """SQLAlchemy is about to use a bind."""

    def before_commit(self) -> None:
        """The transaction is about to be committed."""

    def end(self) -> None:
        """The session gives its connection back."""

    @contextmanager
    def bulk(self, rows: Iterable[tuple[Any, Any]]) -> Iterator[None]:
        """For SQLAlchemy's older bulk methods: check every row's key first."""
        for entity, row in rows:
            mapper = sa.inspect(entity).mapper
            if isinstance(row, Mapping):
                check_mapping(self._cluster.known.mapped_key(mapper), row, self._check_key)
            else:
                self._check_instance(mapper, row)
        before, self._ahead = self._ahead, False
        try:
            yield
        finally:
            self._ahead = before


def check_mapping(found: Any, row: Mapping[str, Any], check: Callable[[str, Any], None]) -> None:
    """Hand the shard key of a mapping of attributes to `check`.

    Args:
        found: where the mapper's objects carry it.
        row: attributes and values.
        check: gets the keyspace and the key.

    Raises:
        NoShardKey: the mapping has none.
    """
    if found.declaration.kind != "sharded":
        return
    if found.attribute not in row:
        raise errors.NoShardKey(
            f"a row gives no {found.attribute}, so no shard can be chosen", fix=f"give every row {found.attribute}"
        )
    check(found.declaration.keyspace or "", row[found.attribute])


def has_connection(session: Session) -> bool:
    """Whether a session's transaction has a connection already.

    Args:
        session: the session.
    """
    transaction = session.get_transaction()
    return transaction is not None and bool(transaction._connections)


def forget_connections(session: Session, only: Connection | None = None) -> None:
    """Give back connections of a transaction on which nothing has run yet; the transaction itself goes on.

    SQLAlchemy has no public way to do so: ending the transaction would end the caller's `with session.begin()` too.

    Args:
        session: the session.
        only: the one to give back; all of them by default.
    """
    transaction = session._transaction
    while transaction is not None:
        held = transaction._connections
        for connection, inner, *_ in set(held.values()):
            if only is not None and connection is not only:
                continue
            if inner.is_active and not connection.invalidated:
                inner.close()
            connection.close()
            for name in [name for name, (one, *_) in held.items() if one is connection]:
                del held[name]
        transaction = transaction._parent


def as_rows(params: Any) -> Sequence[Mapping[str, Any]]:
    """The sets of values that a statement is executed with.

    Args:
        params: None, a mapping, or a sequence of mappings.
    """
    if params is None:
        return ()
    return (params,) if isinstance(params, Mapping) else params


def _away_from_home(name: str, home: str | None, shard: str) -> errors.WriteRefused:
    return errors.WriteRefused(
        f"table {name} is written on shard {home}, and this session is on shard {shard}",
        fix="use a session without a key for it",
    )
