"""What a fat partition is cut into: windows that have rows, and what lies between them. Pure.

The pieces tile the fat partition's span, so that no row that is written while they are filled lacks a place. Windows
are the policy's; a long run of empty ones stays one piece, and so does what is older than asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from shardwright.partition import calendar, names
from shardwright.partition.calendar import Window
from shardwright.partition.shapes import Partition
from shardwright.routing.policy import Policy

#: Empty windows in a row that still get a partition each.
FEW: Final = 12


def cut(
    policy: Policy,
    key: str,
    table: str,
    fat: Partition,
    occupied: Sequence[Window],
    *,
    since: int | None = None,
    taken: Collection[str] = (),
) -> list[Partition]:
    """The pieces of a fat partition, in order.

    Args:
        policy: gives the windows.
        key: one of `policy.KEYS`, as resolved from the column's type.
        table: the parent's name.
        fat: the partition that is to be cut.
        occupied: the policy's windows that have rows in it, in order.
        since: what lies before the window of this moment stays one piece.
        taken: names that are not free.
    """
    spans = list(_spans(policy, key, fat, occupied, since))
    used = set(taken)
    found: list[Partition] = []
    for lower, upper, role in spans:
        name = _name(policy, key, table, lower, upper, role, used)
        used.add(name)
        found.append(Partition(name, lower, upper, role))
    return found


def _spans(
    policy: Policy, key: str, fat: Partition, occupied: Sequence[Window], since: int | None
) -> Iterator[tuple[int | None, int | None, str]]:
    start = calendar.window_at(policy, key, since).lower if since is not None else None
    cursor, has_begun = fat.lower, False
    if start is not None and (fat.lower is None or fat.lower < start):
        if fat.upper is not None and start >= fat.upper:
            yield fat.lower, fat.upper, "whole"
            return
        yield fat.lower, start, "whole"
        cursor, has_begun = start, True
    for window in occupied:
        if start is not None and window.lower < start:
            continue
        lower = window.lower if cursor is None or window.lower >= cursor else cursor
        upper = window.upper if fat.upper is None else min(window.upper, fat.upper)
        if upper <= lower:
            continue
        if cursor is None:
            yield None, lower, "before" if policy.guards else "whole"
        elif cursor < lower:
            yield from _empty(policy, key, cursor, lower)
        yield lower, upper, "window"
        cursor, has_begun = upper, True
    if not has_begun and cursor is None and fat.upper is not None:
        yield None, fat.upper, "whole"
    elif fat.upper is None:
        yield cursor, None, "after" if policy.guards else "whole"
    elif cursor is not None and cursor < fat.upper:
        yield from _empty(policy, key, cursor, fat.upper)


def _empty(policy: Policy, key: str, lower: int, upper: int) -> Iterator[tuple[int, int, str]]:
    """What fills a span without rows: windows where they are few."""
    found: list[Window] = []
    for window in calendar.windows(policy, key, lower, upper):
        found.append(window)
        if len(found) > FEW:
            yield lower, upper, "whole"
            return
    for window in found:
        yield max(window.lower, lower), min(window.upper, upper), "window"
    if not found:  # outside of the calendar
        yield lower, upper, "whole"


def _name(
    policy: Policy, key: str, table: str, lower: int | None, upper: int | None, role: str, taken: Collection[str]
) -> str:
    if role == "before" or role == "after":
        return names.guard_name(table, "before" if role == "before" else "after", taken)
    if role == "window" and lower is not None:
        window = calendar.window_at(policy, key, lower)
        return names.leaf_name(table, calendar.label(policy, key, window), taken)
    if upper is None:
        return names.leaf_name(table, "_rest", taken)
    if lower is None:
        return names.leaf_name(table, "_old", taken)
    first = calendar.window_at(policy, key, lower)
    return names.leaf_name(table, f"_from_{calendar.label(policy, key, first)}", taken)
