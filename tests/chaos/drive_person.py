"""Sessions for chaos tests: each adds, changes or deletes a person with a unique address, under a failpoint of its own.

Reads ``[[failpoint, what, key, address], ..]`` from stdin and prints how each ended, as `os.waitstatus_to_exitcode` says it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fix_unique import Person
from shardwright import Cluster


def act(what: str, key: int, email: str) -> None:
    with (
        Cluster.connect(sys.argv[1], refresh="never", application="people") as cluster,
        cluster.sessionmaker(cross_shard="two_phase")() as session,
        session.begin(),
    ):
        if what == "add":
            session.add(Person(id=key, email=email))
        elif what == "change":
            session.get_one(Person, key).email = email
        else:
            session.delete(session.get_one(Person, key))


def main() -> int:
    children = []
    for failpoint, what, key, email in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            os.environ["SHARDWRIGHT_FAILPOINT"] = f"{failpoint}:crash"
            act(what, key, email)
            os._exit(0)
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
