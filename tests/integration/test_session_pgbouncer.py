"""Sessions through a real PgBouncer in transaction mode: nothing may outlive a transaction."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from fix_sessions import Order, Shop, User, in_thread, until
from shardwright import errors
from shardwright.session.breaker import BreakerOptions

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = [
    pytest.mark.newest_postgres,
    pytest.mark.every_driver,
    pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer on this machine"),
]


@pytest.fixture
def pooler(shop: Shop, workdir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A PgBouncer with two server connections to each shard; the catalog leads there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = []
    for name, dsn in shop.dsns.shards.items():
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        lines.append(
            f"{name} = host={parts['host']} port={parts['port']} dbname={parts['dbname']} user={parts['user']}"
        )
    databases = "\n".join(lines)
    (workdir / "users.txt").write_text('"postgres" ""\n')
    (workdir / "pgbouncer.ini").write_text(
        f"[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\nauth_file = {workdir}/users.txt\npool_mode = transaction\ndefault_pool_size = 2\n"
        f"max_client_conn = 100\nlogfile = {workdir}/log\npidfile = {workdir}/pid\n"
    )
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(workdir, user)
    assert PGBOUNCER is not None
    running = subprocess.Popen(
        [PGBOUNCER, "-q", str(workdir / "pgbouncer.ini")], user=user if os.geteuid() == 0 else None
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (workdir / "log").read_text()
                time.sleep(0.02)
        for name in shop.dsns.shards:
            through = psycopg.conninfo.make_conninfo("", host="127.0.0.1", port=port, dbname=name, user="postgres")
            shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = %s", (through, name))
        yield running
    finally:
        running.send_signal(signal.SIGCONT)
        running.terminate()
        running.wait(20)


@pytest.fixture
def pooled(shop: Shop, pooler: subprocess.Popen[bytes]) -> Shop:
    """The shop, whose shards are reached through PgBouncer."""
    return shop


def test_sessions_work_through_pgbouncer_in_transaction_mode(pooled: Shop) -> None:
    cluster = pooled.connect()
    sessions = cluster.sessionmaker()
    keys = list(range(1, 31))
    # More sessions at a time than there are server connections: each transaction is on whichever is free.
    for key in keys:
        with sessions(key=key) as session:
            session.add(User(id=key, name=f"user {key}", orders=[Order(n=n, amount=n) for n in range(3)]))
            session.commit()
            session.get_one(User, key).score = key
            session.commit()
            with session.begin_nested():
                session.execute(sa.update(User).where(User.id == key).values(country="de"))
            session.commit()
    for _ in range(10):
        for key in keys:
            with sessions(key=key) as session:
                assert session.scalar(sa.select(User.name).where(User.id == key)) == f"user {key}"
    with sessions() as session:
        assert session.scalar(sa.select(sa.func.sum(User.score))) == sum(keys)
        assert [user.id for user in session.scalars(sa.select(User).order_by(User.id))] == keys
    for shard in ("s1", "s2"):
        kept = "SELECT count(*) FROM pg_prepared_statements"
        with cluster.engine(shard).connect() as connection:
            assert connection.scalar(sa.text(kept)) == 0
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"  # fmt: skip # noqa: E501
        assert pooled.ask(shard, locks) == 0


def test_the_check_works_through_pgbouncer(pooled: Shop) -> None:
    cluster = pooled.connect(map_wait=0.3)
    key = pooled.key_on("s1")
    sessions = cluster.sessionmaker()
    with sessions.begin() as session:
        session.add(User(id=key, name="x"))
    pooled.hand_over(key, "s2")
    pooled.shard("s2").execute("UPDATE users SET name = 'y' WHERE id = %s", (key,))
    with sessions(key=key) as session:
        assert session.get_one(User, key).name == "y"
    pooled.fence(key)
    with sessions(key=key) as session, pytest.raises(errors.MapTimeout):
        session.get(User, key)


def test_routed_sessions_and_scatters_work_through_pgbouncer(pooled: Shop) -> None:
    """Many at a time, each holding transactions on both shards, over two server connections to each."""
    cluster = pooled.connect(pool_size=8)
    sessions = cluster.sessionmaker()
    here, there = pooled.key_on("s1"), pooled.key_on("s2")
    with sessions() as session:
        session.add_all([User(id=here, name="a", score=1), Order(user_id=here, n=1, amount=5)])
        session.commit()
        session.add_all([User(id=there, name="b", score=2), Order(user_id=there, n=1, amount=7)])
        session.commit()

    def read() -> None:
        for level in ("READ COMMITTED", "REPEATABLE READ"):
            with sessions(isolation_level=level) as session:
                wanted = sa.select(User.name).where(User.id.in_([here, there])).order_by(User.score.desc())
                assert session.scalars(wanted).all() == ["b", "a"]
                assert session.scalar(sa.select(sa.func.sum(Order.amount)).join(User, User.id == Order.user_id)) == 12
                assert session.get_one(User, here).name == "a"
                session.execute(sa.update(User).where(User.id == there).values(country="de"))
                session.rollback()

    with ExitStack() as together:
        done = [together.enter_context(in_thread(read)) for _ in range(8)]
    assert not [one["error"] for one in done if "error" in one]
    pooled.hand_over(here, "s2")
    with sessions() as session:
        assert session.scalar(sa.select(sa.func.sum(Order.amount))) == 12
    for shard in ("s1", "s2"):
        assert cluster.engine(shard).pool.checkedout() == 0  # type: ignore[attr-defined]
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"  # fmt: skip # noqa: E501
        assert pooled.ask(shard, locks) == 0


def test_a_pooler_that_hangs_is_found_out(pooled: Shop, pooler: subprocess.Popen[bytes]) -> None:
    cluster = pooled.connect(hang_timeout=0.2, connect_timeout=2, breaker=BreakerOptions(3, 0.05, 0.1))
    sessions, key = cluster.sessionmaker(), pooled.key_on("s1")

    def ask() -> bool:
        with sessions(key=key) as session:
            return session.get(User, key) is None

    assert ask()
    pooler.send_signal(signal.SIGSTOP)
    with pytest.raises(errors.ShardUnavailable):
        ask()
    pooler.send_signal(signal.SIGCONT)

    def is_served() -> bool:
        try:
            return ask()
        except errors.ShardUnavailable:
            return False

    until(is_served, "it is not called again")


def test_a_slow_statement_through_pgbouncer_is_no_hanging_shard(pooled: Shop) -> None:
    """The pooler has another server connection, over which it answers when it is asked."""
    cluster = pooled.connect(hang_timeout=0.2, connect_timeout=2)
    with cluster.sessionmaker()(key=pooled.key_on("s1")) as session:
        assert session.scalar(sa.text("SELECT count(pg_sleep(1))")) == 1
