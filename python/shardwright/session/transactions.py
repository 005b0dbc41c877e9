"""The transactions that a routed session has open, one a shard."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from shardwright import errors
from shardwright.session import opening
from shardwright.session.faults import translate
from shardwright.session.pinned import forget_connections
from shardwright.session.streaming import Stream
from shardwright.session.targets import one_shard_only
from shardwright.session.two_phase import TwoPhase
from shardwright.session.waiting import together
from shardwright.session.wire import Guarded

if TYPE_CHECKING:
    from shardwright.session.session import ShardSession


class ShardTransactions:
    """Opens them, enters ranges in them, and knows which one has written.

    Args:
        session: whose.
        strict: check each range's ownership before it is used.
        options: execution options of the transactions.
        two_phase: let several shards be written on, and make their COMMITs one.
        lock_timeout: seconds for which those wait for a lock, more or less; None: for as long as it takes.
    """

    def __init__(
        self,
        session: ShardSession,
        strict: bool,
        options: dict[str, Any],
        two_phase: bool,
        lock_timeout: float | None,
    ) -> None:
        self._session = session
        self._cluster = session.cluster
        self._strict = strict
        #: several shards may be written on
        self.two_phase = two_phase
        self._lock_timeout = lock_timeout if two_phase else None
        self._options = options
        #: BEGIN and the check may travel with the first statement
        self.ahead = False
        #: a write follows for sure
        self.writes = False
        self._engines: dict[str, opening.SessionEngine] = {}
        self._open: dict[str, Connection] = {}
        self._ready: dict[str, Connection] = {}
        self._wanted: dict[str, set[int]] = {}
        self._streams: WeakSet[Stream] = WeakSet()

    def engine(self, shard: str) -> opening.SessionEngine:
        """The session's engine for a shard."""
        parent = self._session.engine(shard)
        found = self._engines.get(shard)
        if found is None or (found.parent is not parent and not self.is_open(shard)):
            found = self._engines[shard] = opening.SessionEngine(parent, self._connect)
        return found

    def enter(self, shard: str, ranges: Iterable[int]) -> opening.SessionEngine:
        """Let the next statement on a shard enter ranges, together with BEGIN where it is the first.

        Args:
            shard: the shard's name.
            ranges: ids of ranges.
        """
        self.settle_streams()
        wanted = set(ranges) if self._strict else set()
        if self.is_open(shard):
            self.driver(shard).want(self._not_served(shard, wanted))
        else:
            self._wanted[shard] = wanted
        return self.engine(shard)

    def _not_served(self, shard: str, ranges: set[int]) -> set[int]:
        """Ranges that are not held already because the shard was entered as a whole."""
        served = self.driver(shard).served
        if not served or not ranges:
            return ranges
        found = (self._cluster.map.range(one) for one in ranges)
        return {one.id for one in found if one.keyspace not in served or one.points() - served[one.keyspace][0]}

    def is_open(self, shard: str) -> bool:
        """Whether a transaction is open on a shard."""
        connection = self._open.get(shard)
        if connection is None:
            return False
        if connection.closed or connection.invalidated or not connection.in_transaction():
            del self._open[shard]
            return False
        return True

    def in_use(self) -> list[str]:
        """Shards with an open transaction, the one that was written on first."""
        found = [shard for shard in list(self._open) if self.is_open(shard)]
        return sorted(found, key=lambda shard: not self.driver(shard).wrote)

    def writer(self) -> str | None:
        """The shard that was written on, or None."""
        return next((shard for shard in list(self._open) if self.is_open(shard) and self.driver(shard).wrote), None)

    def bound_to(self) -> str | None:
        """The only shard that may be written on from now on, or None while that is open."""
        return None if self.two_phase else self.writer()

    def connection(self, shard: str) -> Connection:
        """The connection of a shard whose transaction is open."""
        return self._open[shard]

    def driver(self, shard: str) -> Guarded:
        """The driver's connection of a shard whose transaction is open."""
        return opening.driver_of(self._open[shard])

    def forget(self, shard: str) -> None:
        """Give a shard's connection back, on which nothing has run yet."""
        connection = self._open.pop(shard, None)
        if connection is not None:
            forget_connections(self._session, connection)

    def note_stream(self, stream: Stream) -> None:
        """From now on a stream fetches on connections of these transactions, until it is closed."""
        self._streams.add(stream)

    def settle_streams(self) -> None:
        """Wait until no stream uses a connection: what comes next needs it."""
        for stream in list(self._streams):
            stream.settle()

    def close_streams(self) -> None:
        """The transactions end: what streams are fetching is cancelled."""
        for stream in list(self._streams):
            stream.close()

    @contextmanager
    def beginning_with(self, options: dict[str, Any]) -> Iterator[None]:
        """Let transactions that begin meanwhile have options of their own."""
        before, self._options = self._options, self._options | options
        try:
            yield
        finally:
            self._options = before

    def open_all(
        self,
        wanted: Mapping[str, Iterable[int]],
        *,
        whole: bool,
        missing: dict[str, errors.ShardUnavailable] | None = None,
    ) -> list[str]:
        """Have a transaction on each of some shards, with its ranges or the whole shard entered, all at the same time.

        Args:
            wanted: ids of ranges, by shard.
            whole: enter the shards as wholes.
            missing: gets the shards that cannot be reached, with the reason; without it, that is raised.

        Returns:
            The shards on which a transaction was begun for it.
        """
        self.settle_streams()
        new = [shard for shard in sorted(wanted) if not self.is_open(shard)]
        made: dict[str, Connection] = {}
        try:
            # One after the other and in one order: scatters cannot wait for each other's pools in a circle.
            for shard in new:
                with _unless_away(shard, missing):
                    made[shard] = self._take(self.engine(shard), made)
            there = [shard for shard in sorted(wanted) if shard in made or shard not in new]
            openers = [self._opener(shard, made.get(shard), set(wanted[shard]), whole) for shard in there]
            together(
                self._session.waiting,
                [partial(_call_unless_away, *one, missing) for one in zip(there, openers, strict=True)],
            )
        except BaseException:
            for connection in made.values():
                connection.close()
            raise
        new = [shard for shard in new if shard not in (missing or ())]
        for shard, connection in ((shard, made[shard]) for shard in new):
            self._ready[shard] = connection
            Session._connection_for_bind(self._session, self.engine(shard))
        return new

    def before_commit(self) -> None:
        """Only one shard may have been written on, by whatever means; the others' COMMITs decide nothing.

        Raises:
            CrossShardTransaction: two have.
        """
        self.settle_streams()
        drivers = {shard: self.driver(shard) for shard in self.in_use()}
        if len(drivers) < 2 or self.two_phase:
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

    def _before_first_commit(self) -> None:
        """A connection is about to be committed: where several shards were written on, all of it is done here.

        Not in `before_commit`: whoever listens to the same event may write still.
        """
        drivers = {shard: self.driver(shard) for shard in self.in_use()}
        if len(drivers) < 2 or any(driver.is_judged for driver in drivers.values()):
            return
        together(self._session.waiting, [partial(self._ask_xact_id, shard) for shard in drivers])
        # Under the levels that keep a snapshot, what was read can be refused at the end, which must not be after the decision.
        parts = [
            shard
            for shard, driver in drivers.items()
            if driver.xact_id is not None or (driver.takes_snapshot and not driver.is_read_only)
        ]
        for shard, driver in drivers.items():
            driver.is_judged = True
            driver.only_read = shard not in parts
        if len(parts) > 1:
            TwoPhase(
                self._session.waiting,
                self._cluster.decider,
                lambda shard: self.engine(shard).parent,
                {shard: self._open[shard] for shard in parts},
            ).commit()

    def _ask_xact_id(self, shard: str) -> None:
        with opening.speaking_to(self._open[shard]):
            self.driver(shard).ask_xact_id()

    def _connect(self, engine: opening.SessionEngine) -> Connection:
        """What SQLAlchemy calls: begins with the ranges that are wanted; what was opened in advance is handed over."""
        shard = opening.shard_of(engine)
        connection = self._ready.pop(shard, None)
        if connection is None:
            connection = self._take(engine)
            opening.begin(
                connection,
                self._wanted.pop(shard, ()),
                ahead=self.ahead,
                writes=self.writes,
                lock_timeout=self._patience(),
            )
        if self.two_phase:
            opening.driver_of(connection).before_commit = self._before_first_commit
        self._open[shard] = connection
        return connection

    def _patience(self) -> float | None:
        """Seconds for which a transaction waits for a lock: of two that wait for each other, one is to give up first."""
        return None if self._lock_timeout is None else self._lock_timeout * random.uniform(0.7, 1.3)

    def _take(self, engine: opening.SessionEngine, made: Iterable[str] = ()) -> Connection:
        """A connection from a shard's pool, unless it would be waited for for ever.

        Args:
            engine: the session's for that shard.
            made: shards of which one was taken right before.
        """
        holding = [self.engine(shard).parent for shard in (*self.in_use(), *made)]
        with self._cluster.crossings.waiting(self, opening.shard_of(engine), engine.parent, holding):
            return engine.checkout(self._options)

    def _opener(self, shard: str, new: Connection | None, ranges: set[int], whole: bool) -> Callable[[], None]:
        ranges = ranges if self._strict else set()

        def enter() -> None:
            if new is not None:
                opening.begin(new, ranges, ahead=False, whole=whole, lock_timeout=self._patience())
                return
            driver = self.driver(shard)
            try:
                driver.want(self._not_served(shard, ranges))
                if whole and driver.served is None:
                    driver.enter_all()
                elif not driver.has_begun:
                    driver.begin()
            except opening.driver_errors(self._open[shard]) as error:
                raise translate(shard, error, driver) or error from error

        return enter


@contextmanager
def _unless_away(shard: str, missing: dict[str, errors.ShardUnavailable] | None) -> Iterator[None]:
    """Note that a shard cannot be reached, where that is asked for."""
    try:
        yield
    except errors.ShardUnavailable as error:
        if missing is None:
            raise
        missing[shard] = error


def _call_unless_away(shard: str, call: Callable[[], None], missing: dict[str, errors.ShardUnavailable] | None) -> None:
    with _unless_away(shard, missing):
        call()
