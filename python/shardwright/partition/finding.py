"""Which archives there are of a table's windows: as the catalog knows them, or as they lie in a directory or store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from shardwright import errors
from shardwright.catalog import archives, windows
from shardwright.partition import manifest, stores
from shardwright.partition.declare import overlap
from shardwright.partition.fleet import Fleet
from shardwright.partition.manifest import Manifest
from shardwright.partition.shapes import PartitionedTable
from shardwright.partition.stores import Store

__all__ = ["Source", "find", "overlap"]


@dataclass(frozen=True)
class Source:
    """One archive, and where it is."""

    made: Manifest
    store: Store
    #: Its rows are a copy of what every shard has: shards without an archive of their own take them too.
    for_all: bool = False


def find(
    fleet: Fleet, table: PartitionedTable, names: Collection[str], shards: Collection[str], place: str | None
) -> dict[str, list[Source]]:
    """The archives of windows that are to be restored.

    Args:
        fleet: catalog and shards.
        table: whose windows.
        names: the windows'; all that are archived and not wanted at present unless given.
        shards: whose archives count; all unless given.
        place: where to look; where the catalog says unless given.

    Returns:
        By window, in order of time; none for a window that is retired and was not archived, whose table is there still.

    Raises:
        UnknownShard: a shard is not in the catalog.
        BadOption: a window is not known.
        UnfitTable: a shard's archive is there and the shard is not.
        ArchiveUnusable: the place cannot be read.
    """
    for shard in shards:
        if shard not in fleet.shards:
            known = ", ".join(sorted(fleet.shards)) or "none yet"
            raise errors.UnknownShard(f"there is no shard {shard}", fix=f"shards are: {known}", shard=shard)
    found: dict[str, list[Source]] = defaultdict(list)
    for source in _in_place(table, place) if place is not None else _in_catalog(fleet, table):
        if not shards or source.made.whose.shard in shards:
            found[source.made.whose.partition].append(source)
    listed = {one.name: one for one in windows.list_windows(fleet.catalog, table.id)}
    retired = [name for name, one in listed.items() if one.state == "retired"]
    if not names:
        names = [name for name in {**found, **dict.fromkeys(retired)} if name not in listed or name in retired]
    for name in names:
        if name not in found and name not in retired:
            known = ", ".join(sorted(found)[-10:]) or "none"
            raise errors.BadOption(
                f"no archive of a window {name} of {table.full_name} is known"
                + (f" at {place}" if place is not None else ""),
                fix=f"archived windows are: {known}",
            )
    chosen = {name: found.get(name, []) for name in sorted(set(names))}
    for sources in chosen.values():
        _check(fleet, table, sources, shards)
    return chosen


def _check(fleet: Fleet, table: PartitionedTable, sources: Iterable[Source], shards: Collection[str]) -> None:
    spans = {(source.made.whose.lower, source.made.whose.upper) for source in sources}
    if len(spans) > 1:
        raise errors.UnfitTable(
            f"archives of one window of {table.full_name} have different bounds",
            fix="restore shard by shard: --shard NAME",
        )
    if table.kind == "sharded" or shards:
        return
    for source in sources:
        if source.made.whose.shard not in fleet.shards and not source.for_all:
            raise errors.UnfitTable(
                f"{source.made.file} is of shard {source.made.whose.shard}, which is no more",
                fix="restore the others with --shard NAME, and load that file by hand",
                table=table.full_name,
            )


def _in_catalog(fleet: Fleet, table: PartitionedTable) -> Iterator[Source]:
    opened: dict[str, Store] = {}
    for row in archives.list_archives(fleet.catalog, table.id):
        if row.place not in opened:
            opened[row.place] = stores.open_store(row.place)
        yield Source(Manifest.from_json(row.manifest), opened[row.place], table.kind == "reference")


def _in_place(table: PartitionedTable, place: str) -> Iterator[Source]:
    store = stores.open_store(place)
    newest: dict[tuple[str, str], Source] = {}
    with stores.explained("read", place):
        for shard in store.names(""):
            directory = f"{shard}/{manifest.directory_of('', table.schema, table.name).partition('/')[2]}"
            for name in store.names(directory):
                path = f"{directory}/{name}"
                if not name.endswith(".json") or (text := stores.read_text(store, path)) is None:
                    continue
                made = manifest.loads(text, path)
                whose = made.whose
                if (whose.schema, whose.table) != (table.schema, table.name):
                    continue
                before = newest.get((whose.shard, whose.partition))
                if before is None or before.made.written_at < made.written_at:
                    newest[whose.shard, whose.partition] = Source(made, store, table.kind == "reference")
    yield from newest.values()
