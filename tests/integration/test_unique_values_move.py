"""A reshard of people and of the directory of their addresses, while both are written in transactions on several shards."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from fix_servers import Dsns
from fix_sessions import in_thread
from fix_unique import People, Person, at_work, ready_with_people
from shardwright import Cluster, engines
from shardwright.catalog import maps, shards
from shardwright.ids import Id
from shardwright.reshard import operate
from shardwright.session.unique_mending import compare, uniques_of

pytestmark = [pytest.mark.newest_postgres, pytest.mark.slow, pytest.mark.timeout(240)]

ADDRESSES = [f"{nth}@x" for nth in range(40)]
[EMAIL] = uniques_of(Person.metadata)


class Writer(threading.Thread):
    """Adds people with ids of shards and of the process, changes and deletes them; remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.chance = cluster, random.Random(seed)
        self.stop = threading.Event()
        self.done, self.failure = 0, None
        #: ids that were given out
        self.ids: list[int] = []
        #: people as they were acknowledged last; each writer has its own
        self.people: dict[int, str | None] = {}

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.act()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failure = error

    def act(self) -> None:
        address = self.chance.choice([*ADDRESSES, None])
        known = self.chance.choice(list(self.people)) if self.people and self.chance.random() < 0.7 else None
        if known is None:
            key = self.new_id()

            def add(session: Session) -> None:
                session.add(Person(id=key, email=address))

            self.tell(key, add, address)
        elif self.chance.random() < 0.3:

            def delete(session: Session) -> None:
                session.delete(session.get_one(Person, known))

            if self.tell(known, delete, None):
                del self.people[known]
        else:

            def change(session: Session) -> None:
                session.get_one(Person, known).email = address

            self.tell(known, change, address)

    def new_id(self) -> int:
        if self.chance.random() < 0.5:
            found = self.cluster.next_id()
        else:
            shard = self.chance.choice(["s1", "s2"])
            with self.cluster.sessionmaker()() as session:
                found = session.scalar(sa.text("SELECT shardwright.next_id()"), bind_arguments={"shard": shard})
        self.ids.append(found)
        return found

    def tell(self, key: int, work: Any, address: str | None) -> bool:
        try:
            self.cluster.run_across(work, deadline=60, lock_timeout=0.3)
        except sa.exc.IntegrityError:
            return False
        self.people[key] = address
        self.done += 1
        return True

    def wait_for(self, more: int) -> None:
        """Until so many more transactions were acknowledged."""
        wanted = self.done + more
        while self.done < wanted and self.is_alive():
            self.join(0.02)
        assert self.failure is None


def go_on(cluster: Cluster, writers: list[Writer]) -> None:
    """Until each has written more; meanwhile nothing is wrong with the directory."""
    assert not compare(cluster, EMAIL, mend=False).differs
    for writer in writers:
        writer.wait_for(5)


def test_a_directory_moves_with_its_people(cluster_dsns: Any, seed: int) -> None:
    dsns: Dsns = cluster_dsns(3)
    two = Dsns(dsns.catalog, {name: dsns.shards[name] for name in ("s1", "s2")})
    with ready_with_people(two) as people, people.connect() as cluster:
        writers = [Writer(cluster, seed + nth) for nth in range(3)]
        with at_work(writers):
            go_on(cluster, writers)
            with engines.connect_catalog(dsns.catalog, "test") as catalog:
                shards.add_shard(catalog, "s3", dsns.shards["s3"])
                operation = operate.start(catalog, operate.plan(catalog, add="s3"))
            operate.drive(dsns.catalog, operation, "verified")
            go_on(cluster, writers)
            with in_thread(lambda: [compare(cluster, EMAIL, mend=False) for _ in range(5)]) as compared:
                operate.drive(dsns.catalog, operation, "switched")
            assert [one for one in compared["result"] if one.differs] == []
            go_on(cluster, writers)
            operate.drive(dsns.catalog, operation, "done")
            go_on(cluster, writers)
        with engines.connect_catalog(dsns.catalog, "test") as catalog:
            shard_map = maps.load_map(catalog)
        assert {one.shard for one in shard_map.ranges if one.keyspace == "values"} == {"s1", "s2", "s3"}
        everywhere = People(dsns, people.stack)
        found = everywhere.check()
        acknowledged = {key: email for writer in writers for key, email in writer.people.items()}
        assert found == {email: key for key, email in acknowledged.items() if email is not None}
        assert everywhere.everywhere("SELECT id FROM people") == sorted((key,) for key in acknowledged)
        for name in dsns.shards:
            for (key,) in everywhere.ask(name, "SELECT id FROM people"):
                assert shard_map.route("users", key).shard == name
            for (value,) in everywhere.ask(name, "SELECT value FROM unique_values"):
                assert shard_map.route("values", value).shard == name
        given = [one for writer in writers for one in writer.ids]
        assert len(set(given)) == len(given)
        assert len({Id.read(one).generator for one in given}) == 3, "two shards' and the process's"
