"""One commit on several shards: prepared on each, decided once in the catalog, then committed on each.

Before the decision any failure rolls everything back, and whoever finds a prepared part may do so too (`tx recover`).
After it the transaction is committed, and what remains is only to tell the shards: a part that cannot be told now stays
prepared, with its locks, until `tx recover` tells it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shardwright import errors
from shardwright.catalog import decisions
from shardwright.failpoints import reach
from shardwright.session import events, opening
from shardwright.session.deciding import Decider
from shardwright.session.faults import said_by, sqlstate_of
from shardwright.session.retries import Backoff
from shardwright.session.waiting import Waiting, together
from shardwright.session.wire import Guarded

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

#: Seconds for which the catalog is asked to decide, and a shard is told the decision, before others have to do it.
PATIENCE = 5.0

_log = logging.getLogger(__name__)

Verb = Literal["COMMIT", "ROLLBACK"]

_UNDEFINED = "42704"
_NOT_PREPARED = "0A000"
#: prepared transactions are turned off; all that may be are there
_NO_ROOM = ("55000", "53200")


class TwoPhase:
    """One transaction's commit.

    Args:
        waiting: how its session waits.
        decider: asks the catalog.
        engine_of: gives a shard's engine, for a shard whose connection broke.
        parts: the connection of each shard that was written on, its transaction open.
    """

    def __init__(
        self,
        waiting: Waiting,
        decider: Decider,
        engine_of: Callable[[str], Engine],
        parts: Mapping[str, Connection],
    ) -> None:
        self._waiting = waiting
        self._decider = decider
        self._engine_of = engine_of
        self._parts = parts
        self._drivers = {shard: opening.driver_of(connection) for shard, connection in parts.items()}
        self._cluster = self._id = ""
        #: shards that were told to prepare, and have not refused
        self._perhaps_prepared: set[str] = set()

    def commit(self) -> None:
        """Commit it.

        Raises:
            UnfitServer: a shard has no room for prepared transactions; nothing was prepared.
            CrossShardTransaction: it did something that PostgreSQL does not prepare.
            TransactionGivenUp: it was taken for one whose session is dead.
            CommitUnknown: the catalog's answer to the decision was lost.
            CannotConnect: the catalog was not reached at all.
            sqlalchemy.exc.DBAPIError: a shard refused, as it may refuse any COMMIT.
        """
        for shard in sorted(self._parts):
            self._check_room(shard)
        self._cluster, self._id = self._waiting.aside(partial(self._decider.register, self._parts))
        reach("tx.registered")
        try:
            together(self._waiting, [partial(self._prepare, shard) for shard in sorted(self._parts)])
            reach("tx.prepared")
        except BaseException:
            self._give_up()
            raise
        if not self._decide():
            self._give_up()
            raise errors.TransactionGivenUp(
                f"transaction {self._id} was rolled back before it was decided: it had been taken for an abandoned one",
                fix="run the transaction again",
                transaction=self._id,
            )
        reach("tx.decided")
        self._end("COMMIT")

    def _check_room(self, shard: str) -> None:
        if shard in self._decider.able_to_prepare:
            return
        with opening.speaking_to(self._parts[shard]):
            room = self._drivers[shard].command("SELECT pg_catalog.current_setting('max_prepared_transactions')")
        if room == "0":
            raise errors.UnfitServer(
                f"shard {shard} has max_prepared_transactions = 0, so it cannot take part in a transaction on several shards",
                fix="set max_prepared_transactions to as many as there may be sessions that commit, and restart the server",
                shard=shard,
            )
        self._decider.able_to_prepare.add(shard)

    def _prepare(self, shard: str) -> None:
        connection, driver = self._parts[shard], self._drivers[shard]
        self._perhaps_prepared.add(shard)
        try:
            with opening.speaking_to(connection):
                said = driver.command(f"PREPARE TRANSACTION '{decisions.gid(self._cluster, self._id, shard)}'")
        except (errors.SessionError, sa.exc.DBAPIError) as error:
            if not driver.is_lost:
                self._perhaps_prepared.discard(shard)
            raise _refused(shard, error) or error from error
        if said != "PREPARE TRANSACTION":
            self._perhaps_prepared.discard(shard)
            # As with COMMIT: a transaction that has failed is rolled back, and the server calls that no error.
            raise errors.CrossShardTransaction(
                f"the transaction on shard {shard} has failed before and cannot be committed",
                fix="roll back, and run the transaction again",
            )
        reach("tx.half_prepared")

    def _decide(self) -> bool:
        try:
            return self._waiting.aside(partial(self._decider.commit, self._id, PATIENCE))
        except errors.PreconditionError as lost:
            self._forget_parts()
            events.undecided.update(self._parts.values())
            raise errors.CommitUnknown(
                f"the catalog's answer to the decision on transaction {self._id} was lost: it may be committed or not",
                fix="cluster.commit_outcome(error) tells which; `shardwright tx recover` ends what is prepared",
                ownership_known=True,
                transaction=self._id,
                cluster=self._cluster,
                shards=sorted(self._parts),
            ) from lost

    def _give_up(self) -> None:
        """Roll back what is prepared; nobody has committed it, and from here on nobody will."""
        is_noted = False
        try:
            is_noted = self._waiting.aside(partial(self._decider.abort, self._id)) is not None
        except errors.PreconditionError as error:
            # Only this session could have decided to commit it.
            _log.warning("transaction %s is given up, and the catalog was not told: %s", self._id, error)
        whole = not any(driver.is_lost for driver in self._drivers.values())
        if self._end("ROLLBACK", settle=is_noted and whole):
            reach("tx.rolled_back")

    def _end(self, verb: Verb, *, settle: bool = True) -> bool:
        """Tell every shard that may have a part of it prepared; whether all have done it."""
        shards = sorted(self._perhaps_prepared)
        done = together(self._waiting, [partial(self._tell, shard, verb) for shard in shards]) if shards else []
        self._forget_parts()
        left = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
        if left:
            _log.warning(
                "transaction %s is %s, and shard %s was not told: `shardwright tx recover` does it",
                self._id, "committed" if verb == "COMMIT" else "rolled back", ", ".join(left),
            )  # fmt: skip
        elif settle:
            self._decider.note_settled(self._id)
        return not left

    def _tell(self, shard: str, verb: Verb) -> bool:
        name = decisions.gid(self._cluster, self._id, shard)
        return _tell(self._waiting, self._engine_of, shard, f"{verb} PREPARED '{name}'", self._drivers[shard])

    def _forget_parts(self) -> None:
        """Nothing is left on these connections for SQLAlchemy to commit or to roll back."""
        for driver in self._drivers.values():
            driver.settled = True


def find_out(
    waiting: Waiting, decider: Decider, engine_of: Callable[[str], Engine], error: errors.CommitUnknown
) -> Literal["committed", "aborted", "unknown"]:
    """What became of a transaction on which the catalog's answer was lost; see `Cluster.commit_outcome`.

    One that is not decided by now is given up, so that the answer holds. Its shards are told.

    Args:
        waiting: how to wait.
        decider: asks the catalog.
        engine_of: gives a shard's engine.
        error: what was raised.
    """
    transaction, cluster = str(error.facts["transaction"]), str(error.facts["cluster"])
    outcome = waiting.aside(partial(decider.abort, transaction))
    if outcome is None:
        return "unknown"
    verb = "COMMIT" if outcome == "committed" else "ROLLBACK"
    calls = [
        partial(
            _tell, waiting, engine_of, shard, f"{verb} PREPARED '{decisions.gid(cluster, transaction, shard)}'", None
        )
        for shard in error.facts["shards"]
    ]
    if all(together(waiting, calls)):
        decider.note_settled(transaction)
    return "committed" if outcome == "committed" else "aborted"


def _tell(waiting: Waiting, engine_of: Callable[[str], Engine], shard: str, text: str, own: Guarded | None) -> bool:
    """Bring a shard's part to its end, over its own connection or, where that broke, over another one."""
    backoff = Backoff(PATIENCE)
    engine = engine_of(shard)
    expected: tuple[type[Exception], ...] = (
        *opening.driver_errors(engine),
        sa.exc.SQLAlchemyError,
        errors.ShardwrightError,
    )
    while True:
        try:
            if own is not None and not own.is_lost:
                own.command(text)
            else:
                with engine.connect() as connection:
                    driver = opening.driver_of(connection)
                    driver.new_transaction(())
                    driver.command(text)
        except expected as error:
            # Not there: somebody else has done it. Else somebody is doing it now, or the shard does not answer.
            if sqlstate_of(error) != _UNDEFINED:
                if backoff.is_over:
                    _log.warning("shard %s, %s: %s", shard, text, " ".join(str(error).split()))
                    return False
                waiting.pause(backoff.pause())
                continue
        reach("tx.half_ended")
        return True


def _refused(shard: str, error: Exception) -> errors.ShardwrightError | None:
    """The error of ours for a shard that did not prepare its part; None where what was raised says it well."""
    state = sqlstate_of(error)
    if state == _NOT_PREPARED:
        return errors.CrossShardTransaction(
            f"shard {shard} cannot prepare its part: {_words(error)}",
            fix="keep LISTEN, NOTIFY, temporary tables, cursors WITH HOLD and exported snapshots out of transactions that "
            "write on several shards",
            shard=shard,
        )
    if state in _NO_ROOM:
        return errors.UnfitServer(
            f"shard {shard} has no room for another prepared transaction: {_words(error)}",
            fix="raise max_prepared_transactions and restart the server; `shardwright tx recover` ends abandoned ones",
            shard=shard,
        )
    return None


def _words(error: Exception) -> str:
    return said_by(getattr(error, "orig", None) or error)
