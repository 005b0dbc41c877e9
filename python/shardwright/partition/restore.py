"""Bringing archived windows back: loaded beside the table, compared, and attached in one short transaction a shard.

Checksums are sums, so they can be added up: where rows have changed owners since, each shard takes from every archive the
rows that are its own, and what all shards have together is compared with what all archives hold.

Nothing is declared before every shard is ready; after that, the next tick would do what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from shardwright import engines, errors, failpoints
from shardwright.catalog import archives, maps, operations, roster, windows
from shardwright.catalog.windows import CatalogWindow
from shardwright.partition import archive, archived_columns, calendar, finding, leaves, marks
from shardwright.partition.bringing import Bringing
from shardwright.partition.finding import Source
from shardwright.partition.fleet import Fleet
from shardwright.partition.plan import Step
from shardwright.partition.shapes import Partition, PartitionedTable
from shardwright.partition.site import LOCK_CLASS, PATIENCE
from shardwright.partition.steps import attach, guard
from shardwright.routing.policy import Span
from shardwright.routing.predicates import owned_sql, quote_identifier

_log = logging.getLogger(__name__)

#: How long a restored window is kept unless said otherwise.
KEEP = "7 days"


@dataclass(frozen=True)
class Restored:
    """One window that is attached again on one shard."""

    window: str
    shard: str
    rows: int
    #: ``load``: from archives; ``reattach``: its table was there still; ``present``: it was there already.
    how: str
    kept_until: str

    def to_json(self) -> dict[str, object]:
        """A JSON-ready value."""
        return asdict(self)


def restore(
    catalog_dsn: str,
    schema: str,
    table: str,
    names: Collection[str] = (),
    *,
    shards: Collection[str] = (),
    place: str | None = None,
    keep: str = KEEP,
    now: datetime | None = None,
    on_progress: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> list[Restored]:
    """Bring windows back from their archives, attached on every shard. May be run again after a crash.

    Args:
        catalog_dsn: where the catalog is.
        schema: the table's schema.
        table: its name.
        names: the windows' names; all that are archived and not there unless given.
        shards: only these; all by default.
        place: directory or URI of the archives; where the catalog says they are unless given.
        keep: how long retention leaves them alone.
        now: the moment from which `keep` is counted; the database's clock unless given.
        on_progress: called between steps; it may raise to stop the work.
        patience: seconds that a step waits for its locks.

    Returns:
        What is attached now, by window and shard.

    Raises:
        UnknownTable, BadDeclaration, UnknownShard, BadOption: as their names say.
        ArchiveUnusable, ArchiveDiffers: an archive is missing or damaged. Nothing was changed.
        UnfitTable, MisplacedRows, OperationConflict: it cannot be brought back as things are. Nothing was changed.
        CannotConnect, LockTimeout: a shard cannot be worked on now.
    """
    failpoints.check_setting()
    span = Span.parse(keep)
    archive.parquet_module()
    with Fleet(catalog_dsn, [(schema, table)], on_progress=on_progress, patience=patience) as fleet:
        if not fleet.tables:
            raise errors.UnfitTable(fleet.findings[0].message, fix=fleet.findings[0].fix)
        one = fleet.tables[0]
        _refuse_moves(fleet, one)
        until = _until(fleet, one, span, now)
        found = finding.find(fleet, one, names, shards, place)
        return [
            restored
            for name, sources in found.items()
            for restored in _Restore(fleet, one, name, sources, shards, until).run()
        ]


def _refuse_moves(fleet: Fleet, table: PartitionedTable) -> None:
    for operation in operations.list_live(fleet.catalog):
        if any(move.keyspace == table.keyspace for move in operation.moves):
            raise errors.OperationConflict(
                f"operation {operation.id} moves rows of {table.full_name}: a restore has to wait",
                fix=f"shardwright reshard status {operation.id}; then finish or abort it",
                operation=operation.id,
            )


def _until(fleet: Fleet, table: PartitionedTable, keep: Span, now: datetime | None) -> datetime:
    row = fleet.catalog.execute("SELECT coalesce(%s::timestamptz, clock_timestamp())", (now,)).fetchone()
    assert row is not None
    moment: datetime = row[0]
    at = calendar.now_on_axis(table.policy, "timestamptz", moment)
    later = calendar.shift(table.policy, "timestamptz", at, keep, 1)
    return moment + timedelta(microseconds=later - at)


class _Restore:
    """One window."""

    def __init__(
        self,
        fleet: Fleet,
        table: PartitionedTable,
        name: str,
        sources: Sequence[Source],
        only: Collection[str],
        until: datetime,
    ) -> None:
        self.fleet, self.table, self.sources, self.until = fleet, table, sources, until
        whose = sources[0].made.whose if sources else None
        listed = windows.list_windows(fleet.catalog, table.id)
        known = next((one for one in listed if one.name == name), None)
        if whose is not None:
            self.one = Partition(name, whose.lower, whose.upper, whose.role)
        else:
            assert known is not None  # as `finding` found it
            self.one = Partition(name, known.lower, known.upper, known.role)
        self._check_declared(listed, known)
        shard_map = maps.load_map(fleet.catalog)
        self.map_version = shard_map.version
        self.whole = not only
        self.parts: list[Bringing] = []
        for shard in sorted(fleet.shards):
            if not table.is_on(shard) or (only and shard not in only):
                continue
            owned = None
            registered = fleet.registered[table.id]
            if registered.keyspace is not None and registered.key_column is not None:
                keyspace = shard_map.keyspace(registered.keyspace)
                points = shard_map.owned(registered.keyspace, shard)
                if keyspace.points() - points:
                    owned = owned_sql(keyspace, points, quote_identifier(registered.key_column))
            self.parts.append(Bringing(fleet.site(table.id, table.key, shard), self.one, owned))

    def _check_declared(self, listed: Iterable[CatalogWindow], known: CatalogWindow | None) -> None:
        def refuse(what: str, fix: str) -> errors.UnfitTable:
            return errors.UnfitTable(
                f"{self.one.name} of {self.table.full_name} cannot be restored: {what}",
                fix=fix,
                table=self.table.full_name,
            )

        if known is not None and (known.lower, known.upper) != self.one.span:
            raise refuse("another window has its name", "read the Parquet file with a tool of your choice")
        for other in listed:
            if other.name == self.one.name or other.state != "wanted":
                continue
            if not finding.overlap((other.lower, other.upper), self.one.span):
                continue
            if not other.is_guard:
                raise refuse(
                    f"{other.name} covers a part of its time now", "load the Parquet file into that window by hand"
                )
            if self._beside(other) == (None, None):
                raise refuse(
                    "it has no bound on the side of the guard, which would have no room left",
                    "read the Parquet file with a tool of your choice",
                )

    def _beside(self, other: CatalogWindow | Partition) -> tuple[int | None, int | None]:
        """The bounds that a guard has beside the window."""
        return (None, self.one.lower) if other.role == "before" else (self.one.upper, None)

    def run(self) -> list[Restored]:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.site.locked())
            for source in self.sources:
                archive.check_file(source.made, source.store)
            for part in self.parts:
                part.look([source.made for source in self.sources])
            try:
                self._load()
                self._compare()
                for part in self.parts:
                    part.ready()
                failpoints.reach("partition.restore_loaded")
                stack.enter_context(roster.changing(self.fleet.catalog))
                self._check_map()
                self._declare()
            except BaseException:
                for part in self.parts:
                    try:
                        part.undo()
                    except Exception as error:  # noqa: BLE001 - what broke it off is raised below
                        _log.warning(
                            "a part of the restore could not be undone: %s", engines.redact(str(error).strip())
                        )
                raise
            failpoints.reach("partition.restore_declared")
            for part in self.parts:
                self._attach(part)
        return [
            Restored(self.one.name, part.site.shard.name, part.survey.rows if part.survey else 0, part.how,
                     self.until.isoformat())
            for part in self.parts
        ]  # fmt: skip

    # ---------------------------------------------------------------- loading

    def _load(self) -> None:
        here = {part.site.shard.name: part for part in self.parts}

        def own(shard: str) -> None:
            part = here[shard]
            part.make()
            for source in self.sources:
                mine = source.made.whose.shard == shard
                if mine or (source.for_all and not part.loaded and not self._has_own(shard)):
                    part.load(source.made, source.store)

        self.fleet.each(list(here), own)
        if self.fleet.registered[self.table.id].keyspace is None:
            return
        # Rows that changed their owner since: from each archive that was not loaded as a whole by its own shard.
        for source in self.sources:
            shard = source.made.whose.shard
            part = here.get(shard)
            if part is not None and (part.how != "load" or part.loaded.get(shard, 0) == source.made.rows):
                continue
            if not self.whole:
                strays = source.made.rows - (part.loaded.get(shard, 0) if part is not None else 0)
                raise errors.MisplacedRows(
                    f"{strays} rows of the archive of {self.one.name} of shard {shard} belong to other shards by now",
                    fix="restore it without --shard: each shard takes its own",
                    table=self.table.full_name,
                    shard=shard,
                )
            others = [name for name in here if name != shard]
            self.fleet.each(others, lambda name, source=source: here[name].load(source.made, source.store))  # type: ignore[misc]

    def _has_own(self, shard: str) -> bool:
        return any(source.made.whose.shard == shard for source in self.sources)

    def _compare(self) -> None:
        """Count and hash on the shards what was loaded, and compare the sums with the archives'."""
        if not self.sources:
            for part in self.parts:
                part.count(archived_columns.columns_of(part.site.connection, part.qualified))
            return
        columns = self.sources[0].made.columns
        shapes = {archived_columns.schema_hash(source.made.columns) for source in self.sources}
        if len(shapes) > 1:
            raise errors.UnfitTable(
                f"the archives of {self.one.name} of {self.table.full_name} have different columns from shard to shard",
                fix="restore shard by shard: --shard NAME",
                table=self.table.full_name,
            )
        self.fleet.each(
            [part.site.shard.name for part in self.parts],
            lambda shard: next(part for part in self.parts if part.site.shard.name == shard).count(columns),
        )
        archived = {source.made.whose.shard: (source.made.rows, source.made.checksum) for source in self.sources}
        if self.table.kind != "sharded":
            for part in self.parts:
                assert part.survey is not None
                # every copy of a reference table has the same rows
                other = next(iter(archived.values())) if self.table.kind == "reference" else (0, 0)
                wanted = archived.get(part.site.shard.name, other)
                if part.how == "load" or part.site.shard.name in archived:
                    self._agree((part.survey.rows, part.survey.checksum), wanted, part.name)
            return
        # A table that was there still may have no archive of its own: it is not in the sum.
        summed = [
            part.survey
            for part in self.parts
            if part.survey is not None and (part.how == "load" or part.site.shard.name in archived)
        ]
        found = (sum(one.rows for one in summed), sum(one.checksum for one in summed))
        total = (sum(rows for rows, _ in archived.values()), sum(checksum for _, checksum in archived.values()))
        self._agree(found, total, f"{self.one.name} of {self.table.full_name} on {len(self.parts)} shards")

    def _agree(self, found: tuple[int, int], wanted: tuple[int, int], where: str) -> None:
        if found != wanted:
            raise errors.ArchiveDiffers(
                f"what was loaded into {where} differs from its archive: {found[0]} rows with checksum {found[1]}, and not "
                f"{wanted[0]} with {wanted[1]}",
                fix="nothing was attached; run this again, and report it if it happens again",
                table=self.table.full_name,
            )

    # ---------------------------------------------------------------- declaring and attaching

    def _check_map(self) -> None:
        _refuse_moves(self.fleet, self.table)
        if self.table.keyspace is not None and maps.map_version(self.fleet.catalog) != self.map_version:
            raise errors.OperationConflict(
                f"rows of {self.table.full_name} changed their owners while they were restored", fix="run this again"
            )

    def _declare(self) -> None:
        catalog, table = self.fleet.catalog, self.table
        with catalog.transaction():
            catalog.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, table.id))
            listed = windows.list_windows(catalog, table.id)
            for other in listed:
                if other.is_guard and finding.overlap((other.lower, other.upper), self.one.span):
                    windows.resize(catalog, table.id, other.name, *self._beside(other))
            if any(other.name == self.one.name for other in listed):
                windows.reinstate(catalog, table.id, self.one.name)
            else:
                windows.add(catalog, table.id, [CatalogWindow(table.id, *self._fields())])
            windows.keep(catalog, table.id, self.one.name, self.until)

    def _fields(self) -> tuple[str, int | None, int | None, str]:
        return self.one.name, self.one.lower, self.one.upper, self.one.role

    def _attach(self, part: Bringing) -> None:
        site, one = part.site, self.one
        if part.how != "present":
            in_the_way = self._guard_of(part)
            if in_the_way is not None:
                low, high = self._beside(in_the_way)
                guard.run(site, Step("guard", in_the_way.name, low, high, in_the_way.role, (one,)))
            else:
                attach.run(site, Step("attach", one.name, one.lower, one.upper, one.role))
        failpoints.reach("partition.restore_attached")
        if self._has_own(site.shard.name):
            archives.restored(self.fleet.catalog, self.table.id, site.shard.name, one.name)

    def _guard_of(self, part: Bringing) -> Partition | None:
        """The shard's guard whose place the window takes."""
        for mark in marks.read(part.site.connection, part.site.schema, self.table.name).values():
            if mark.role in ("before", "after"):
                standing = leaves.find(part.site, mark.name)
                if standing is None or not standing.attached or standing.relid != mark.relid:
                    continue
                bounds = leaves.bounds_of(part.site, standing)
                if finding.overlap(bounds, self.one.span):
                    return Partition(mark.name, *bounds, mark.role)
        return None
