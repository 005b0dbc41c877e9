"""The demo's table of flights: ordinary on two live shards, then partitioned, cut into months, and moved to a third shard.

Clients work on it all the time. What they and the servers say at the end is compared with the data set, row by row.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from shardwright import engines
from shardwright.catalog import keyspaces, maps, roster, tables
from shardwright.catalog.models import register
from shardwright.demo import audit
from shardwright.demo.dataset import Dataset, Rows
from shardwright.demo.load import copy, split
from shardwright.demo.operator import Audience, Operator
from shardwright.demo.partitions import models, reading
from shardwright.demo.partitions.judging import Tally
from shardwright.demo.partitions.promise import Promise
from shardwright.demo.partitions.traffic import Records, Spec, Traffic
from shardwright.partition import convert as converting
from shardwright.partition import split as splitting
from shardwright.partition.bulk import Progress
from shardwright.partition.convert import ConvertReport
from shardwright.partition.registering import first_windows
from shardwright.partition.split import SplitReport
from shardwright.partition.tick import tick
from shardwright.reshard import operate
from shardwright.reshard.status import Status
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

TABLE: Final = "flights"
#: What it is to be: a partition a month, kept for good.
PROMISE: Final = Promise(TABLE, "time_hour", "month", 1200, "month", is_sharded=False)
#: Planes of each writer, and flights that each must have.
_PLANES, _FLIGHTS = 40, 12
_WRITERS: Final = 2


def all_flights(data: Dataset, most: int | None = None, seed: int = 1) -> Rows:
    """Every flight of the data set as a row of the one table; those without a tail number have an empty one.

    Args:
        data: the data set.
        most: about so many, of some planes; all unless given.
        seed: decides which planes.
    """
    known, unknown = data.flights, data.flights_without_tailnum
    lines = [line + b"\t0" for line in known.lines] + [b"\t" + line + b"\t0" for line in unknown.lines]
    keys = [*known.keys, *[""] * len(unknown.lines)]
    if most is not None and most < len(lines):
        # The order of the planes is left to chance, and all flights of those at the front are taken.
        planes = sorted(set(keys))
        random.Random(seed).shuffle(planes)
        place = {plane: number for number, plane in enumerate(planes)}
        taken = sorted(range(len(lines)), key=lambda at: place[keys[at]])[:most]
        lines, keys = [lines[at] for at in taken], [keys[at] for at in taken]
    return Rows(TABLE, (*known.columns, "checked_in"), lines, keys)


def as_written(rows: Rows, written: Iterable[tuple[str, int, int, str, int]]) -> Rows:
    """The rows as they must be after the writers' acknowledged transactions.

    Args:
        rows: as they were loaded.
        written: rows of the writers: tail number, id at first, id now, time_hour, checked in.
    """
    at_id, at_hour = rows.columns.index("id"), rows.columns.index("time_hour")
    changed = {first: (now, hour, checked) for _, first, now, hour, checked in written}
    lines = []
    for line in rows.lines:
        fields = line.split(b"\t")
        if (found := changed.get(int(fields[at_id]))) is not None:
            fields[at_id], fields[-1] = str(found[0]).encode(), str(found[2]).encode()
            fields[at_hour] = found[1].encode()
            line = b"\t".join(fields)
        lines.append(line)
    return Rows(rows.table, rows.columns, lines, rows.keys)


@dataclass
class Stages:
    """When each stage began and ended, by the machine's monotonic clock."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Record how long the body takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.spans[name] = (started, time.monotonic())


class Flights:
    """The table, from its making to its move.

    Attributes:
        rows: as they were loaded.
        stages: when each step was done to it.
        converted, cut, status: what the steps report.
    """

    def __init__(
        self,
        catalog: psycopg.Connection[Any],
        catalog_dsn: str,
        rows: Rows,
        directory: Path,
        audience: Audience,
        *,
        seed: int = 1,
        rate: float = 20.0,
    ) -> None:
        """The cluster is there; the table is not yet.

        Args:
            catalog: connection to the catalog.
            catalog_dsn: its address.
            rows: of the table.
            directory: for what the clients write down.
            audience: is told.
            seed: of the clients' choices.
            rate: transactions a second of each writer.
        """
        self._catalog = catalog
        self._dsn = catalog_dsn
        self._directory = directory
        self._audience = audience
        self._seed = seed
        self._rate = rate
        self._traffic: Traffic | None = None
        self.rows = rows
        self.stages = Stages()
        self.converted: ConvertReport | None = None
        self.cut: SplitReport | None = None
        self.status: Status | None = None

    # ------------------------------------------------------------ the table and its clients

    def make(self) -> None:
        """An ordinary table of all flights, on the shards that are there."""
        found = {shard.name: shard for shard in roster.list_shards(self._catalog)}
        keyspaces.create_keyspace(self._catalog, models.PLANES, key_type="text", shards=list(found))
        register(self._catalog, models.flights())
        shares = split(self.rows, maps.load_map(self._catalog), models.PLANES)
        with ThreadPoolExecutor(len(found)) as pool:
            list(pool.map(lambda name: copy(found[name], [shares[name]]), found))
        spread = ", ".join(f"{name} {len(shares[name].lines):,}" for name in found)
        self._audience.fact(f"{len(self.rows.lines):,} flights in one ordinary table: {spread}")

    def start_clients(self, stack: contextlib.ExitStack) -> None:
        """Writers, a reader, bystanders and the lock watch begin, in processes of their own.

        Args:
            stack: ends them when all else fails.
        """
        self._traffic = traffic = Traffic(self._spec())
        stack.callback(traffic.kill)
        traffic.start()

    def _spec(self) -> Spec:
        numbers: dict[str, list[int]] = defaultdict(list)
        at = self.rows.columns.index("id")
        for key, line in zip(self.rows.keys, self.rows.lines, strict=True):
            numbers[key].append(int(line.split(b"\t", at + 1)[at]))
        planes = sorted(key for key, ids in numbers.items() if key and len(ids) >= _FLIGHTS)
        chosen = random.Random(self._seed).sample(planes, min(_PLANES * _WRITERS, len(planes) // 2))
        found = {shard.name: shard.conninfo for shard in roster.list_shards(self._catalog)}
        left: dict[str, str] = {}
        shard_map = maps.load_map(self._catalog)
        for key in sorted(set(planes) - set(chosen)):
            left.setdefault(shard_map.route(models.PLANES, key).shard, key)
        return Spec(
            catalog=self._dsn,
            shards=found,
            directory=str(self._directory),
            planes=[chosen[n::_WRITERS] for n in range(_WRITERS)],
            looked_at=[(shard, key, numbers[key][0]) for shard, key in sorted(left.items())],
            rate=self._rate,
            seed=self._seed,
        )

    def stop_clients(self) -> Records:
        """Let the clients end, and read what they wrote down."""
        return self._clients().stop()

    def work_for(self, seconds: float) -> None:
        """Let the clients work alone for a while.

        Args:
            seconds: how long.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check()
            time.sleep(0.05)

    def _clients(self) -> Traffic:
        assert self._traffic is not None
        return self._traffic

    def _check(self) -> None:
        self._audience.check()
        self._clients().check_alive()

    # ------------------------------------------------------------ what is done to it

    def convert(self) -> ConvertReport:
        """The table becomes partitioned, as it is."""
        with self.stages.of("convert"):
            self.converted = converting.convert(
                self._dsn,
                "public",
                TABLE,
                Declaration("local", policy=Policy(PROMISE.column, "1 month")),  # its kind is registered
                extend_key=True,
                watch=lambda shard, what: self._audience.live(f"shard {shard}: {what}"),
                on_progress=self._check,
            )
            tick(self._dsn, [("public", TABLE)], on_progress=self._check)
        return self.converted

    def split(self) -> SplitReport:
        """The partition that has everything is cut into months, and dropped."""

        def watch(shard: str, step: str, progress: Progress | None) -> None:
            done, total = (progress.pages, progress.pages_total) if progress is not None else (0, 0)
            self._audience.live(f"shard {shard}: {step}", done, total)

        with self.stages.of("split"):
            self.cut = splitting.split(self._dsn, "public", TABLE, drop_now=True, watch=watch, on_progress=self._check)
        return self.cut

    def join(self) -> None:
        """A shard that has just joined gets the table's partitions."""
        first_windows(self._dsn, self._catalog, tables.list_tables(self._catalog), on_progress=self._check)

    def reshard(self, new: str) -> None:
        """The shard that joined takes its share.

        Args:
            new: its name.
        """
        plan = operate.plan(self._catalog, add=new)
        for move in plan.moves:
            self._audience.fact(
                f"{move.source} to {move.target}: {move.points.count()} buckets, about {move.rows:,} rows"
            )
        with (
            self.stages.of("reshard"),
            Operator(self._catalog, self._dsn, plan, self._clients(), self._audience, self._directory) as operator,
        ):
            operator.reach("verified")
            operator.reach("switched")
            operator.tell_pauses(0)
            self.status = operator.reach("done")

    # ------------------------------------------------------------ what became of it

    def compare(self, records: Records) -> tuple[audit.Originals, Tally]:
        """Compare every row of every shard with the data set and what the writers know, and look where it lies.

        Args:
            records: of the clients.

        Returns:
            How rows fared, and what is wrong with the partitions that they lie in.
        """
        found, tally = audit.Originals(), Tally()
        with contextlib.ExitStack() as stack:
            connections = {
                shard.name: stack.enter_context(engines.connect_shard(shard, "shardwright demo check"))
                for shard in roster.list_shards(self._catalog)
            }
            wanted = as_written(self.rows, records.rows)
            audit.compare_sharded(wanted, connections, maps.load_map(self._catalog), models.PLANES, found)
            for shard, connection in connections.items():
                _look(connection, shard, tally)
        return found, tally


def _look(connection: psycopg.Connection[Any], shard: str, tally: Tally) -> None:
    """Every row is in the partition of its month."""
    seen = reading.see(connection, [PROMISE], ())[TABLE]
    wrong = []
    for window, leaf in seen.windows.items():
        for moment in (leaf.least, leaf.greatest):
            if moment is not None and PROMISE.at(moment) != window:
                wrong.append(f"{leaf.name} has a row of {moment}")
    if seen.astray:
        wrong.append(f"{seen.astray} rows lie in no month's partition")
    for what in wrong:
        tally.windows_wrong += 1
        tally.say(f"flights on {shard}: {what}")


def during(span: tuple[float, float], seen: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What happened in a stage, were it only in part.

    Args:
        span: the stage's beginning and end.
        seen: (moment, milliseconds, ...) each.
    """
    began, ended = span
    return [one for one in seen if one[0] <= ended and one[0] + one[1] / 1000 >= began]


def longest(span: tuple[float, float], seen: Sequence[tuple[Any, ...]]) -> float:
    """The longest of what happened in a stage, in milliseconds; 0 for none.

    Args:
        span: the stage's beginning and end.
        seen: (moment, milliseconds, ...) each.
    """
    return max((one[1] for one in during(span, seen)), default=0.0)
