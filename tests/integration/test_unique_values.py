"""Values that are unique over all shards: one row in the directory for each, whatever is written, moved or crashed."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from fix_unique import People, Person
from shardwright import Cluster, errors, sharded_by, unique_across_shards
from shardwright.routing.uniques import across_shards_of, owner_key, owner_text

pytestmark = pytest.mark.newest_postgres


def sessions_of(cluster: Cluster, **options: Any) -> Any:
    return cluster.sessionmaker(cross_shard="two_phase", **options)


def keys_on(cluster: Cluster, shard: str, count: int) -> list[int]:
    return [key for key in range(1, 500) if cluster.map.route("users", key).shard == shard][:count]


def test_an_address_belongs_to_one_row_on_whatever_shard(people: People) -> None:
    cluster = people.connect()
    one, other = keys_on(cluster, "s1", 1)[0], keys_on(cluster, "s2", 1)[0]
    with sessions_of(cluster)() as session, session.begin():
        session.add_all([Person(id=one, email="a@x"), Person(id=other, email=None, name="nobody")])
    for key in (one + 1, other):
        with sessions_of(cluster)() as session, pytest.raises(sa.exc.IntegrityError, match="unique_values_pkey"):
            session.merge(Person(id=key, email="a@x"))
            session.commit()
    assert people.check() == {"a@x": one}
    assert cluster.find(Person.email == "a@x") == one
    assert cluster.find(Person.email == "b@x") is None
    with cluster.sessionmaker()(key=cluster.find(Person.email == "a@x"), model=Person) as session:
        assert session.get_one(Person, one).email == "a@x"

    # Changed, exchanged for nothing, taken by somebody else, deleted.
    with sessions_of(cluster)() as session:
        session.get_one(Person, one).email = "b@x"
        session.get_one(Person, other).email = "c@x"
        session.commit()
        assert people.check() == {"b@x": one, "c@x": other}
        session.get_one(Person, one).name = "named"
        session.commit()
        session.get_one(Person, one).email = None
        session.commit()
        assert people.check() == {"c@x": other}
        session.get_one(Person, one).email = "a@x"
        session.commit()
        session.delete(session.get_one(Person, other))
        session.commit()
        assert people.check() == {"a@x": one}
        session.add(Person(id=other, email="c@x"))
        session.commit()
    assert people.check() == {"a@x": one, "c@x": other}


def test_what_an_object_remembers_does_not_count(people: People) -> None:
    """Between reading and writing somebody else changed the address: that one is released, not the old one."""
    cluster = people.connect()
    key = keys_on(cluster, "s1", 1)[0]
    with sessions_of(cluster)() as session, session.begin():
        session.add(Person(id=key, email="a@x"))
    with sessions_of(cluster)() as slow:
        seen = slow.get_one(Person, key)
        assert seen.email == "a@x"
        with sessions_of(cluster)() as quick, quick.begin():
            quick.get_one(Person, key).email = "b@x"
        seen.email = "c@x"
        slow.commit()
    assert people.check() == {"c@x": key}
    with sessions_of(cluster)() as slow:
        seen = slow.get_one(Person, key)
        with sessions_of(cluster)() as quick, quick.begin():
            quick.get_one(Person, key).email = "d@x"
        slow.delete(seen)
        slow.commit()
    assert people.check() == {}


PAST = {
    "insert": lambda session, key: session.execute(sa.insert(Person).values(id=key, email="z@x")),
    "many": lambda session, key: session.execute(sa.insert(Person), [{"id": key, "email": "z@x"}]),
    "update": lambda session, key: session.execute(sa.update(Person).where(Person.id == key).values(email="z@x")),
    "by key": lambda session, key: session.execute(sa.update(Person), [{"id": key, "email": "z@x"}]),
    "delete": lambda session, key: session.execute(sa.delete(Person).where(Person.id == key)),
    "older": lambda session, key: session.bulk_save_objects([Person(id=key, email="z@x")]),
    "mappings": lambda session, key: session.bulk_insert_mappings(Person, [{"id": key, "email": "z@x"}]),
}


def test_writes_that_the_directory_would_not_notice_are_refused(people: People) -> None:
    cluster = people.connect()
    key = keys_on(cluster, "s1", 1)[0]
    for name, write in PAST.items():
        with sessions_of(cluster)() as session, pytest.raises(errors.WriteRefused, match=r"people\.email"):
            write(session, key)
            pytest.fail(name)
    for session in (cluster.sessionmaker()(key=key, model=Person), cluster.sessionmaker()()):
        with session, pytest.raises(errors.CrossShardTransaction, match="unique across shards"):
            session.add(Person(id=key, email="z@x"))
            session.commit()
    with sessions_of(cluster)() as session, pytest.raises(errors.BadKey):
        session.add(Person(id=key, email=sa.func.lower("Z@X")))
        session.commit()
    assert people.check() == {}
    # What leaves the address alone is not held up.
    with cluster.sessionmaker()(key=key, model=Person) as session, session.begin():
        session.add(Person(id=key, name="x"))
    with cluster.sessionmaker()() as session, session.begin():
        session.execute(sa.update(Person).where(Person.id == key).values(name="y"))
    with pytest.raises(errors.BadOption, match="comparison"):
        cluster.find(Person.name == "y")


def test_many_want_few_addresses(people: People, seed: int) -> None:
    """Whoever gets one has it alone; whatever is given up is free again."""
    cluster = people.connect()
    keys = keys_on(cluster, "s1", 6) + keys_on(cluster, "s2", 6)
    failures: list[BaseException] = []

    def work(mine: list[int], chance: random.Random) -> None:
        try:
            for _ in range(12):
                act(chance.choice(mine), chance.choice(["a@x", "b@x", "c@x", None]), chance.random() < 0.3)
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    def act(key: int, email: str | None, delete: bool) -> None:
        with sessions_of(cluster)() as session:
            try:
                person = session.get(Person, key)
                if person is None:
                    session.add(Person(id=key, email=email))
                elif delete:
                    session.delete(person)
                else:
                    person.email = email
                session.commit()
            except (sa.exc.IntegrityError, sa.exc.OperationalError):
                session.rollback()

    threads = [threading.Thread(target=work, args=(keys[nth::4], random.Random(seed + nth))) for nth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    found = people.check()
    # Nothing is lost for ever: what nobody has can be had.
    with sessions_of(cluster)() as session, session.begin():
        session.add_all(Person(id=1000 + n, email=e) for n, e in enumerate(sorted({"a@x", "b@x", "c@x"} - set(found))))
    assert set(people.check()) == {"a@x", "b@x", "c@x"}


def test_a_declaration_without_a_directory_is_refused() -> None:
    table = sa.Table(
        "alone",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("email", sa.Text, info=unique_across_shards()),
        info=sharded_by("id"),
    )
    with pytest.raises(errors.BadDeclaration, match="unique across shards") as refused:
        across_shards_of(table)
    assert "unique_directory" in refused.value.fix


@pytest.mark.parametrize(
    ("key", "key_type"),
    [(42, "int8"), (-1, "int2"), ("Ünï'code", "text"), (b"\x00\xff", "bytea")],
)
def test_keys_survive_being_text(key: Any, key_type: str) -> None:
    assert owner_key(owner_text(key), key_type) == key
