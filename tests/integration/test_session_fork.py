"""A process that forks after it has connected: the child has pools and threads of its own, the parent notices nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fix_sessions import Shop

pytestmark = pytest.mark.newest_postgres

PROGRAM = """
import gc, os, sys, threading, time, traceback
import sqlalchemy as sa
from fix_sessions import User
from shardwright import Cluster, engines, errors

dsn, here, there = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cluster = Cluster.connect(dsn, refresh="listen", poll_seconds=0.1, application="forks", pool_idle=60)
sessions = cluster.sessionmaker()
PID = sa.text("SELECT pg_backend_pid()")

def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def routers():
    with engines.connect_catalog(dsn) as catalog:
        return dict(catalog.execute("SELECT pid, map_version FROM shardwright.routers").fetchall())

def in_child(held, idle):
    # The parent's transaction is none of ours: using it fails, and nothing of that reaches the server.
    try:
        held.execute(sa.select(User).where(User.id == here))
    except errors.ShardUnavailable:
        held.rollback()
    else:
        raise AssertionError("the parent's connection was used")
    # The same session goes on, on a connection of the child's.
    assert held.scalar(PID) not in idle
    held.rollback()
    with sessions(key=there) as session:
        session.add(User(id=there, name="child"))
        session.commit()
        assert session.scalar(PID) not in idle
    with sessions() as session:
        # In threads: the parent's are not here.
        assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 1
    until(lambda: set(routers()) == {os.getppid(), os.getpid()})
    names = {thread.name for thread in threading.enumerate()}
    assert {"shardwright-map", "shardwright-pools"} <= names, names
    gc.collect()
    cluster.close()
    until(lambda: set(routers()) == {os.getppid()})

with sessions(key=here) as one, sessions(key=there) as two:
    idle = {one.scalar(PID), two.scalar(PID)}
with sessions() as session:
    session.scalar(sa.select(sa.func.count()).select_from(User))
until(lambda: set(routers()) == {os.getpid()})
held = sessions(key=here)
held.add(User(id=here, name="parent"))
held.flush()
# A lock that is held by a thread which the child will not have.
cluster._engines._making.acquire()
cluster._router._asking.acquire()
child = os.fork()
if child == 0:
    try:
        in_child(held, idle)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
cluster._engines._making.release()
cluster._router._asking.release()
assert os.waitpid(child, 0)[1] == 0
# The parent's transaction is as it was, and so are its connections.
held.commit()
with sessions(key=here) as one, sessions(key=there) as two:
    assert {one.scalar(PID), two.scalar(PID)} == idle
with sessions() as session:
    assert session.scalar(sa.select(sa.func.count()).select_from(User)) == 2
cluster.close()
assert routers() == {}
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_the_child_begins_anew_and_the_parent_goes_on(shop: Shop) -> None:
    words = [shop.dsns.catalog, str(shop.key_on("s1")), str(shop.key_on("s2"))]
    # Python warns of forks where there are threads; here that is what is tried.
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
