"""Requests for a shard that serves, while another one hangs, against the same requests while both serve.

Two servers on this machine, clients in threads with a short pause after each request, so that they do not fight for the
processor. The other shard's server is stopped by SIGSTOP and goes on in turns; what is measured includes the time until it
has been found out.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright import Cluster, engines, errors, sharded_by
from shardwright.catalog import models
from shardwright.servers import Server, stop_all
from shardwright.session.breaker import BreakerOptions
from shardwright.testing.clusters import make_ready

CLIENTS, ROUNDS, SECONDS, PAUSE = 4, 4, 6.0, 0.005


class Base(DeclarativeBase):
    """Of the benchmark's models."""


class Item(Base):
    """One row a shard."""

    __tablename__ = "items"
    __table_args__ = ({"info": sharded_by("id")},)
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]


def main() -> None:
    """Print medians and 99th percentiles of both, and how soon the hanging shard's requests fail."""
    directory = Path(tempfile.mkdtemp(prefix="sw-"))
    directory.chmod(0o755)
    servers = {name: Server(directory / name, remove_with_owner=directory) for name in ("s1", "s2")}
    try:
        for server in servers.values():
            server.start()
        dsns = {name: server.create_database(name) for name, server in servers.items()}
        catalog = servers["s2"].create_database("catalog")
        make_ready(catalog, dsns)
        with engines.connect_catalog(catalog) as connection:
            models.register(connection, Base.metadata)
        options = {"hang_timeout": 1.0, "connect_timeout": 2.0, "breaker": BreakerOptions(3, 0.5, 2.0)}
        with Cluster.connect(catalog, **options) as cluster:  # type: ignore[arg-type]
            _measure(cluster, servers["s1"])
    finally:
        servers["s1"].resume()
        stop_all(servers.values(), "immediate")
        shutil.rmtree(directory)


def _measure(cluster: Cluster, hanging: Server) -> None:
    keys = {cluster.map.route("users", key).shard: key for key in range(100)}
    for shard, key in keys.items():
        cluster.run(key, lambda session, key=key, shard=shard: session.add(Item(id=key, name=shard)))  # type: ignore[misc]
    phase, stop = ["warm"], threading.Event()
    times: dict[tuple[str, str], list[float]] = {}

    def ask(shard: str) -> None:
        while not stop.is_set():
            during, start = phase[0], time.perf_counter()
            try:
                with cluster.sessionmaker()(key=keys[shard]) as session:
                    session.execute(sa.select(Item).where(Item.id == keys[shard])).all()
                outcome = shard
            except errors.ShardUnavailable:
                outcome = f"{shard} refused"
            times.setdefault((during, outcome), []).append(time.perf_counter() - start)
            time.sleep(PAUSE)

    threads = [threading.Thread(target=ask, args=(shard,)) for shard in keys for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        for _ in range(ROUNDS):
            phase[0] = "both serve"
            time.sleep(SECONDS)
            hanging.pause()
            phase[0] = "one hangs"
            time.sleep(SECONDS)
            phase[0] = "between"
            hanging.resume()
            time.sleep(3)
    finally:
        stop.set()
        hanging.resume()
        for thread in threads:
            thread.join()
    before, during = times["both serve", "s2"], times["one hangs", "s2"]
    print("\nRequests for one shard while another hangs")
    for name, found in (("both serve", before), ("one hangs", during)):
        cut = statistics.quantiles(found, n=100)
        print(f"  {name:12} {len(found):6} requests  median {cut[49] * 1e3:6.2f} ms  p99 {cut[98] * 1e3:6.2f} ms")
    p99 = [statistics.quantiles(found, n=100)[98] for found in (before, during)]
    print(f"  ratio of p99: {p99[1] / p99[0]:.2f} (goal: below 1.2)")
    refused = times["one hangs", "s1 refused"]
    cut = statistics.quantiles(refused, n=100)
    print(
        f"  for the one that hangs: {len(refused)} refused, median {cut[49] * 1e3:.2f} ms, slowest {max(refused):.1f} s"
    )


if __name__ == "__main__":
    main()
