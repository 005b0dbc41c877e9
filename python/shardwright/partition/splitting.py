"""Cutting one fat partition on one shard, step by step; each step can be run again, and goes on where it stopped.

The pieces' tables are made, the log of touched keys is opened, rows are copied by runs of pages, keys are built, what was
logged is replayed until little is left, both sides are compared, and the fat partition gives way in one transaction.
Until that transaction nothing has changed for anybody, and everything can be dropped again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from shardwright import engines, errors
from shardwright.catalog import snapshots
from shardwright.failpoints import reach
from shardwright.partition import barrier, bulk, cuttable, exchange, jobs, leaves, ordinary, shells, swap, touched
from shardwright.partition.bulk import Progress, Restart, Source
from shardwright.partition.exchange import Exchanged
from shardwright.partition.jobs import Job
from shardwright.partition.shapes import Partition
from shardwright.partition.site import PartitionSite
from shardwright.partition.touched import Cutting
from shardwright.routing.predicates import quote_identifier as ident

_log = logging.getLogger(__name__)

#: Steps in their order; `exchanged` is the point of no return.
STEPS = ("planned", "prepared", "copied", "indexed", "ready", "exchanged", "recorded")

#: Validations of a foreign key beside the writers, before they are held off for it.
_TRIES = 5
#: So long a validation may hold them off.
_HELD_AT_MOST = "1s"
#: A replay that took no more than so many keys was the last one before the exchange.
_QUIET = exchange.MOST_KEYS // 3


@dataclass(frozen=True)
class Settings:
    """How to work; may differ from run to run."""

    #: Connections that copy and build indexes.
    workers: int = 2
    #: Rows a second that are copied at most; None: as fast as it goes.
    rows_per_s: float | None = None
    #: Compare both sides before the exchange.
    verify: bool = True
    #: Seconds to wait before the exchange for snapshots that are older than the copied rows; None: do not.
    wait_for_snapshots: float | None = None
    #: Seconds to wait after the exchange for snapshots that are older than it, so that the barrier against them can be lifted.
    settle_seconds: float = 5.0
    #: Seconds that replays may take to catch up.
    catch_up_seconds: float = 3600.0


@dataclass
class ShardReport:
    """What was done on one shard by this process."""

    shard: str
    step: str = "planned"
    rows: int = 0
    rows_per_s: float | None = None
    replay_rounds: int = 0
    replayed_keys: int = 0
    lock_ms: float | None = None
    lock_tries: int = 0
    #: Piece by piece: name, rows in the fat partition, rows in the piece; empty where it was not compared.
    compared: list[tuple[str, int, int]] = field(default_factory=list)
    restarts: int = 0


#: Called with the shard, the step that goes on, and how far the copy is.
Watch = Callable[[str, str, Progress | None], None]


def cutting(site: PartitionSite, fat: Partition, pieces: Sequence[Partition]) -> Cutting:
    """The names of the work on one shard.

    Args:
        site: the table and shard.
        fat: the partition.
        pieces: what it is cut into.

    Raises:
        UnfitTable: the partition is gone.
    """
    parent = ordinary.read(site.connection, site.schema, site.table.table_name)
    standing = leaves.find(site, fat.name)
    if standing is None:
        raise errors.UnfitTable(
            f"there is no {site.schema}.{fat.name} on shard {site.shard.name}",
            fix=f"shardwright partition split {site.table.name} --abort",
            table=site.table.name,
        )
    fences = [site.bounds(piece.lower, piece.upper).as_string(site.connection) for piece in pieces[1:]]
    return Cutting(
        site.schema,
        site.table.table_name,
        fat.name,
        standing.relid,
        site.policy.column,
        site.column_type,
        tuple(column["name"] for column in parent.columns if not column["generated"]),
        cuttable.key_of(parent),
        tuple(pieces),
        tuple(text.removeprefix("FOR VALUES FROM (").partition(") TO (")[0] for text in fences),
    )


def fill(site: PartitionSite, work: Cutting, job: Job, settings: Settings, watch: Watch, report: ShardReport) -> Job:
    """Bring a shard to `ready`: the pieces hold the same as the fat partition but for what was touched a moment ago.

    Args:
        site: the table and shard.
        work: the names.
        job: how far it is.
        settings: how to work.
        watch: told what goes on.
        report: what is done is written there.

    Returns:
        The job at `ready`.
    """
    while True:
        try:
            return _fill(site, work, job, settings, watch, report)
        except Restart:
            _log.warning("shard %s: %s was emptied or rewritten; its copy begins anew", site.shard.name, work.fat)
            report.restarts += 1
            give_up(site, work)
            job = jobs.advance(site.catalog, job, "planned")


def _fill(site: PartitionSite, work: Cutting, job: Job, settings: Settings, watch: Watch, report: ShardReport) -> Job:
    connection, name = site.connection, site.shard.name

    def connect() -> psycopg.Connection:
        return engines.connect_shard(site.shard, "shardwright split")

    if job.step == "planned":
        watch(name, "making the pieces' tables", None)
        shells.make(site, work)
        if not touched.is_open(connection, work):
            site.patiently(lambda: touched.open_log(connection, work), also=[work.fat])
        found = bulk.measure(connection, work)
        job = jobs.advance(
            site.catalog, job, "prepared", relid=work.relid, filenode=found.filenode, pages=found.pages, run=found.run
        )
        reach("partition.split_prepared")
    source = source_of(job)
    _check_same(site, work, job)
    if job.step == "prepared":
        watch(name, "copying", None)

        def told(progress: Progress) -> None:
            watch(name, "copying", progress)
            site.on_progress()

        done = bulk.copy(
            connect,
            work,
            source,
            workers=settings.workers,
            rows_per_s=settings.rows_per_s,
            on_progress=told,
        )
        report.rows, report.rows_per_s = done.rows, done.rows_per_s
        reach("partition.split_copied")
        # The first replay: it also takes out rows that two runs of pages saw, so that keys can be built.
        touched.ready(connection, work)
        _replay(site, work, source, report)
        shells.loosen(connection, work)
        job = jobs.advance(site.catalog, job, "copied", rows=done.rows)
    if job.step == "copied":
        watch(name, "building indexes", None)
        shells.build_indexes(connect, work, settings.workers, site.on_progress)
        job = jobs.advance(site.catalog, job, "indexed")
        reach("partition.split_indexed")
    watch(name, "catching up", None)
    catch_up(site, work, source, settings, report)
    shells.build_foreign_keys(site, work)
    _validate(site, work, source, settings, report)
    catch_up(site, work, source, settings, report)
    if settings.verify:
        watch(name, "comparing", None)
        report.compared = exchange.compare(connection, work)
    if job.step == "indexed":
        job = jobs.advance(site.catalog, job, "ready")
    report.step = "ready"
    reach("partition.split_ready")
    return job


def source_of(job: Job) -> Source:
    """What was measured when the log was opened.

    Args:
        job: one at `prepared` or later.
    """
    return Source(job.state["filenode"], job.state["pages"], job.state["run"])


def _check_same(site: PartitionSite, work: Cutting, job: Job) -> None:
    """The log must be the one that was open all the time."""
    if job.state["relid"] != work.relid or not touched.is_open(site.connection, work):
        raise Restart


def _replay(site: PartitionSite, work: Cutting, source: Source, report: ShardReport) -> int:
    with site.connection.transaction():
        site.connection.execute(f"LOCK TABLE ONLY {work.source} IN ACCESS SHARE MODE".encode())
        bulk.check_unmoved(site.connection, work, source)
        keys = touched.replay(site.connection, work)
    report.replay_rounds += 1
    report.replayed_keys += keys
    site.on_progress()
    return keys


def catch_up(site: PartitionSite, work: Cutting, source: Source, settings: Settings, report: ShardReport) -> None:
    """Replay until little is left.

    Args:
        site: the table and shard.
        work: the names.
        source: the fat partition as it was measured.
        settings: how long it may take.
        report: what is done is written there.

    Raises:
        NotDrained: more is written than can be replayed.
        Restart: the fat partition was emptied or rewritten.
    """
    touched.ready(site.connection, work)
    deadline = time.monotonic() + settings.catch_up_seconds
    while _replay(site, work, source, report) > _QUIET:
        if time.monotonic() > deadline:
            raise errors.NotDrained(
                f"replays of {work.fat} on shard {site.shard.name} do not catch up with its writers",
                fix="run this again when less is written",
            )


def _validate(site: PartitionSite, work: Cutting, source: Source, settings: Settings, report: ShardReport) -> None:
    """A row that was deleted together with what it refers to is in its piece until the next replay."""
    connection = site.connection
    for _ in range(_TRIES):
        left = shells.unvalidated(connection, work)
        if not left:
            return
        for piece, constraint in left:
            with contextlib.suppress(psycopg.errors.ForeignKeyViolation):
                connection.execute(f"ALTER TABLE {piece} VALIDATE CONSTRAINT {ident(constraint)}".encode())
        catch_up(site, work, source, settings, report)
    for piece, constraint in shells.unvalidated(connection, work):
        # Such rows are deleted all the time: their writers wait for this one, and not for long.
        def hold(piece: str = piece, constraint: str = constraint) -> None:
            connection.execute(f"LOCK TABLE ONLY {work.source} IN SHARE ROW EXCLUSIVE MODE".encode())
            connection.execute(f"SET LOCAL statement_timeout = '{_HELD_AT_MOST}'".encode())
            touched.replay(connection, work)
            connection.execute(f"ALTER TABLE {piece} VALIDATE CONSTRAINT {ident(constraint)}".encode())

        try:
            site.patiently(hold, also=[work.fat])
        except (psycopg.errors.QueryCanceled, psycopg.errors.ForeignKeyViolation) as error:
            raise errors.NotDrained(
                f"foreign key {constraint} cannot be validated for {piece} on shard {site.shard.name} while rows that are "
                "referred to are deleted as fast",
                fix="run this again when less is deleted",
            ) from error


def give_way(
    site: PartitionSite, work: Cutting, job: Job, settings: Settings, report: ShardReport
) -> tuple[Job, Exchanged]:
    """The exchange, and the note of it.

    Args:
        site: the table and shard.
        work: the names.
        job: one at `ready`.
        settings: how to work.
        report: what is done is written there.

    Returns:
        The job at `exchanged`, and what it cost.

    Raises:
        LockTimeout: the locks could not be had.
        NotDrained: snapshots are too old, or too much is written.
    """
    source = source_of(job)
    for _ in range(100):
        catch_up(site, work, source, settings, report)
        if settings.wait_for_snapshots is not None:
            snapshots.wait_for_older_than_now(site.connection, settings.wait_for_snapshots)
            catch_up(site, work, source, settings, report)
        try:
            done = exchange.exchange(site, work, source)
            break
        except exchange.TooMany:
            continue
    else:
        raise errors.NotDrained(
            f"more is written to {work.fat} on shard {site.shard.name} than can be replayed while everybody waits",
            fix="run this again when less is written",
        )
    report.lock_ms, report.lock_tries, report.step = done.lock_ms, done.tries, "exchanged"
    report.replayed_keys += done.keys
    reach("partition.split_exchanged")
    return jobs.advance(site.catalog, job, "exchanged", lock_ms=round(done.lock_ms, 3)), done


def has_given_way(site: PartitionSite, fat: str) -> bool:
    """Whether the exchange was committed, whatever the job says.

    Args:
        site: the table and shard.
        fat: the partition that was cut.
    """
    standing = leaves.find(site, fat)
    return standing is not None and standing.state == "replaced" and not standing.attached


def settle(
    site: PartitionSite, work: Cutting, inbound: Sequence[tuple[str, str, str]], settings: Settings, watch: Watch
) -> None:
    """After the exchange: foreign keys that point here are validated, CHECKs, the log and the barrier go, the parent is analyzed.

    Args:
        site: the table and shard.
        work: the names.
        inbound: schema, table and name of the foreign keys that were valid before.
        settings: how to work.
        watch: told what goes on.
    """
    watch(site.shard.name, "tidying up", None)
    for key in inbound:
        swap.validate(site.connection, *key, site.patience)
    exchange.drop_checks(site, work)
    touched.close_log(site.connection, work, attached=False)
    site.connection.execute(f"ANALYZE {site.parent.as_string(site.connection)}".encode())
    barrier.settle(site, settings.settle_seconds)
    reach("partition.split_settled")


def give_up(site: PartitionSite, work: Cutting) -> None:
    """Drop the log and the pieces: nothing has changed for anybody.

    Args:
        site: the table and shard.
        work: the names.

    Raises:
        LockTimeout: the trigger's lock could not be had.
    """
    connection = site.connection
    if leaves.find(site, work.fat) is not None:
        site.patiently(
            lambda: connection.execute(f"DROP TRIGGER IF EXISTS {ident(touched.TRIGGER)} ON {work.source}".encode()),
            also=[work.fat],
            readers=True,
        )
    shells.drop(connection, work)
    touched.close_log(connection, work, attached=False)
