"""`ShardSession`: SQLAlchemy's Session whose connections come from the shard that the key, the object or the statement names.

The class is a thin shell. What decides is its *way*: `Pinned` where a key was given, `Routed` otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.sql import selectable
from sqlalchemy.util import EMPTY_DICT

from shardwright import errors
from shardwright.session import events, unique
from shardwright.session.commenting import ROUTE
from shardwright.session.explaining import Explanation
from shardwright.session.getting import get_many
from shardwright.session.opening import TRANSACTION_OPTIONS
from shardwright.session.pinned import Pinned
from shardwright.session.routed import Routed
from shardwright.session.scatter import Scatter

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.pools import Driver
    from shardwright.session.retries import Patience
    from shardwright.session.waiting import Waiting

_NO_KEY: Any = object()
_O = TypeVar("_O")


class ShardSession(Session):
    """A session on the shards of a cluster; made by the factory that `Cluster.sessionmaker` gives.

    Args:
        bind: not used here; a session's shards are its cluster's.
        cluster: the cluster.
        key: the shard key that the session is pinned to; without one, each statement finds its own shard.
        keyspace: the key's keyspace; needed where the cluster has several.
        model: a mapped class or table that tells the keyspace instead.
        reads: "strict" or "relaxed", for this session; see `Cluster.connect`.
        partial: "allow" lets reads of several shards leave out those that cannot be reached; `missing_shards` says which.
        isolation_level: of its transactions; READ COMMITTED unless set.
        read_only: whether its transactions are READ ONLY.
        cross_shard: "two_phase" lets a session without a key write on several shards in one transaction, which is then
            decided in the catalog; refused unless set.
        lock_timeout: seconds for which a transaction that may write on several shards waits for a lock, a little more or
            less: PostgreSQL sees no deadlock over shards. None waits for as long as it takes. A `lock_timeout` that the
            role, the database or the server has comes first.
        driver: how shards are spoken to; another one than psycopg is an `AsyncShardSession`'s.
        options: arguments of `sqlalchemy.orm.Session`.

    Raises:
        BadKey: the key is no key of its keyspace.
        BadOption: an argument has no meaning here.
        UnknownKeyspace: there is no such keyspace.
    """

    def __init__(
        self,
        bind: Any = None,
        *,
        cluster: Cluster,
        key: Any = _NO_KEY,
        keyspace: str | None = None,
        model: Any = None,
        reads: str | None = None,
        isolation_level: str | None = None,
        read_only: bool | None = None,
        cross_shard: str | None = None,
        lock_timeout: float | None = 3.0,
        partial: str | None = None,
        driver: Driver = "psycopg",
        **options: Any,
    ) -> None:
        if bind is not None or options.get("binds"):
            raise errors.BadOption(
                "a session of a cluster takes no bind", fix="leave it out: its shards are the cluster's"
            )
        if options.get("twophase"):
            raise errors.BadOption("twophase=True is not supported", fix='cross_shard="two_phase"')
        if reads not in (None, "strict", "relaxed"):
            raise errors.BadOption(f"reads={reads!r} has no meaning", fix='give "strict" or "relaxed"')
        if cross_shard not in (None, "two_phase"):
            raise errors.BadOption(
                f"cross_shard={cross_shard!r} has no meaning", fix='give "two_phase", or leave it out'
            )
        if lock_timeout is not None and not lock_timeout >= 0.001:
            raise errors.BadOption(f"lock_timeout={lock_timeout!r} has no meaning", fix="give seconds, or None")
        # BEGIN travels with the check: SQLAlchemy is handed connections that have begun, and ends what it did not begin.
        options["join_transaction_mode"] = "control_fully"
        begins_with = _take_transaction_options(options)
        if isolation_level is not None:
            begins_with["isolation_level"] = isolation_level
        if read_only is not None:
            begins_with["postgresql_readonly"] = read_only
        if cluster.comments:
            begins_with[ROUTE] = "routed" if key is _NO_KEY else "pinned"
        super().__init__(None, **options)
        self.cluster = cluster
        self._driver = driver
        #: "allow": reads of several shards leave out those that cannot be reached
        self.partial = partial
        #: shards that were left out of an answer since the session was made or closed
        self.missing_shards: set[str] = set()
        #: how it waits for others
        self.waiting: Waiting = cluster.waiting if driver == "psycopg" else cluster.waiting_in_loop
        strict = (reads or cluster.reads) == "strict"
        self._way: Pinned | Routed
        if key is _NO_KEY:
            if keyspace is not None or model is not None:
                raise errors.BadOption("a keyspace was given without a key", fix="give key= too, or neither")
            self._way = Routed(self, strict, begins_with, two_phase=cross_shard is not None, lock_timeout=lock_timeout)
        else:
            if cross_shard is not None:
                raise errors.BadOption("a session with a key stays on one shard", fix="leave key= or cross_shard= out")
            self._way = Pinned(self, key, _keyspace(cluster, keyspace, model), strict, begins_with)

    def engine(self, shard: str) -> Engine:
        """The engine of a shard, as this session speaks to it.

        Args:
            shard: the shard's name.
        """
        return self.cluster.engine(shard, self._driver)

    def patience(self) -> Patience:
        """How this session waits out a handover."""
        return self.cluster.patience(self.waiting)

    @property
    def route(self) -> Literal["pinned", "routed"]:
        """How it finds shards: "pinned" to a key, or "routed" statement by statement."""
        return "pinned" if isinstance(self._way, Pinned) else "routed"

    def find_key(self, criterion: Any) -> Any:
        """The shard key of the row that has a value which is unique across shards; None where no row has it.

        Args:
            criterion: ``User.email == "a@example.org"``.

        Raises:
            BadOption: it is not the comparison of such a column with a value.
        """
        return unique.find(self, criterion)

    def explain_route(self, statement: Any, params: Any = None, *, bind_arguments: Any = None) -> Explanation:
        """Say where a statement would go and how its answers would be merged, without executing it or any other.

        Args:
            statement: what `execute` takes.
            params: as for `execute`.
            bind_arguments: as for `execute`.

        Returns:
            The explanation; a refusal is one too, and is not raised.
        """
        return self._way.explain(statement, params, dict(bind_arguments or {}))

    # ------------------------------------------------------------------ where SQLAlchemy asks

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Engine | Connection | None = None, **options: Any
    ) -> Engine | Connection:
        """The engine for a mapper or statement, as `Session.get_bind`; it belongs to this session."""
        if bind is not None:
            return bind
        return self._way.bind(mapper)

    def connection(
        self, bind_arguments: Mapping[str, Any] | None = None, execution_options: Mapping[str, Any] | None = None
    ) -> Connection:
        """The connection of the current transaction, which begins now if it has not.

        Args:
            bind_arguments: as for `Session.connection`; a routed session takes `shard` or `key` here.
            execution_options: as for `Session.connection`.
        """
        options = dict(execution_options or {})
        early = {name: options.pop(name) for name in TRANSACTION_OPTIONS & set(options)}
        with self._way.beginning_with(early):
            bind = self._way.bind_for(dict(bind_arguments or {}))
            return super().connection({"bind": bind}, options or None)

    def _connection_for_bind(self, engine: Any, execution_options: Any = None, **options: Any) -> Any:
        # A scatter is asked like a connection, and is none of the transaction's.
        if isinstance(engine, Scatter):
            return engine
        self._way.check_use(engine)
        return super()._connection_for_bind(engine, execution_options, **options)

    def execute(
        self,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = EMPTY_DICT,
        bind_arguments: Any = None,
        **more: Any,
    ) -> Any:
        """As `Session.execute`, on the shard or shards that the statement needs."""
        call = super().execute
        return self._run(call, statement, params, execution_options, bind_arguments, more)

    def scalars(
        self,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = EMPTY_DICT,
        bind_arguments: Any = None,
        **more: Any,
    ) -> Any:
        """As `Session.scalars`, on the shard or shards that the statement needs."""
        call = super().scalars
        return self._run(call, statement, params, execution_options, bind_arguments, more)

    def scalar(
        self,
        statement: Any,
        params: Any = None,
        *,
        execution_options: Any = EMPTY_DICT,
        bind_arguments: Any = None,
        **more: Any,
    ) -> Any:
        """As `Session.scalar`, on the shard or shards that the statement needs."""
        call = super().scalar
        return self._run(call, statement, params, execution_options, bind_arguments, more)

    def _run(
        self, call: Any, statement: Any, params: Any, execution_options: Any, bind_arguments: Any, more: dict[str, Any]
    ) -> Any:
        unique.refuse_past_objects(statement, params)
        if (tell := events.hook) is None:
            return self._way.run(call, statement, params, execution_options, bind_arguments, more)
        explanation = self._way.explain(statement, params, dict(bind_arguments or {}), brief=True)
        routed = events.StatementRouted(statement, params, explanation)
        tell(routed)
        began, started, failure = time.time_ns(), time.perf_counter(), None
        try:
            return self._way.run(call, statement, params, execution_options, bind_arguments, more)
        except BaseException as error:
            failure = error
            raise
        finally:
            tell(events.StatementEnded(routed, began, time.perf_counter() - started, failure))

    def get_many(self, entity: type[_O], keys: Iterable[Any], *, options: Sequence[Any] = ()) -> list[_O | None]:
        """Objects by their primary keys, with one statement a shard for up to 100 of them.

        Args:
            entity: a mapped class.
            keys: a primary key each, as for `Session.get`: a value, or a tuple where it has several columns.
            options: loader options of SQLAlchemy.

        Returns:
            The objects in the order of the keys; None where there is no row. What the session has already is not read
            again, unless it is expired.

        Raises:
            BadKey: a key is none.
        """
        return get_many(self, entity, keys, options)

    def close(self) -> None:
        """As `Session.close`; what is being streamed is cancelled."""
        self._way.end()
        self.missing_shards = set()
        super().close()

    def rollback(self) -> None:
        """As `Session.rollback`; what is being streamed is cancelled."""
        self._way.end()
        super().rollback()

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """As `Session.flush`; each object goes to the shard of its key."""
        if self._is_clean():
            return
        before = self.connection_callable
        self.connection_callable = self._way.connection_for
        try:
            with self._way.flushing():
                super().flush(objects)
        except errors.ShardwrightError as error:
            if events.hook is not None:
                events.hook(events.FlushRefused(error))
            raise
        finally:
            self.connection_callable = before

    # ------------------------------------------------------------------ the older bulk methods

    def bulk_save_objects(self, objects: Iterable[object], *args: Any, **options: Any) -> None:
        """As `Session.bulk_save_objects`."""
        found = list(objects)
        unique.refuse_bulk(*{type(one) for one in found})
        with self._way.bulk((type(one), one) for one in found):
            super().bulk_save_objects(found, *args, **options)

    def bulk_insert_mappings(self, mapper: Any, mappings: Iterable[dict[str, Any]], *args: Any, **options: Any) -> None:
        """As `Session.bulk_insert_mappings`."""
        unique.refuse_bulk(mapper)
        found = list(mappings)
        with self._way.bulk((mapper, one) for one in found):
            super().bulk_insert_mappings(mapper, found, *args, **options)

    def bulk_update_mappings(self, mapper: Any, mappings: Iterable[dict[str, Any]]) -> None:
        """As `Session.bulk_update_mappings`."""
        unique.refuse_bulk(mapper)
        found = list(mappings)
        with self._way.bulk((mapper, one) for one in found):
            super().bulk_update_mappings(mapper, found)


@event.listens_for(ShardSession, "before_commit")
def _before_commit(session: Session) -> None:
    assert isinstance(session, ShardSession)
    session._way.before_commit()


def _take_transaction_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of a session's execution options (SQLAlchemy 2.1) those that must be set before BEGIN."""
    if "execution_options" not in options:
        return {}
    given = dict(options.pop("execution_options") or {})
    taken = {name: given.pop(name) for name in TRANSACTION_OPTIONS & set(given)}
    if given:
        options["execution_options"] = given
    return taken


def _keyspace(cluster: Cluster, name: str | None, model: Any) -> str:
    """The keyspace that a session's key belongs to."""
    keyspaces = cluster.map.keyspaces
    if name is None and model is None and len(keyspaces) == 1:
        return keyspaces[0].name
    if model is not None:
        table = model if isinstance(model, selectable.TableClause) else model.__table__
        declared = cluster.known.declaration(table)
        if declared is None or declared.keyspace is None:
            raise errors.BadOption(f"{table.name} is not sharded, so it has no keyspace", fix="give a sharded model")
        name = declared.keyspace
    if name is not None:
        return cluster.map.keyspace(name).name
    if not keyspaces:
        raise errors.UnknownKeyspace("the cluster has no keyspace yet", fix="shardwright keyspace create NAME")
    known = ", ".join(keyspace.name for keyspace in keyspaces)
    raise errors.BadOption(f"the cluster has several keyspaces: {known}", fix="give keyspace= or model= with the key")
