"""COMMITs whose answer is lost: reported as unknown, never sent again, and found out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from fix_sessions import Order, Shop, User
from shardwright import ShardSession, errors

pytestmark = [pytest.mark.every_driver, pytest.mark.newest_postgres]


class Wire:
    """A proxy in front of a server, which can lose what is said at COMMIT.

    Args:
        target: host and port of the server.
        deliver: whether the COMMIT still reaches the server.
    """

    def __init__(self, target: tuple[str, int], *, deliver: bool) -> None:
        self._target = target
        self._deliver = deliver
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_lossy = False
        #: COMMITs that came from clients
        self.commits = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for source, sink, from_client in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pump, args=(source, sink, client, server, from_client))
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, client: socket.socket, server: socket.socket, up: bool
    ) -> None:
        lost = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if up and b"COMMIT\0" in data:
                    self.commits += 1
                    if self.is_lossy:
                        lost = True
                        # The client hears nothing any more; the server finishes, or never hears it at all.
                        with contextlib.suppress(OSError):
                            client.shutdown(socket.SHUT_RDWR)
                        if not self._deliver:
                            break
                sink.sendall(data)
        if lost and self._deliver:
            # Until the server has answered and closed: then the outcome is decided.
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            return
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)


@contextlib.contextmanager
def wire_to(shop: Shop, shard: str, *, deliver: bool) -> Iterator[Wire]:
    """Put a proxy between routers and a shard."""
    parts = psycopg.conninfo.conninfo_to_dict(shop.dsns.shards[shard])
    wire = Wire((str(parts["host"]), int(parts["port"])), deliver=deliver)
    through = psycopg.conninfo.make_conninfo(shop.dsns.shards[shard], host="127.0.0.1", port=wire.port)
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = %s", (through, shard))
    try:
        yield wire
    finally:
        wire.close()


@pytest.mark.parametrize("deliver", [True, False])
def test_a_commit_that_is_not_answered_is_unknown_and_found_out(shop: Shop, deliver: bool) -> None:
    key = shop.key_on("s1")
    with wire_to(shop, "s1", deliver=deliver) as wire, shop.connect() as cluster:
        calls: list[int] = []

        def work(session: ShardSession) -> None:
            calls.append(1)
            session.add(User(id=key, name="x"))

        wire.is_lossy = True
        with pytest.raises(errors.CommitUnknown) as caught:
            cluster.run(key, work)
        wire.is_lossy = False
        assert calls == [1]
        assert wire.commits == 1
        assert caught.value.facts["shard"] == "s1"
        assert caught.value.facts["xid"] > 0
        assert not caught.value.retriable
        assert cluster.commit_outcome(caught.value) == ("committed" if deliver else "aborted")
        assert shop.ask("s1", "SELECT count(*) FROM users") == (1 if deliver else 0)


WRITES = {
    "flush": lambda session, key: (session.add(User(id=key, name="x")), session.flush()),
    "insert": lambda session, key: session.execute(sa.insert(User).values(id=key, name="x")),
    "many": lambda session, key: session.execute(
        sa.insert(Order.__table__), [{"user_id": key, "n": n, "amount": 1} for n in range(5)]
    ),
    "text": lambda session, key: session.execute(sa.text(f"INSERT INTO users (id, name) VALUES ({key}, 'x')")),
    "cte": lambda session, key: session.execute(
        sa.text(f"WITH a AS (INSERT INTO users (id, name) VALUES ({key}, 'x') RETURNING id) SELECT * FROM a")
    ),
    "after a read": lambda session, key: (
        session.get(User, key),
        session.execute(sa.insert(User).values(id=key, name="x")),
    ),
}


def test_the_number_is_known_for_every_way_of_writing(shop: Shop) -> None:
    with wire_to(shop, "s1", deliver=True) as wire, shop.connect() as cluster:
        for at, (name, write) in enumerate(WRITES.items()):
            key = shop.key_on("s1", at)
            with cluster.sessionmaker()(key=key) as session:
                write(session, key)
                number = session.scalar(sa.text("SELECT pg_current_xact_id()::text::bigint"))
                wire.is_lossy = True
                with pytest.raises(errors.CommitUnknown) as caught:
                    session.commit()
                wire.is_lossy = False
                assert caught.value.facts["xid"] == number, name
                assert cluster.commit_outcome(caught.value) == "committed"
                session.rollback()
                # The session goes on, on a new connection.
                assert session.scalar(sa.text("SELECT 1")) == 1


def test_without_a_number_the_outcome_stays_unknown(shop: Shop) -> None:
    key = shop.key_on("s1")
    with (
        wire_to(shop, "s1", deliver=True) as wire,
        shop.connect() as cluster,
        cluster.sessionmaker()(key=key) as session,
    ):
        session.get(User, key)
        wire.is_lossy = True
        with pytest.raises(errors.CommitUnknown) as caught:
            session.commit()
        wire.is_lossy = False
        assert "xid" not in caught.value.facts
        assert cluster.commit_outcome(caught.value) == "unknown"
        number = shop.ask("s1", "SELECT pg_current_xact_id()::text::bigint")
        here = errors.CommitUnknown("x", shard="s1", xid=number, timeline=1)
        assert cluster.commit_outcome(here) == "committed"
        # The same number on another timeline was another transaction's.
        another = errors.CommitUnknown("x", shard="s1", xid=number, timeline=99)
        assert cluster.commit_outcome(another) == "unknown"
        beyond = errors.CommitUnknown("x", shard="s1", xid=2**40, timeline=1)
        assert cluster.commit_outcome(beyond) == "unknown"


def test_a_commit_that_the_server_refuses_is_no_unknown_one(shop: Shop) -> None:
    key = shop.key_on("s1")
    shop.shard("s1").execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'not now'; END$$"
    )
    shop.shard("s1").execute(
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with shop.connect().sessionmaker()(key=key) as session:
        session.add(User(id=key, name="x"))
        with pytest.raises(sa.exc.DBAPIError, match="not now"):
            session.commit()


def test_reading_elsewhere_does_not_spoil_a_commit(shop: Shop) -> None:
    """A routed session wrote on one shard and read on another; losing the reader's COMMIT loses nothing."""
    writes, reads = shop.key_on("s2"), shop.key_on("s1")
    with wire_to(shop, "s1", deliver=True) as wire, shop.connect() as cluster:
        wire.is_lossy = True
        with cluster.sessionmaker()() as session:
            assert session.get(User, reads) is None
            session.add(User(id=writes, name="x"))
            session.commit()
        assert shop.ask("s2", "SELECT count(*) FROM users") == 1
