"""What sessions left that died while they committed on several shards: looked at, decided, and brought to its end.

Safe at any time, from anywhere, any number at once. A transaction whose session lives and is about to decide is decided
by whoever changes its row first; a part without a row is rolled back, since without the row nobody can commit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from shardwright import engines, errors
from shardwright.catalog import decisions, prepared, roster
from shardwright.catalog.decisions import Decision, Outcome
from shardwright.catalog.prepared import Prepared
from shardwright.failpoints import reach

State = Literal["in doubt", "committed", "aborted"]


@dataclass
class Transaction:
    """A transaction on several shards that is not settled."""

    id: str
    #: The shards that it wrote on; those where a part was found, where the catalog does not know it any more.
    shards: tuple[str, ...]
    application: str
    outcome: Outcome
    #: Seconds since it was registered, or prepared where the catalog does not know it.
    age: float
    #: Where a prepared part was found.
    prepared_on: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        """What is known of it: in doubt, or what was decided and has not reached every shard."""
        return "in doubt" if self.outcome == "open" else self.outcome


@dataclass
class Found:
    """What is not settled, over the whole cluster."""

    transactions: list[Transaction]
    #: Shards that could not be asked, and why.
    unreachable: dict[str, str]
    _parts: dict[str, list[Prepared]]
    _connections: dict[str, psycopg.Connection[Any]]

    def parts(self, transaction: str) -> Iterator[tuple[str, psycopg.Connection[Any], Prepared]]:
        """A transaction's prepared parts: shard, connection to it, and the part.

        Args:
            transaction: its id.
        """
        for shard, parts in self._parts.items():
            for part in parts:
                if part.transaction == transaction:
                    yield shard, self._connections[shard], part


@dataclass(frozen=True)
class Recovered:
    """What became of one transaction."""

    id: str
    outcome: Outcome
    shards: tuple[str, ...]
    #: Shards on which its part was ended now.
    ended_on: tuple[str, ...]
    #: Shards that have, or may have, a part still, and why.
    left: dict[str, str]


def look(catalog: psycopg.Connection[Any], stack: ExitStack) -> Found:
    """Look for transactions that are not settled, in the catalog and then on every shard.

    Args:
        catalog: connection to the catalog.
        stack: closes the connections to the shards.
    """
    cluster = roster.cluster_id(catalog)
    # In this order: what is decided by now is prepared nowhere but where it is found.
    known = {one.id: _transaction(one) for one in decisions.unsettled(catalog)}
    parts: dict[str, list[Prepared]] = {}
    connections: dict[str, psycopg.Connection[Any]] = {}
    unreachable: dict[str, str] = {}
    for shard in roster.list_shards(catalog):
        try:
            connections[shard.name] = stack.enter_context(engines.connect_shard(shard, "shardwright tx"))
            parts[shard.name] = prepared.listed(connections[shard.name], cluster, shard.name)
        except (errors.PreconditionError, psycopg.Error) as error:
            unreachable[shard.name] = engines.redact(" ".join(str(error).split()))
    strangers = {
        part.transaction for of_shard in parts.values() for part in of_shard if part.transaction is not None
    } - set(known)
    outcomes = decisions.outcomes(catalog, sorted(strangers))
    for shard_name, of_shard in parts.items():
        for part in of_shard:
            if part.transaction is None:
                continue
            one = known.get(part.transaction)
            if one is None:
                outcome = outcomes.get(part.transaction, "aborted")
                one = known[part.transaction] = Transaction(part.transaction, (), "", outcome, part.age)
            if part.transaction in strangers:
                one.shards = (*one.shards, shard_name)
                one.age = max(one.age, part.age)
            one.prepared_on.append(shard_name)
    return Found(sorted(known.values(), key=lambda one: (-one.age, one.id)), unreachable, parts, connections)


def recover(
    catalog: psycopg.Connection[Any], *, older_than: float = 30.0, only: str | None = None
) -> tuple[list[Recovered], dict[str, str]]:
    """Bring transactions to their end whose sessions did not: those that nobody has decided are given up.

    Args:
        catalog: connection to the catalog, in autocommit mode.
        older_than: seconds; younger ones are left to their sessions.
        only: the id of the only one to end, whatever its age.

    Returns:
        What became of each, the oldest first; and the shards that could not be asked, with the reason.

    Raises:
        BadOption: `only` is none that is unsettled.
        UnfitServer: our role may not end a part.
    """
    with ExitStack() as stack:
        found = look(catalog, stack)
        wanted = [one for one in found.transactions if (one.id == only if only is not None else one.age >= older_than)]
        if only is not None and not wanted:
            raise errors.BadOption(f"no transaction {only} is unsettled", fix="shardwright tx list")
        ended = [_end(catalog, found, one) for one in wanted]
        decisions.settle(catalog, [one.id for one in ended if not one.left])
    return ended, found.unreachable


def _transaction(one: Decision) -> Transaction:
    return Transaction(one.id, one.shards, one.application, one.outcome, one.age)


def _end(catalog: psycopg.Connection[Any], found: Found, one: Transaction) -> Recovered:
    # Decided first, in the catalog. Where the row is gone nobody can commit any more.
    was_open = one.outcome == "open"
    outcome = decisions.abort(catalog, one.id) or "aborted"
    reach("tx.recovering")
    ended: list[str] = []
    left = {shard: why for shard, why in found.unreachable.items() if shard in one.shards}
    for shard, connection, part in found.parts(one.id):
        try:
            if prepared.end(connection, part, commit=outcome == "committed"):
                ended.append(shard)
            else:
                left[shard] = "another session is ending it"
        except psycopg.OperationalError as error:
            left[shard] = engines.redact(" ".join(str(error).split()))
        reach("tx.half_recovered")
    if was_open and outcome == "committed":
        # Its session decided while we looked: parts may be there that were not found, and it ends them itself.
        left |= {shard: "its session is committing it" for shard in one.shards if shard not in ended}
    return Recovered(one.id, outcome, one.shards, tuple(ended), left)
