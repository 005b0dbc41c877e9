"""kill -9 at every step of writing a row with a unique value: the row and its value's row in the directory stay together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from fix_unique import People, Person
from shardwright import engines
from shardwright.catalog import recovery

STEPS = {
    "tx.registered": False,
    "tx.half_prepared": False,
    "tx.prepared": False,
    "tx.decided": True,
    "tx.half_ended": True,
}
WHAT = ("add", "change", "delete")


def test_a_row_and_its_value_stay_together(people: People) -> None:
    cluster = people.connect()
    # Pairs of a row and an address on different shards, so that two of them are written on each time.
    keys = iter([key for key in range(1, 2000) if cluster.map.route("users", key).shard == "s1"])
    addresses = iter(a for a in (f"{n}@x" for n in range(2000)) if cluster.map.route("values", a).shard == "s2")
    wanted: dict[str, int] = {}
    begun: list[tuple[str, str, bool, int, str, str]] = []
    with cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        for failpoint, is_done in STEPS.items():
            for what in WHAT:
                key, old, new = next(keys), next(addresses), next(addresses)
                begun.append((failpoint, what, is_done, key, old, new))
                if what != "add":
                    session.add(Person(id=key, email=old))
    for _, what, is_done, key, old, new in begun:
        had = {} if what == "add" else {old: key}
        wanted |= ({new: key} if what != "delete" else {}) if is_done else had
    ended_by = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "drive_person.py"), people.dsns.catalog],
        input=json.dumps([(failpoint, what, key, new) for failpoint, what, _, key, _, new in begun]),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    for (failpoint, what, *_), code in zip(begun, json.loads(ended_by.stdout), strict=True):
        assert code == -signal.SIGKILL, f"{failpoint} was not reached in {what}"
    with engines.connect_catalog(people.dsns.catalog, "test") as catalog:
        ended, unreachable = recovery.recover(catalog, older_than=0)
    assert not unreachable
    assert not any(one.left for one in ended)
    assert people.check() == wanted
    # No value is lost: each that nobody has can be had.
    free = [address for _, _, _, _, old, new in begun for address in (old, new) if address not in wanted]
    with cluster.sessionmaker(cross_shard="two_phase")() as session, session.begin():
        session.add_all(Person(id=5000 + nth, email=address) for nth, address in enumerate(free))
    assert set(people.check()) == {address for _, _, _, _, old, new in begun for address in (old, new)}
