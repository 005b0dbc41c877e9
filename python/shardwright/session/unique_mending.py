"""Compares the directory of values that are unique over all shards with the rows that have them, and mends it.

For rows that were there before their column was declared, and for what was written past the objects: by text(), in psql, by
ON DELETE CASCADE. The application goes on meanwhile. What looks wrong when a page is read is looked at again in a
transaction that holds it: the row, before its value is claimed; the directory's row, before it is released. So what is
found is so, and what is mended was wrong.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from shardwright import errors
from shardwright.routing.stored import as_read, as_stored
from shardwright.routing.uniques import Unique, across_shards_of, owner_key, owner_text
from shardwright.session.cluster import Cluster
from shardwright.session.faults import LOCK_TIMEOUT, sqlstate_of
from shardwright.session.session import ShardSession

#: Rows that are looked at with one statement a shard.
PAGE = 500
#: How many of the values that several rows have are listed.
LISTED = 100
#: Seconds for which transactions in doubt are waited for.
PATIENCE = 10.0

_IN_DOUBT = sa.text(
    "SELECT gid FROM pg_catalog.pg_prepared_xacts"
    " WHERE database = pg_catalog.current_database() AND gid LIKE 'shardwright:%'"
)

#: Told of a column, of what is being looked at, how much of it has been, and how much there is.
Watch = Callable[[str, Literal["directory", "rows"], int, int], None]


class Held(NamedTuple):
    """A value, and the shard key of the row that has it, both as the directory has them."""

    value: str
    owner: str


@dataclass(frozen=True)
class Shared:
    """A value that should be unique, and is not."""

    value: str
    #: shard keys of rows that have it; the directory names the first
    owners: tuple[str, str]


@dataclass
class Comparison:
    """How one column and the directory of its values differ; mended, if that was asked for, but for what is shared."""

    column: str
    #: rows that have a value
    rows: int = 0
    #: values of rows that the directory did not have, or had for a row that is not there
    missing: int = 0
    #: rows of the directory whose value no row has
    stray: int = 0
    #: how many rows have a value that another one has too; nobody but a person can mend that
    shared: int = 0
    #: the first of them
    listed: list[Shared] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether anything was found."""
        return bool(self.missing or self.stray or self.shared)


def uniques_of(metadata: sa.MetaData, names: Sequence[str] = ()) -> list[Unique]:
    """The columns of models whose values are unique over all shards.

    Args:
        metadata: of the models.
        names: only these, as TABLE.COLUMN.

    Raises:
        BadOption: there are none, or one of the names is none of theirs.
        BadDeclaration: there is no directory.
    """
    found = {one.name: one for table in metadata.tables.values() for one in across_shards_of(table)}
    if not found:
        raise errors.BadOption(
            "no column of these models is unique across shards", fix="mapped_column(info=unique_across_shards())"
        )
    for name in names:
        if name not in found:
            raise errors.BadOption(f"{name} is not unique across shards", fix=f"one of {', '.join(found)}")
    return [found[name] for name in names or found]


def compare(cluster: Cluster, unique: Unique, *, mend: bool, watch: Watch = lambda *_: None) -> Comparison:
    """Compare a column with the directory of its values, both ways.

    Args:
        cluster: where both are.
        unique: the column.
        mend: put into the directory what is missing there, and take out what belongs to no row.
        watch: told how far it is, after each page.

    Returns:
        What was found.

    Raises:
        LockTimeout: a transaction in doubt, or a long one, holds what is to be looked at.
        ShardUnavailable: a shard cannot be reached.
    """
    return _Comparing(cluster, unique, mend, watch).run()


class _Undone(Exception):
    """Rolls back a transaction that was only to find something out."""


class _Comparing:
    def __init__(self, cluster: Cluster, unique: Unique, mend: bool, watch: Watch) -> None:
        self._cluster = cluster
        self._unique = unique
        self._mend = mend
        self._watch = watch
        self._found = Comparison(unique.name)
        self._twins: set[Held] = set()
        table = unique.column.table
        assert isinstance(table, sa.Table)
        declared = cluster.known.declaration(table)
        if declared is None or declared.keyspace is None:
            raise errors.BadDeclaration(
                f"{unique.name} is unique across shards, and its table is not sharded",
                fix="a UNIQUE constraint does that where all rows are on one shard",
            )
        self._key = next(column for column in table.columns if column.name == declared.key_column)
        self._keyspace = cluster.map.keyspace(declared.keyspace)
        self._value = sa.cast(unique.column, sa.Text)
        self._entries = unique.directory.c
        self._sessions = cluster.sessionmaker()
        kept = cluster.known.declaration(unique.directory)
        assert kept is not None
        self._values = kept.keyspace or ""

    def run(self) -> Comparison:
        of_column = self._entries.of_column == self._unique.name
        entries = sa.select(self._entries.value, self._entries.owner).where(of_column)
        total = self._count(sa.select(sa.func.count()).select_from(self._unique.directory).where(of_column))
        done = 0
        for page in self._cluster.pages(entries, size=PAGE):
            done += len(page)
            self._look_at_entries({Held(*entry) for entry in map(tuple, page)})
            self._watch(self._unique.name, "directory", done, total)
        has_value = self._unique.column.is_not(None)
        rows = sa.select(self._value, self._key).where(has_value)
        total = self._count(sa.select(sa.func.count()).select_from(self._key.table).where(has_value))
        for page in self._cluster.pages(rows, size=PAGE):
            self._found.rows += len(page)
            held = {Held(value, self._owner(key)) for value, key in map(tuple, page)}
            self._look_for_twins(held)
            self._look_at_rows(held)
            self._watch(self._unique.name, "rows", self._found.rows, total)
        return self._found

    def _count(self, statement: Any) -> int:
        with self._sessions() as session:
            return int(session.scalar(statement) or 0)

    # ------------------------------------------------------------------ from the directory to the rows

    def _look_at_entries(self, entries: set[Held]) -> None:
        def release(group: list[Held]) -> None:
            self._found.stray += self._alone(partial(self._release, suspects=group))

        suspects = entries - set(self._rows_of(entries))
        self._each_shard(suspects, lambda one: (self._values, one.value), release)

    def _release(self, session: ShardSession, suspects: list[Held]) -> int:
        """Take out of the directory what belongs to no row, while nobody else can change it."""
        stays = self._entries.value.in_([one.value for one in suspects]), self._entries.of_column == self._unique.name
        statement = sa.select(self._entries.value, self._entries.owner).where(*stays).with_for_update()
        held = {Held(*row) for row in session.execute(statement)} & set(suspects)
        # What is committed here may still be prepared where the row is: it is there when that has ended.
        self._wait_for_prepared()
        stray = held - set(self._rows_of(held))
        for one in stray if self._mend else ():
            session.execute(
                sa.delete(self._unique.directory).where(
                    self._entries.value == one.value,
                    self._entries.of_column == self._unique.name,
                    self._entries.owner == one.owner,
                )
            )
        return len(stray)

    def _rows_of(self, entries: set[Held]) -> Counter[Held]:
        """How many rows with its value each owner has; those that have none are left out."""
        if not entries:
            return Counter()
        statement = sa.select(self._value, self._key).where(*self._is_one_of(entries))
        with self._sessions() as session:
            found = Counter(Held(value, self._owner(key)) for value, key in session.execute(statement))
        return Counter({one: count for one, count in found.items() if one in entries})

    def _is_one_of(self, held: Iterable[Held]) -> tuple[Any, Any]:
        """Conditions that such rows meet, and perhaps others."""
        given = sorted(held)
        owners = sorted({one.owner for one in given})
        return (
            self._key.in_([self._key_of(owner) for owner in owners]),
            self._value.in_(sorted({one.value for one in given})),
        )

    def _wait_for_prepared(self) -> None:
        """Wait until every transaction on several shards that is prepared now has ended."""
        deadline = time.monotonic() + PATIENCE
        left = self._prepared()
        while left:
            if time.monotonic() > deadline:
                shards = ", ".join(sorted({shard for shard, _ in left}))
                raise errors.LockTimeout(f"transactions are in doubt on shard {shards}", fix="shardwright tx recover")
            # PostgreSQL tells nobody that a prepared transaction has ended.
            time.sleep(0.02)
            left &= self._prepared()

    def _prepared(self) -> set[tuple[str, str]]:
        """The parts of transactions on several shards that are prepared: shards and their names there."""
        found: set[tuple[str, str]] = set()
        for shard in self._cluster.map.shards():
            with self._cluster.engine(shard).connect() as connection:
                found.update((shard, gid) for gid in connection.scalars(_IN_DOUBT))
        return found

    # ------------------------------------------------------------------ from the rows to the directory

    def _look_at_rows(self, rows: set[Held]) -> None:
        def claim(group: list[Held]) -> None:
            still, put = self._alone(partial(self._claim, suspects=group))
            self._found.missing += len(put)
            self._judge(still - put)

        known = self._entries_of(rows)
        suspects = {one for one in rows if known.get(one.value) != one.owner}
        self._each_shard(suspects, lambda one: (self._keyspace.name, self._stored_key(one.owner)), claim)

    def _look_for_twins(self, rows: set[Held]) -> None:
        """Two rows of one owner may have one value: the directory cannot tell them apart."""
        if len(self._key.table.primary_key) == 1:
            return
        for one, count in self._rows_of(rows).items():
            if count > 1 and one not in self._twins:
                self._twins.add(one)
                self._share(one.value, one.owner, one.owner)

    def _claim(self, session: ShardSession, suspects: list[Held]) -> tuple[set[Held], set[Held]]:
        """Put values into the directory, while nobody else can change the rows that have them.

        Returns:
            The suspects whose row has its value still, and those of them for which the value was free.
        """
        statement = sa.select(self._value, self._key).where(*self._is_one_of(suspects)).with_for_update(read=True)
        still = {Held(value, self._owner(key)) for value, key in session.execute(statement)} & set(suspects)
        if not still:
            return set(), set()
        insert = (
            postgresql.insert(self._unique.directory)
            .on_conflict_do_nothing()
            .returning(self._entries.value, self._entries.owner)
        )
        values = [{"value": value, "of_column": self._unique.name, "owner": owner} for value, owner in sorted(still)]
        return still, {Held(*row) for row in session.execute(insert, values)}

    def _judge(self, rows: set[Held]) -> None:
        """What rows are for whose value the directory names somebody."""
        known = self._entries_of(rows)
        named = {Held(one.value, known[one.value]) for one in rows if one.value in known}
        stray = named - set(self._rows_of(named))
        again = {one for one in rows if one.value not in known}
        for one in sorted(rows - again):
            owner = known[one.value]
            if Held(one.value, owner) not in stray:
                if owner != one.owner:
                    self._share(one.value, owner, one.owner)
            elif self._mend:
                again.add(one)
            else:
                self._found.missing += 1
        if self._mend:
            self._look_at_entries(stray)
        if again:
            # Its value has become free since.
            self._look_at_rows(again)

    def _share(self, value: str, *owners: str) -> None:
        self._found.shared += 1
        if len(self._found.listed) < LISTED:
            first, second = owners
            self._found.listed.append(Shared(value, (first, second)))

    def _entries_of(self, rows: Iterable[Held]) -> dict[str, str]:
        """The owners of rows' values, by the directory."""
        wanted = sorted({one.value for one in rows})
        if not wanted:
            return {}
        statement = sa.select(self._entries.value, self._entries.owner).where(
            self._entries.value.in_(wanted), self._entries.of_column == self._unique.name
        )
        with self._sessions() as session:
            return dict(map(tuple, session.execute(statement)))

    # ------------------------------------------------------------------ both

    def _each_shard(
        self, held: Iterable[Held], key: Callable[[Held], tuple[str, Any]], work: Callable[[list[Held]], None]
    ) -> None:
        """Do something with those whose key one shard has now, together."""
        shard_map, groups = self._cluster.map, dict[str, list[Held]]()
        for one in sorted(held):
            groups.setdefault(shard_map.route(*key(one)).shard, []).append(one)
        for group in groups.values():
            try:
                work(group)
            except errors.CrossShardTransaction:
                if self._cluster.map is shard_map:
                    raise
                # Their ranges have parted meanwhile.
                self._each_shard(group, key, work)

    def _alone(self, work: Callable[[ShardSession], Any]) -> Any:
        """Do something in a transaction on several shards; it is undone where nothing is to be mended."""
        found: list[Any] = []

        def once(session: ShardSession) -> None:
            found[:] = [work(session)]
            if not self._mend:
                raise _Undone

        try:
            self._cluster.run_across(once)
        except _Undone:
            pass
        except sa.exc.DBAPIError as error:
            if sqlstate_of(error) != LOCK_TIMEOUT:
                raise
            raise errors.LockTimeout(
                f"a row of {self._key.table} or of {self._unique.directory} has been locked for too long",
                fix="shardwright tx list shows what is in doubt; pg_stat_activity who is in a transaction for long",
            ) from error
        return found[0]

    def _owner(self, key: Any) -> str:
        """The shard key of a row as the directory has it."""
        return owner_text(as_stored(key, self._key))

    def _stored_key(self, owner: str) -> Any:
        """The shard key of a row as the database has it."""
        return owner_key(owner, self._keyspace.key_type)

    def _key_of(self, owner: str) -> Any:
        """The shard key of a row as its column takes it."""
        return as_read(self._stored_key(owner), self._key)
