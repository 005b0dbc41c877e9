"""The demo of time partitions: a table is converted, split and moved under load, and platform's days go by on three shards.

Real servers, a real worker process for the move, and clients in processes of their own. What the result says was read
from the clients' records, from the servers and from the catalog; what windows there must be is computed by another
calendar than the one that makes them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

from shardwright import engines
from shardwright.catalog import keyspaces, migrations, roster, shards, tables
from shardwright.catalog.models import register
from shardwright.demo import dataset
from shardwright.demo.audit import Originals
from shardwright.demo.operator import Audience
from shardwright.demo.partitions import leftovers, models, report, restoring
from shardwright.demo.partitions.days import Days
from shardwright.demo.partitions.flights import Flights, all_flights
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.promise import PROMISES, midnight
from shardwright.demo.partitions.report import Result, Simulated
from shardwright.demo.partitions.traffic import Records
from shardwright.servers import LocalCluster, Server

#: The shard that joins, and takes its share of the flights.
NEW: Final = "s3"
#: The first simulated day: a leap day and a week 53 are not far.
FIRST: Final = midnight(2019, 11, 15)
GRACE: Final = timedelta(days=2)
#: Days that are simulated whatever the time.
_LEAST: Final = 20
#: Seconds for what comes after the days: leaps to where months end, a restore, the judgement.
_AFTER_S: Final = 20.0

MONTHS, WEEKS, _DAYS = PROMISES


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        pg_bin: directory of PostgreSQL's programs; None takes the embedded package.
        seed: of all that is left to chance.
        keep: a directory in which the cluster stays, running, with the clients' records; None leaves nothing.
        seconds: how long it may take altogether; days go by as long as there is time, and 20 in any case.
        days: days that go by one by one, whatever the time; None lets the time decide.
        flights: about so many flights; None takes all.
        months: go on to where the first month of the table that keeps months comes to its end.
        settle: seconds for which the clients work alone, before and between the steps.
        meddle: called at the end of each stage with its name and the shards' addresses: tests break something there,
            to see that it is found out.
    """

    pg_bin: Path | None = None
    seed: int = 1
    keep: Path | None = None
    seconds: float = 100.0
    days: int | None = None
    flights: int | None = None
    months: bool = True
    settle: float = 1.0
    meddle: Callable[[str, Mapping[str, str]], None] = lambda stage, shards: None


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
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        audience.stage("reading the data set, and starting four PostgreSQL servers: a catalog and three shards")
        data = dataset.load()
        cluster = stack.enter_context(_servers(options))
        catalog = stack.enter_context(engines.connect_catalog(cluster.catalog.dsn(), "shardwright demo"))
        migrations.apply(catalog, "catalog")
        demo = _Demo(options, audience, data, cluster, catalog, started)
        demo.load()
        with demo.clients():
            demo.convert()
            demo.split()
            demo.reshard()
        demo.compare()
        demo.simulate()
        return demo.judge()


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


class _Demo:
    """One run of the demo: what each stage needs from the ones before."""

    def __init__(
        self,
        options: Options,
        audience: Audience,
        data: dataset.Dataset,
        cluster: LocalCluster,
        catalog: psycopg.Connection[Any],
        started: float,
    ) -> None:
        self._options = options
        self._audience = audience
        self._cluster = cluster
        self._catalog = catalog
        self._dsn = cluster.catalog.dsn()
        self._started = started
        self._before: dict[str, frozenset[leftovers.Thing]] = {}
        directory = cluster.directory / "records"
        directory.mkdir()
        rows = all_flights(data, options.flights, options.seed)
        self._flights = Flights(catalog, self._dsn, rows, directory, audience, seed=options.seed)
        self._tally = Tally()
        self._records = Records()
        self._originals = Originals()
        self._simulated: Simulated | None = None

    # ------------------------------------------------------------ flights

    def load(self) -> None:
        """Two shards, and on them one ordinary table."""
        self._audience.stage("a cluster of two shards, and all flights in one ordinary table")
        dsns = self._cluster.dsns()
        for name in dsns:
            if name != NEW:
                self._add(name)
        self._flights.make()
        self._meddle("load")

    def _add(self, name: str) -> None:
        """A shard joins; what is there at that moment is written down."""
        shards.add_shard(self._catalog, name, self._cluster.dsns()[name])
        with engines.connect_shard(roster.get_shard(self._catalog, name), "shardwright demo") as connection:
            self._before[name] = leftovers.take_down(connection)

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        """Clients work as long as the body does."""
        with contextlib.ExitStack() as stack:
            self._audience.stage("an application starts to work: two writers, a reader, a bystander on each shard")
            self._flights.start_clients(stack)
            self._flights.work_for(self._options.settle)
            yield
            self._records = self._flights.stop_clients()

    def convert(self) -> None:
        """The table becomes partitioned."""
        self._audience.stage("converting: the table becomes the first partition of one in months, on both shards")
        done = self._flights.convert()
        for one in done.shards:
            self._audience.fact(
                f"{one.shard}: all rows checked in {one.validate_seconds:.2f} s; locked for {one.lock_ms:.0f} ms"
            )
        self._flights.work_for(self._options.settle)
        self._meddle("convert")

    def split(self) -> None:
        """The partition that has everything becomes months."""
        self._audience.stage("splitting: all flights are cut into months, while they are read and written")
        done = self._flights.split()
        for one in done.shards:
            self._audience.fact(
                f"{one.shard}: {one.rows:,} rows into {done.pieces} partitions, copied at {one.rows_per_s or 0:,.0f} rows/s, "
                f"{one.replayed_keys} changed keys replayed; locked for {one.lock_ms:.0f} ms"
            )
        self._flights.work_for(self._options.settle)
        self._meddle("split")

    def reshard(self) -> None:
        """A third shard takes its share of all months."""
        self._audience.stage(f"adding shard {NEW}: it gets the table with all its partitions, and then its share")
        self._add(NEW)
        self._flights.join()
        self._flights.reshard(NEW)
        self._flights.work_for(self._options.settle)
        self._meddle("reshard")

    def compare(self) -> None:
        """Every flight is compared with the data set and what the writers know."""
        self._audience.stage("comparing every flight with the data set and the acknowledged writes")
        self._originals = self._flights.compare(self._records, self._tally)
        wrong = self._originals.missing + self._originals.surplus + self._originals.misplaced
        self._audience.fact(f"{len(self._flights.rows.lines):,} flights compared, {wrong} are not as they must be")

    # ------------------------------------------------------------ days

    def simulate(self) -> None:
        """The platform's three tables, made by one registration, and days that go by."""
        self._audience.stage("the platform's three tables on three shards, a month, a week and a day in a partition")
        with self._without_fsync():
            self._simulate()

    @contextlib.contextmanager
    def _without_fsync(self) -> Iterator[None]:
        """Only the clock is on trial here: a day costs half as much when no disk is waited for."""
        servers = self._cluster.servers.values()
        try:
            for server in servers:
                _tell(server, "ALTER SYSTEM SET fsync = off")
            yield
        finally:
            for server in servers:
                _tell(server, "ALTER SYSTEM RESET fsync")

    def _simulate(self) -> None:
        keyspaces.create_keyspace(self._catalog, models.USERS, key_type="int8", shards=sorted(self._cluster.shards))
        archive = self._cluster.directory / "archive"
        archive.mkdir()
        register(self._catalog, models.platform({WEEKS.table: str(archive)}, grace=f"{GRACE.days} days"))
        check = self._audience.check
        with Days(
            self._catalog, self._dsn, FIRST, GRACE, self._tally, seed=self._options.seed, on_progress=check
        ) as days:
            days.begin()
            self._audience.stage("days go by: rows arrive, the clock is set to midnight, a tick runs, all is looked at")
            while self._is_time(days.days):
                days.next_day()
                self._audience.live(f"{days.now:%Y-%m-%d}: {days.rows:,} rows", days.days, self._options.days or 0)
            self._audience.fact(f"{days.days} days one by one; then to where windows come to their end")
            for promise in (WEEKS, MONTHS) if self._options.months else (WEEKS,):
                days.see_out(promise)
            self._meddle("days")
            days.look()
            self._audience.stage("restoring one archived window of weeks, and comparing it row by row")
            back = restoring.bring_back(self._catalog, self._dsn, days, WEEKS, self._tally, on_progress=check)
            self._audience.fact(f"{back.name}: {back.rows} rows on {len(self._cluster.shards)} shards")
            self._simulated = Simulated(
                days=days.ticked,
                until=f"{days.now:%Y-%m-%d}",
                rows=days.arrived,
                archived=restoring.count(self._catalog, WEEKS),
                restored_rows=back.rows,
                restored_equal=back.equal,
            )

    def _is_time(self, days: int) -> bool:
        """Whether one more day may go by."""
        if self._options.days is not None:
            return days < self._options.days
        return days < _LEAST or time.monotonic() - self._started < self._options.seconds - _AFTER_S

    # ------------------------------------------------------------ the judgement

    def _meddle(self, stage: str) -> None:
        self._options.meddle(stage, self._cluster.dsns())

    def judge(self) -> Result:
        """Read from every server what was left behind, and compute the result."""
        assert self._simulated is not None
        self._audience.stage("looking for what was left behind on any server")
        self._meddle("end")
        with contextlib.ExitStack() as stack:
            connections = {
                shard: stack.enter_context(engines.connect_shard(shard, "shardwright demo check"))
                for shard in roster.list_shards(self._catalog)
            }
            left = leftovers.find(
                self._catalog,
                roster.cluster_id(self._catalog),
                connections,
                self._before,
                tables.list_tables(self._catalog),
            )
        version = self._catalog.execute("SHOW server_version").fetchone()
        return report.result(
            postgres=str(version[0]).split()[0] if version else "",
            shards=len(connections),
            flights=self._flights,
            records=self._records,
            originals=self._originals,
            simulated=self._simulated,
            tally=self._tally,
            leftovers=left,
            seconds=time.monotonic() - self._started,
        )


def _tell(server: Server, setting: str) -> None:
    """Change a setting of a server that runs."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(setting.encode())
        connection.execute("SELECT pg_reload_conf()")
