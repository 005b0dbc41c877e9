"""The demo of time partitions: a table is converted, split and moved under load, and a platform's days go by on three shards.

Real servers, a real worker process for the move, and clients in processes of their own. What the result says was read
from the clients' records, from the servers and from the catalog; which windows there must be is computed by another
calendar than the one that makes them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import psycopg

from shardwright import engines
from shardwright.catalog import keyspaces, migrations, roster, shards, tables
from shardwright.catalog.models import register
from shardwright.demo import dataset
from shardwright.demo.operator import Audience
from shardwright.demo.partitions import leftovers, models, report, restoring
from shardwright.demo.partitions.days import Days
from shardwright.demo.partitions.flights import Flights, all_flights
from shardwright.demo.partitions.promise import PROMISES, midnight
from shardwright.demo.partitions.report import Result
from shardwright.demo.partitions.traffic import Records
from shardwright.servers import LocalCluster, Server

#: The shard that joins, and takes its share of the flights.
NEW: Final = "s3"
#: The first simulated day: a leap day and a week 53 are not far.
FIRST: Final = midnight(2019, 11, 15)
GRACE: Final = timedelta(days=2)
#: Days that go by one by one whatever the time.
_LEAST: Final = 20
#: Seconds for what comes after those: a leap to where windows come to their end, a restore, the judgement.
_AFTER_S: Final = 20.0

MONTHS, WEEKS, _ = PROMISES


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        pg_bin: directory of PostgreSQL's programs; None takes the embedded package.
        seed: of all that is left to chance.
        keep: a directory in which the cluster stays, running, with the clients' records; None leaves nothing.
        seconds: how long it may take altogether: days go by one by one as long as there is time, and 20 in any case.
        days: how many go by one by one, whatever the time; None lets the time decide.
        flights: about so many flights; None takes all.
        months: go on to where the first month of the table that keeps months comes to its end.
        settle: seconds for which the clients work alone, before and between the steps.
    """

    pg_bin: Path | None = None
    seed: int = 1
    keep: Path | None = None
    seconds: float = 150.0
    days: int | None = None
    flights: int | None = None
    months: bool = True
    settle: float = 1.0


def run(options: Options, audience: Audience) -> Result:
    """Run the demo.

    Args:
        options: what was chosen.
        audience: is told how it goes.

    Returns:
        The result; whether every promise held is its `ok`.

    Raises:
        MissingExtra, UnfitServer, BadOption: it cannot be started here.
        InvariantFailed: a step or one of the clients stopped.
    """
    with Demo(options, audience) as demo:
        demo.perform()
        return demo.judge()


class Demo:
    """One run of the demo. As a context manager it ends all that it started.

    Attributes:
        cluster: its servers.
    """

    def __init__(self, options: Options, audience: Audience) -> None:
        """Read the data set and start the servers; the tables are not there yet.

        Args:
            options: what was chosen.
            audience: is told how it goes.

        Raises:
            MissingExtra, UnfitServer, BadOption: it cannot be started here.
        """
        self._started = time.monotonic()
        self._options = options
        self._audience = audience
        with contextlib.ExitStack() as stack:
            audience.stage("reading the data set, and starting four PostgreSQL servers: a catalog and three shards")
            with ThreadPoolExecutor(1) as pool:
                reading = pool.submit(dataset.load)
                self.cluster = stack.enter_context(_servers(options))
            data = reading.result()
            self._dsn = self.cluster.catalog.dsn()
            self._catalog = stack.enter_context(engines.connect_catalog(self._dsn, "shardwright demo"))
            migrations.apply(self._catalog, "catalog")
            directory = self.cluster.directory / "records"
            directory.mkdir()
            rows = all_flights(data, options.flights, options.seed)
            self._flights = Flights(self._catalog, self._dsn, rows, directory, audience, seed=options.seed)
            self._before: dict[str, frozenset[leftovers.Thing]] = {}
            self._records = Records()
            self._stack = stack.pop_all()

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def perform(self) -> None:
        """Do everything that is to be judged.

        Raises:
            InvariantFailed: a step or one of the clients stopped.
        """
        self._load()
        with self._clients():
            self._convert()
            self._split()
            self._reshard()
        self._simulate()

    # ------------------------------------------------------------ flights

    def _load(self) -> None:
        self._audience.stage("a cluster of two shards, and all flights in one ordinary table")
        for name in self.cluster.shards:
            if name != NEW:
                self._add(name)
        self._flights.make()

    def _add(self, name: str) -> None:
        """A shard joins; what is there at that moment is written down."""
        shards.add_shard(self._catalog, name, self.cluster.dsns()[name])
        with engines.connect_shard(roster.get_shard(self._catalog, name), "shardwright demo") as connection:
            self._before[name] = leftovers.take_down(connection)

    @contextlib.contextmanager
    def _clients(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self._audience.stage("an application starts to work: two writers, a reader, a bystander on each shard")
            self._flights.start_clients(stack)
            self._flights.work_for(self._options.settle)
            yield
            self._records = self._flights.stop_clients()

    def _convert(self) -> None:
        self._audience.stage("converting: on both shards the table becomes the first partition of one in months")
        for one in self._flights.convert().shards:
            self._audience.fact(
                f"{one.shard}: checked in {one.validate_seconds or 0:.2f} s, locked for {one.lock_ms or 0:.0f} ms"
            )
        self._flights.work_for(self._options.settle)

    def _split(self) -> None:
        self._audience.stage("splitting: all flights are cut into months, while they are read and written")
        done = self._flights.split()
        for one in done.shards:
            self._audience.fact(
                f"{one.shard}: {one.rows:,} rows into {done.pieces} partitions, copied at {one.rows_per_s or 0:,.0f} rows/s, "
                f"{one.replayed_keys:,} changed keys replayed; locked for {one.lock_ms or 0:.0f} ms"
            )
        self._flights.work_for(self._options.settle)

    def _reshard(self) -> None:
        self._audience.stage(f"adding shard {NEW}: it gets the table with all its partitions, and then its share")
        self._add(NEW)
        self._flights.join()
        self._flights.reshard(NEW)
        self._flights.work_for(self._options.settle)

    # ------------------------------------------------------------ days

    def _simulate(self) -> None:
        tell = self._audience
        tell.stage("a platform's three tables on three shards: a month, a week and a day in each partition")
        self._stack.enter_context(_without_fsync(list(self.cluster.servers.values())))
        keyspaces.create_keyspace(self._catalog, models.USERS, key_type="int8", shards=sorted(self.cluster.shards))
        archive = self.cluster.directory / "archive"
        archive.mkdir()
        register(self._catalog, models.platform({WEEKS.table: str(archive)}, grace=f"{GRACE.days} days"))
        self._days = days = self._stack.enter_context(
            Days(self._catalog, self._dsn, FIRST, GRACE, seed=self._options.seed, on_progress=tell.check)
        )
        days.begin()
        tell.stage("days go by: rows arrive, the clock is set to midnight, a tick runs, and all is looked at")
        while self._is_time(days.ticked):
            days.next_day()
            tell.live(f"{days.now:%Y-%m-%d}: {days.arrived:,} rows", days.ticked, self._options.days or 0)
        tell.fact(f"{days.ticked} days one by one, {days.arrived:,} rows; then to where windows come to their end")
        for promise in (WEEKS, MONTHS) if self._options.months else (WEEKS,):
            days.see_out(promise)
        tell.stage(f"restoring the first archived window of {WEEKS.table}")
        self._restored = restoring.bring_back(self._catalog, self._dsn, days, WEEKS, on_progress=tell.check)

    def _is_time(self, days: int) -> bool:
        """Whether one more day may go by."""
        if self._options.days is not None:
            return days < self._options.days
        return days < _LEAST or time.monotonic() - self._started < self._options.seconds - _AFTER_S

    # ------------------------------------------------------------ the judgement

    def judge(self) -> Result:
        """Compare every row and every window on every server, look for what was left behind, and compute the result."""
        tell = self._audience
        tell.stage("comparing every flight with the data set and the acknowledged writes, and all that days brought")
        originals, tally = self._flights.compare(self._records)
        self._days.look()
        equal = restoring.compare(self._days, WEEKS, self._restored, tally)
        tell.stage("looking for what was left behind on any server")
        with contextlib.ExitStack() as stack:
            connections = {
                shard: stack.enter_context(engines.connect_shard(shard, "shardwright demo check"))
                for shard in roster.list_shards(self._catalog)
            }
            registered = tables.list_tables(self._catalog)
            cluster = roster.cluster_id(self._catalog)
            left = leftovers.find(self._catalog, cluster, connections, self._before, registered)
        version = self._catalog.execute("SHOW server_version").fetchone()
        return report.result(
            postgres=str(version[0]).split()[0] if version else "",
            shards=len(connections),
            flights=self._flights,
            records=self._records,
            originals=originals,
            days=self._days,
            archived=restoring.count(self._catalog, WEEKS),
            restored=equal,
            tally=self._days.tally + tally,
            leftovers=left,
            seconds=time.monotonic() - self._started,
        )


@contextlib.contextmanager
def _servers(options: Options) -> Iterator[LocalCluster]:
    if options.keep is None:
        with LocalCluster.temporary(3, pg_bin=options.pg_bin) as cluster:
            cluster.start()
            yield cluster
        return
    cluster = LocalCluster.create(options.keep, 3, pg_bin=options.pg_bin)
    try:
        cluster.start()
        cluster.save()
        yield cluster
    finally:
        cluster.detach()


@contextlib.contextmanager
def _without_fsync(servers: list[Server]) -> Iterator[None]:
    """Only the clock is on trial: a day costs half as much where no disk is waited for."""
    try:
        for server in servers:
            _tell(server, "ALTER SYSTEM SET fsync = off")
        yield
    finally:
        for server in servers:
            _tell(server, "ALTER SYSTEM RESET fsync")


def _tell(server: Server, setting: str) -> None:
    """Change a setting of a server that runs."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(setting.encode())
        connection.execute("SELECT pg_reload_conf()")
