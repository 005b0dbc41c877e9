"""The directory of unique values is compared with the rows and mended, whatever was written past the objects."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_unique import People, Person, at_work
from shardwright import Cluster, engines, errors, sharded_by, unique_across_shards, unique_directory
from shardwright.catalog import decisions, keyspaces, models, roster
from shardwright.session import unique_mending
from shardwright.session.unique_mending import Comparison, Shared, compare, uniques_of

pytestmark = pytest.mark.newest_postgres

[EMAIL] = uniques_of(Person.metadata)


def keys_on(cluster: Cluster, shard: str, count: int) -> list[int]:
    return [key for key in range(1, 5000) if cluster.map.route("users", key).shard == shard][:count]


def write(people: People, cluster: Cluster, rows: dict[int, str | None]) -> None:
    """Store rows without anybody knowing."""
    for key, email in rows.items():
        with psycopg.connect(people.dsns.shards[cluster.map.route("users", key).shard]) as connection:
            connection.execute("INSERT INTO people (id, email) VALUES (%s, %s)", (key, email))


def counts(found: Comparison) -> tuple[int, int, int, int]:
    return found.rows, found.missing, found.stray, found.shared


def test_rows_that_were_there_before_get_their_values(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique_mending, "PAGE", 4)
    cluster = people.connect()
    rows: dict[int, str | None] = {key: f"{key}@x" for key in (*keys_on(cluster, "s1", 9), *keys_on(cluster, "s2", 6))}
    nobody = keys_on(cluster, "s2", 7)[-1]
    write(people, cluster, {**rows, nobody: None})
    seen: list[tuple[str, int, int]] = []
    assert counts(compare(cluster, EMAIL, mend=False)) == (15, 15, 0, 0)
    assert people.everywhere("SELECT * FROM unique_values") == []
    found = compare(cluster, EMAIL, mend=True, watch=lambda _, what, done, total: seen.append((what, done, total)))
    assert counts(found) == (15, 15, 0, 0)
    assert people.check() == {email: key for key, email in rows.items()}
    assert ("rows", 15, 15) in seen
    for mend in (False, True):
        found = compare(cluster, EMAIL, mend=mend)
        assert (counts(found), found.differs) == ((15, 0, 0, 0), False)
    with cluster.sessionmaker(cross_shard="two_phase")() as session, pytest.raises(sa.exc.IntegrityError):
        session.add(Person(id=nobody + 10_000, email=f"{next(iter(rows))}@x"))
        session.commit()


def test_what_belongs_to_no_row_is_taken_out(people: People) -> None:
    cluster = people.connect()
    one, other = keys_on(cluster, "s1", 1)[0], keys_on(cluster, "s2", 1)[0]
    with cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        session.add_all([Person(id=one, email="a@x"), Person(id=other, email="b@x")])
    people.ask("s1", "DELETE FROM people RETURNING id")
    people.ask("s2", "UPDATE people SET email = 'c@x' RETURNING id")
    assert counts(compare(cluster, EMAIL, mend=False)) == (1, 1, 2, 0)
    assert len(people.everywhere("SELECT * FROM unique_values")) == 2
    assert counts(compare(cluster, EMAIL, mend=True)) == (1, 1, 2, 0)
    assert people.check() == {"c@x": other}
    # The directory names one that is not there, for a value that another row has.
    people.ask("s2", "UPDATE people SET email = 'd@x' RETURNING id")
    write(people, cluster, {one: "c@x"})
    assert counts(compare(cluster, EMAIL, mend=False)) == (2, 2, 1, 0)
    assert counts(compare(cluster, EMAIL, mend=True)) == (2, 2, 1, 0)
    assert people.check() == {"c@x": one, "d@x": other}


def test_a_value_that_two_rows_have_is_told_and_left(people: People) -> None:
    cluster = people.connect()
    one, other = keys_on(cluster, "s1", 1)[0], keys_on(cluster, "s2", 1)[0]
    write(people, cluster, {one: "a@x", other: "a@x"})
    for mend in (False, True, True):
        found = compare(cluster, EMAIL, mend=mend)
        if mend:
            (shared,) = found.listed
            assert (shared.value, set(shared.owners), found.shared) == ("a@x", {str(one), str(other)}, 1)
        assert found.differs
    assert len(people.everywhere("SELECT * FROM unique_values")) == 1


class Tables(sa.orm.DeclarativeBase):
    pass


class Nick(Tables):
    """Several rows a key, and a value that is a number."""

    __tablename__ = "nicks"
    __table_args__ = ({"info": sharded_by("person_id", keyspace="users")},)
    person_id: sa.orm.Mapped[int] = sa.orm.mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    n: sa.orm.Mapped[int] = sa.orm.mapped_column(primary_key=True, autoincrement=False)
    number: sa.orm.Mapped[int | None] = sa.orm.mapped_column(sa.BigInteger, info=unique_across_shards())


class MemberId(sa.types.TypeDecorator[str]):
    """m7 for the application is 7 for the database."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> int | None:
        return None if value is None else int(value[1:])

    def process_result_value(self, value: int | None, dialect: Any) -> str | None:
        return None if value is None else f"m{value}"


class Handle(sa.types.TypeDecorator[str]):
    """Stored in lower case."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


class Member(Tables):
    """Types of the application's own."""

    __tablename__ = "members"
    __table_args__ = ({"info": sharded_by("id", keyspace="users")},)
    id: sa.orm.Mapped[str] = sa.orm.mapped_column(MemberId, primary_key=True, autoincrement=False)
    handle: sa.orm.Mapped[str | None] = sa.orm.mapped_column(Handle, info=unique_across_shards())


unique_directory(Tables.metadata, keyspace="values")


def test_rows_of_one_owner(people: People) -> None:
    with engines.connect_catalog(people.dsns.catalog, "test") as catalog:
        models.register(catalog, Tables.metadata)
    cluster = people.connect()
    [number] = uniques_of(Tables.metadata, ["nicks.number"])
    key = keys_on(cluster, "s2", 1)[0]
    people.ask(
        "s2", f"INSERT INTO nicks VALUES ({key}, 1, 7), ({key}, 2, 8), ({key}, 3, 7), ({key}, 4, NULL) RETURNING n"
    )
    found = compare(cluster, number, mend=True)
    assert (counts(found), found.listed) == ((3, 2, 0, 1), [Shared("7", (str(key), str(key)))])
    values = people.everywhere("SELECT value, of_column, owner FROM unique_values")
    assert values == [("7", "nicks.number", str(key)), ("8", "nicks.number", str(key))]
    # Addresses share the directory, and are another column's.
    assert counts(compare(cluster, EMAIL, mend=True)) == (0, 0, 0, 0)


def test_types_of_the_application(people: People) -> None:
    with engines.connect_catalog(people.dsns.catalog, "test") as catalog:
        models.register(catalog, Tables.metadata)
    cluster = people.connect()
    [handle] = uniques_of(Tables.metadata, ["members.handle"])
    old, new = keys_on(cluster, "s1", 1)[0], keys_on(cluster, "s2", 1)[0]
    with cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        session.add(Member(id=f"m{new}", handle="Ann"))
    people.ask("s1", f"INSERT INTO members VALUES ({old}, 'bob') RETURNING 1")
    assert counts(compare(cluster, handle, mend=True)) == (2, 1, 0, 0)
    values = people.everywhere("SELECT value, owner FROM unique_values")
    assert values == [("ann", str(new)), ("bob", str(old))]
    people.ask("s1", "DELETE FROM members RETURNING 1")
    assert counts(compare(cluster, handle, mend=True)) == (1, 0, 1, 0)


@contextlib.contextmanager
def prepared(people: People, shard: str, statement: str) -> Iterator[Callable[[], None]]:
    """A part of a transaction on several shards that is prepared; what is given ends it."""
    with engines.connect_catalog(people.dsns.catalog, "test") as catalog:
        _, transaction = decisions.register(catalog, ["s1", "s2"], "test")
        gid = decisions.gid(roster.cluster_id(catalog), transaction, shard)
    with psycopg.connect(people.dsns.shards[shard], autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute(statement.encode())
        connection.execute(f"PREPARE TRANSACTION '{gid}'".encode())
        yield lambda: connection.execute(f"COMMIT PREPARED '{gid}'".encode()) and None


def test_what_is_in_doubt_is_not_taken_for_wrong(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """One half of a transaction is committed, and the other not yet."""
    monkeypatch.setattr(unique_mending, "PATIENCE", 0.2)
    cluster = people.connect()
    key = keys_on(cluster, "s1", 1)[0]
    with prepared(people, "s1", f"INSERT INTO people (id, email) VALUES ({key}, 'a@x')") as commit:
        shard = cluster.map.route("values", "a@x").shard
        people.ask(shard, f"INSERT INTO unique_values VALUES ('a@x', 'people.email', '{key}') RETURNING 1")
        with pytest.raises(errors.LockTimeout, match="in doubt on shard s1"):
            compare(cluster, EMAIL, mend=True)
        commit()
    assert counts(compare(cluster, EMAIL, mend=True)) == (1, 0, 0, 0)
    assert people.check() == {"a@x": key}

    value = next(value for n in range(99) if cluster.map.route("values", value := f"{n}@x").shard == "s2")
    people.ask("s1", f"UPDATE people SET email = '{value}' RETURNING 1")
    people.ask(shard, "DELETE FROM unique_values RETURNING 1")
    with prepared(people, "s2", f"INSERT INTO unique_values VALUES ('{value}', 'people.email', '{key}')") as commit:
        with pytest.raises(errors.LockTimeout, match="locked for too long"):
            compare(cluster, EMAIL, mend=False)
        commit()
    assert counts(compare(cluster, EMAIL, mend=False)) == (1, 0, 0, 0)


def test_ranges_part_between_the_grouping_of_rows_and_the_look_at_them(people: People) -> None:
    cluster = people.connect()
    comparing = unique_mending._Comparing(cluster, EMAIL, True, lambda *_: None)
    held = {unique_mending.Held(f"{key}@x", str(key)) for key in keys_on(cluster, "s1", 3)}
    tried: list[set[Any]] = []

    def work(group: list[Any]) -> None:
        tried.append(set(group))
        if len(tried) % 2 == 1:
            if len(tried) == 1:
                with engines.connect_catalog(people.dsns.catalog, "test") as catalog:
                    keyspaces.create_keyspace(catalog, "another")
                cluster.refresh()
            raise errors.CrossShardTransaction("rows of two shards", fix="")

    comparing._each_shard(held, lambda one: ("users", int(one.owner)), work)
    assert tried == [held, held]
    # By the same map they never will be on one shard.
    with pytest.raises(errors.CrossShardTransaction):
        comparing._each_shard(held, lambda one: ("users", int(one.owner)), work)


def test_a_row_that_comes_while_its_value_is_looked_at(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other half was committed a moment ago: the comparison waits for it, and finds nothing wrong."""
    cluster = people.connect()
    key = keys_on(cluster, "s1", 1)[0]
    people.ask(
        cluster.map.route("values", "a@x").shard,
        f"INSERT INTO unique_values VALUES ('a@x', 'people.email', '{key}') RETURNING 1",
    )
    look = unique_mending._Comparing._prepared
    with prepared(people, "s1", f"INSERT INTO people (id, email) VALUES ({key}, 'a@x')") as commit:
        commits = iter([commit])

        def look_and_commit(self: Any) -> set[tuple[str, str]]:
            found = look(self)
            if found:
                next(commits)()
            return found

        monkeypatch.setattr(unique_mending._Comparing, "_prepared", look_and_commit)
        assert counts(compare(cluster, EMAIL, mend=True)) == (1, 0, 0, 0)
    assert people.check() == {"a@x": key}


class Writer(threading.Thread):
    """Adds, changes and deletes people of its own, with addresses that all of them want."""

    def __init__(self, cluster: Cluster, keys: list[int], seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.keys, self.chance = cluster, keys, random.Random(seed)
        self.stop = threading.Event()
        self.done, self.failure = 0, None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.act(self.chance.choice(self.keys), self.chance.choice([f"{n}@x" for n in range(30)]))
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failure = error

    def act(self, key: int, email: str) -> None:
        def work(session: Session) -> None:
            person = session.get(Person, key)
            if person is None:
                session.add(Person(id=key, email=email))
            elif self.chance.random() < 0.3:
                session.delete(person)
            else:
                person.email = email

        with contextlib.suppress(sa.exc.IntegrityError):
            self.cluster.run_across(work, deadline=60, lock_timeout=0.3)


def test_nothing_is_wrong_while_it_is_used(people: People, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen between the two halves of a COMMIT is never told as a difference, and what is old is mended beside."""
    monkeypatch.setattr(unique_mending, "PAGE", 7)
    cluster = people.connect()
    keys = keys_on(cluster, "s1", 30) + keys_on(cluster, "s2", 30)
    write(people, cluster, {key: f"old {key}" for key in keys[::2]})
    writers = [Writer(cluster, keys[nth::3], seed + nth) for nth in range(3)]
    with at_work(writers):
        first = compare(cluster, EMAIL, mend=True)
        assert first.missing > 0
        again = [compare(cluster, EMAIL, mend=nth % 2 == 0) for nth in range(6)]
        before = [writer.done for writer in writers]
        while any(writer.done < count + 5 and writer.is_alive() for writer, count in zip(writers, before, strict=True)):
            again.append(compare(cluster, EMAIL, mend=False))
    assert [one for one in again if one.differs] == []
    people.check()


def test_what_is_asked_wrongly(people: People) -> None:
    with pytest.raises(errors.BadOption, match=r"people\.name is not unique across shards"):
        uniques_of(Person.metadata, ["people.name"])
    with pytest.raises(errors.BadOption, match="no column of these models"):
        uniques_of(sa.MetaData())
