"""A pinned session's point select and insert against a plain Session, where the network takes 1 ms each way.

A process between client and server holds what it passes on for that long. BEGIN and the ownership check travel with the first
statement, so a transaction of ours waits for one answer less than a plain one.
"""

from __future__ import annotations

import multiprocessing
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker
from tests.bench.bench_session import CALLS, COLD, ROWS, Base, Item, measure, plain_engine

from shardwright import Cluster, engines
from shardwright.catalog import models
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready

DELAY, TURNS = 0.001, 24


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Carry what one side sends to the other, each piece `DELAY` seconds later."""
    pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def send() -> None:
        while True:
            due, piece = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                sink.sendall(piece) if piece else sink.shutdown(socket.SHUT_WR)
            except OSError:
                return
            if not piece:
                return

    threading.Thread(target=send, daemon=True).start()
    while True:
        try:
            piece = source.recv(65536)
        except OSError:
            piece = b""
        pieces.put((time.monotonic() + DELAY, piece))
        if not piece:
            return


def serve(listening: socket.socket, port: int) -> None:
    """Connect whoever comes with the server on a port."""
    while True:
        client, _ = listening.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pair in ((client, server), (server, client)):
            threading.Thread(target=pass_on, args=pair, daemon=True).start()


def main() -> None:
    """Start a server behind a slow line, and measure."""
    directory = Path(tempfile.mkdtemp(prefix="sw-"))
    directory.chmod(0o755)
    server = Server(directory / "server", fsync=False, remove_with_owner=directory)
    server.start()
    listening = socket.create_server(("127.0.0.1", 0))
    line = multiprocessing.get_context("fork").Process(target=serve, args=(listening, server.port), daemon=True)
    line.start()
    try:
        run(server, listening.getsockname()[1])
    finally:
        line.kill()
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


def run(server: Server, port: int) -> None:
    """Measure through a port."""
    for name in ("catalog", "s1"):
        server.create_database(name)
    slow = f"postgresql://postgres@127.0.0.1:{port}/s1"
    make_ready(server.dsn("catalog"), {"s1": slow})
    with engines.connect_catalog(server.dsn("catalog")) as catalog:
        models.register(catalog, Base.metadata)
    with psycopg.connect(server.dsn("s1"), autocommit=True) as connection:
        connection.execute("INSERT INTO items SELECT n, 'name', n FROM generate_series(0, %s) AS n", (ROWS - 1,))
        connection.execute("VACUUM ANALYZE items")
    statement = sa.select(Item.name).where(Item.id == sa.bindparam("key"))

    def selecting(make: Callable[[int], Session]) -> Callable[[int], None]:
        def work(n: int) -> None:
            with make(n % ROWS) as session:
                session.execute(statement, {"key": n % ROWS}).one()

        return work

    def inserting(make: Callable[[int], Session]) -> Callable[[int], None]:
        def work(n: int) -> None:
            with make(ROWS + n) as session:
                session.add(Item(id=ROWS + n, name="new", score=n))
                session.commit()

        return work

    plain = plain_engine(slow)
    with Cluster.connect(server.dsn("catalog")) as cluster:
        ordinary, ours = sessionmaker(plain), cluster.sessionmaker()
        makers: dict[str, Callable[[int], Session]] = {
            "plain Session": lambda _: ordinary(),
            "shardwright, pinned": lambda key: ours(key=key),
            "shardwright, routed": lambda _: ours(),
        }
        print(f"  {DELAY * 1e3:g} ms each way, {TURNS * CALLS} calls after {COLD} cold ones a turn")
        measure("point select", {name: selecting(make) for name, make in makers.items()}, TURNS)
        measure("insert", {name: inserting(make) for name, make in makers.items()}, TURNS)
    plain.dispose()


if __name__ == "__main__":
    main()
