"""What takes the place of a DEFAULT partition: windows for its rows, and for time between others, and guards at the ends. Pure.

Whatever the DEFAULT partition would have taken has a place afterwards: no insert is refused that was not before, but for
gaps whose time is over by the policy and that have no rows. One with more rows than can be moved under a lock becomes a
partition itself, of the one stretch of time that its rows are of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from shardwright.partition import calendar, moments, names, pieces
from shardwright.partition.calendar import Window
from shardwright.partition.declare import MOST_BACK, by_position, overlap
from shardwright.partition.shapes import Partition, PartitionedTable

#: A DEFAULT partition that stays takes rows for at least so long: its shards have to be through by then.
MARGIN: Final = timedelta(days=2)


def instead(
    table: PartitionedTable,
    listed: Sequence[Partition],
    occupied: Collection[Window],
    now: datetime,
    taken: Collection[str],
) -> list[Partition]:
    """The partitions to be declared besides those that are.

    Args:
        table: whose policy.
        listed: what is declared, or is going to be.
        occupied: the calendar's windows that have rows in a DEFAULT partition of some shard.
        now: the databases' clock.
        taken: names that are not free.
    """
    policy, key = table.policy, table.key
    windows = sorted((one for one in listed if not one.is_guard), key=by_position)
    guards = {one.role for one in listed if one.is_guard}
    rows = set(occupied)
    if not windows:
        rows.add(calendar.window_at(policy, key, calendar.now_on_axis(policy, key, now)))
    used = {*taken, *(one.name for one in listed)}
    found: list[Partition] = []
    for hole in _holes(windows):
        if (hole.lower is None and "before" in guards) or (hole.upper is None and "after" in guards):
            continue
        inside = _near(
            table, hole, sorted(window for window in rows if overlap((window.lower, window.upper), hole.span)), now
        )
        is_gap = hole.lower is not None and hole.upper is not None
        if is_gap and not inside and hole.upper is not None and calendar.expired(policy, key, hole.upper, now):
            continue
        for piece in _pieces(table, hole, inside, used):
            if policy.guards or (piece.lower is not None and piece.upper is not None):
                used.add(piece.name)
                found.append(piece)
    return found


def _pieces(table: PartitionedTable, hole: Partition, inside: list[Window], used: set[str]) -> list[Partition]:
    if hole.lower is None and not inside:
        return [Partition(names.guard_name(table.name, "before", used), None, hole.upper, "before")]
    return pieces.cut(table.policy, table.key, table.name, hole, inside, taken=used)


def turned(
    table: PartitionedTable, listed: Sequence[Partition], name: str, least: int, most: int, now: datetime
) -> tuple[Partition | None, str]:
    """A DEFAULT partition as one with bounds, and why it cannot be.

    Args:
        table: whose policy.
        listed: what is declared, or is going to be.
        name: of the DEFAULT partition.
        least: position of its first row on all shards.
        most: position of its last one.
        now: the databases' clock.

    Returns:
        The partition, or None; what is wrong, empty where nothing is.
    """
    policy, key = table.policy, table.key
    cut = calendar.window_at(policy, key, calendar.now_on_axis(policy, key, now + MARGIN)).upper
    for hole in _holes(sorted((one for one in listed if not one.is_guard), key=by_position)):
        if not _covers(hole, least, most):
            continue
        if hole.upper is not None:
            return Partition(name, hole.lower, hole.upper, "whole"), ""
        if most < cut:
            return Partition(name, hole.lower, cut, "whole"), ""
        return None, f"rows from {moments.text_of(cut, 'timestamp')} on among them"
    return None, "rows before and behind other partitions among them"


def _covers(hole: Partition, least: int, most: int) -> bool:
    return (hole.lower is None or hole.lower <= least) and (hole.upper is None or most < hole.upper)


def _holes(windows: Sequence[Partition]) -> Iterator[Partition]:
    """The spans that windows leave, in order."""
    at: int | None = None
    for one in windows:
        if one.lower is not None and (at is None or at < one.lower):
            yield Partition("", at, one.lower)
        at = one.upper
        if at is None:
            return
    yield Partition("", at, None)


def _near(table: PartitionedTable, hole: Partition, inside: list[Window], now: datetime) -> list[Window]:
    """Windows with rows that get a partition: between others all of them; beyond only those that a tick would make too.

    Rows that are further away go to a guard, where they are told of.
    """
    policy, key = table.policy, table.key
    if hole.upper is None:
        last = calendar.wanted(policy, key, now)[-1].upper
        inside = [window for window in inside if window.upper <= last]
    if hole.lower is None:
        inside = [window for window in inside if not calendar.expired(policy, key, window.upper, now)]
        end = hole.upper if hole.upper is not None else calendar.now_on_axis(policy, key, now)
        while inside and sum(1 for _ in calendar.windows(policy, key, inside[0].lower, end)) > MOST_BACK:
            inside = inside[1:]
    return inside
