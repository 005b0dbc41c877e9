"""The demo's table of flights: plain on two live shards, then partitioned, split into months, and moved to a third.

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
from shardwright.demo.partitions import models
from shardwright.demo.partitions.traffic import Records, Spec, Traffic
from shardwright.reshard import operate
from shardwright.reshard.status import Status

TABLE: Final = "flights"
#: Planes of each writer, and flights that each must have.
_PLANES, _FLIGHTS = 40, 12
_WRITERS: Final = 2


def all_flights(data: Dataset) -> Rows:
    """Every flight of the data set as a row of the one table; those without a tail number have an empty one.

    Args:
        data: the data set.
    """
    known, unknown = data.flights, data.flights_without_tailnum
    lines = [line + b"\t0" for line in known.lines] + [b"\t" + line + b"\t0" for line in unknown.lines]
    return Rows(TABLE, (*known.columns, "checked_in"), lines, [*known.keys, *[""] * len(unknown.lines)])


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
    """The table, from its making to its move."""

    def __init__(
        self,
        catalog: psycopg.Connection[Any],
        catalog_dsn: str,
        data: Dataset,
        directory: Path,
        audience: Audience,
        *,
        seed: int = 1,
        rate: float = 60.0,
    ) -> None:
        """The cluster is there; the table is not yet.

        Args:
            catalog: connection to the catalog.
            catalog_dsn: its address.
            data: where the rows come from.
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
        self.rows = all_flights(data)
        self.stages = Stages()
        self.status: Status | None = None

    # ------------------------------------------------------------ the table and its clients

    def make(self, shards: Sequence[str]) -> None:
        """A plain table of all flights.

        Args:
            shards: where its rows are at first.
        """
        keyspaces.create_keyspace(self._catalog, models.PLANES, key_type="text", shards=list(shards))
        register(self._catalog, models.flights())
        shares = split(self.rows, maps.load_map(self._catalog), models.PLANES)
        found = {shard.name: shard for shard in roster.list_shards(self._catalog)}
        with ThreadPoolExecutor(len(shards)) as pool:
            list(pool.map(lambda name: copy(found[name], [shares[name]]), shards))
        spread = ", ".join(f"{name} {len(shares[name].lines):,}" for name in shards)
        self._audience.fact(f"{len(self.rows.lines):,} flights of 2013 in one plain table: {spread}")

    def clients(self, shards: Sequence[str]) -> Traffic:
        """The processes that work on the table; not started yet.

        Args:
            shards: where bystanders stand.
        """
        chance = random.Random(self._seed)
        numbers: dict[str, list[int]] = defaultdict(list)
        at = self.rows.columns.index("id")
        for key, line in zip(self.rows.keys, self.rows.lines, strict=True):
            numbers[key].append(int(line.split(b"\t", at + 1)[at]))
        planes = sorted(key for key, ids in numbers.items() if key and len(ids) >= _FLIGHTS)
        chosen = chance.sample(planes, _PLANES * _WRITERS)
        found = {shard.name: shard.conninfo for shard in roster.list_shards(self._catalog)}
        owner = {shard: [] for shard in shards}  # type: dict[str, list[str]]
        shard_map = maps.load_map(self._catalog)
        for key in planes:
            if key not in set(chosen) and (shard := shard_map.route(models.PLANES, key).shard) in owner:
                owner[shard].append(key)
        return Traffic(
            Spec(
                catalog=self._dsn,
                shards=found,
                directory=str(self._directory),
                rows=len(self.rows.lines),
                planes=[chosen[n::_WRITERS] for n in range(_WRITERS)],
                looked_at=[(shard, keys[0], numbers[keys[0]][0]) for shard, keys in owner.items()],
                rate=self._rate,
                seed=self._seed,
            )
        )

    # ------------------------------------------------------------ what is done to it

    def reshard(self, traffic: Traffic, new: str) -> None:
        """A third shard takes its share.

        Args:
            traffic: works meanwhile.
            new: the shard that takes it.
        """
        plan = operate.plan(self._catalog, add=new)
        for move in plan.moves:
            self._audience.fact(
                f"{move.source} to {move.target}: {move.points.count()} buckets, about {move.rows:,} rows"
            )
        with (
            self.stages.of("reshard"),
            Operator(self._catalog, self._dsn, plan, traffic, self._audience, self._directory) as operator,
        ):
            operator.reach("verified")
            operator.reach("switched")
            operator.tell_pauses(0)
            self.status = operator.reach("done")

    # ------------------------------------------------------------ what became of it

    def compare(self, records: Records) -> audit.Originals:
        """Compare every row of every shard with the data set and what the writers know.

        Args:
            records: of the clients.
        """
        found = audit.Originals()
        with contextlib.ExitStack() as stack:
            connections = {
                shard.name: stack.enter_context(engines.connect_shard(shard, "shardwright demo check"))
                for shard in roster.list_shards(self._catalog)
            }
            wanted = as_written(self.rows, records.rows)
            audit.compare_sharded(wanted, connections, maps.load_map(self._catalog), models.PLANES, found)
        return found

    def table(self) -> tables.RegisteredTable:
        """The table as it is registered now."""
        return next(one for one in tables.list_tables(self._catalog) if one.table_name == TABLE)


def worst(spans: tuple[float, float], seen: Sequence[tuple[Any, ...]]) -> float:
    """The longest of what began or lasted in a stage, in milliseconds.

    Args:
        spans: the stage's beginning and end.
        seen: (moment, milliseconds, ...) each.
    """
    began, ended = spans
    return max((one[1] for one in seen if one[0] <= ended and one[0] + one[1] / 1000 >= began), default=0.0)


def during(span: tuple[float, float], seen: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What began in a stage.

    Args:
        span: the stage's beginning and end.
        seen: (moment, ...) each.
    """
    return [one for one in seen if span[0] <= one[0] <= span[1]]
