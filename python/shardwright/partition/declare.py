"""What one table's declared list of partitions should be: windows for all kept time and ahead, guards at the ends. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from shardwright import errors
from shardwright.partition import calendar, moments, names
from shardwright.partition.plan import HUMAN, WARNING, Finding
from shardwright.partition.shapes import GuardRows, Partition, PartitionedTable

#: Windows that one plan makes of one table. More are made in the next ones.
MOST_AT_ONCE = 1_000

#: Windows that are made for rows before the first one. A row that is further back is a mistake, as a rule.
MOST_BACK = 100

_FIRST, _LAST = -(1 << 63), 1 << 63


@dataclass(frozen=True)
class Declared:
    """The declared list of one table."""

    wanted: tuple[Partition, ...] = ()
    #: With the moment at which each was retired.
    retired: tuple[tuple[Partition, datetime], ...] = ()
    #: Restored windows, by name, and the moment before which each is not retired.
    kept: Mapping[str, datetime] = field(default_factory=dict)

    def names(self) -> set[str]:
        """The names of all."""
        return {one.name for one in self.wanted} | {one.name for one, _ in self.retired}


@dataclass(frozen=True)
class Change:
    """How the list changes."""

    add: tuple[Partition, ...] = ()
    resize: tuple[Partition, ...] = ()
    retire: tuple[Partition, ...] = ()
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    def after(self, before: Declared, now: datetime) -> Declared:
        """The list as it will be.

        Args:
            before: as it is.
            now: when it is changed.
        """
        changed = {one.name: one for one in self.resize}
        gone = {one.name for one in self.retire}
        kept = [changed.get(one.name, one) for one in before.wanted if one.name not in gone]
        return Declared(
            tuple(sorted([*kept, *self.add], key=by_position)),
            (*before.retired, *((one, now) for one in self.retire)),
            before.kept,
        )


def by_position(one: Partition) -> tuple[int, int]:
    """Sorts partitions along the axis."""
    return (_FIRST if one.lower is None else one.lower, _LAST if one.upper is None else one.upper)


def expiring(table: PartitionedTable, declared: Declared, now: datetime) -> list[Partition]:
    """The windows whose time is over: by their upper bounds, and never the last one.

    Args:
        table: whose policy.
        declared: its list.
        now: the database's clock.
    """
    windows = sorted((one for one in declared.wanted if not one.is_guard), key=by_position)
    return [
        one
        for one in windows[:-1]
        if one.upper is not None
        and calendar.expired(table.policy, table.key, one.upper, now)
        and (one.name not in declared.kept or declared.kept[one.name] <= now)
    ]


def change(
    table: PartitionedTable,
    declared: Declared,
    now: datetime,
    *,
    kept: Collection[str] = (),
    strangers: Iterable[tuple[int | None, int | None]] = (),
    rows: Iterable[GuardRows] = (),
    taken: Collection[str] = (),
) -> Change:
    """What to change.

    Args:
        table: whose list.
        declared: as it is.
        now: the database's clock.
        kept: windows that are not retired though their time is over.
        strangers: spans of partitions that some shard has and that are not declared: nothing is declared over them.
        rows: what is in guards of some shard.
        taken: names that a new partition cannot have.
    """
    retire = [one for one in expiring(table, declared, now) if one.name not in kept]
    gone = {one.name for one in retire}
    windows = [one for one in declared.wanted if not one.is_guard and one.name not in gone]
    strangers = list(strangers)
    add, findings = _missing(table, windows, strangers, now, rows, declared.names() | set(taken))
    windows = sorted([*windows, *add], key=by_position)
    findings += _gaps(table, windows, strangers, now)
    guards, resize = _guards(table, declared, windows, strangers, declared.names() | set(taken))
    return Change((*add, *guards), tuple(resize), tuple(retire), tuple(findings))


def _missing(
    table: PartitionedTable,
    windows: Sequence[Partition],
    strangers: Sequence[tuple[int | None, int | None]],
    now: datetime,
    rows: Iterable[GuardRows],
    taken: set[str],
) -> tuple[list[Partition], list[Finding]]:
    policy, key = table.policy, table.key
    spans = {*(one.span for one in windows), *strangers}
    covered = covering(spans)
    add: list[Partition] = []
    findings: list[Finding] = []
    since = _since(table, windows, now, rows)
    begun = since is not None and since <= calendar.now_on_axis(policy, key, now)
    for window in calendar.wanted(policy, key, now, since):
        if (window.lower, window.upper) in spans:
            continue
        # Nothing is put before the oldest one, which need not begin where a window of the present policy does.
        lower = max(window.lower, since) if begun and since is not None else window.lower
        pieces = [
            piece
            for piece in uncovered(lower, window.upper, covered)
            if not calendar.expired(policy, key, piece[1], now)
        ]
        for lower, upper in pieces:
            name = names.leaf_name(table.name, calendar.label(policy, key, window), taken)
            taken.add(name)
            add.append(Partition(name, lower, upper))
        if pieces and pieces != [(window.lower, window.upper)]:
            findings.append(
                Finding(
                    "clipped-window",
                    f"{table.full_name}: the window of {calendar.label(policy, key, window)} only fills what older "
                    "partitions leave of it",
                    "nothing to do: as the policy changed, what exists stays",
                    table.full_name,
                    severity=WARNING,
                )
            )
        if len(add) >= MOST_AT_ONCE:
            break
    return add, findings


def _since(
    table: PartitionedTable, windows: Sequence[Partition], now: datetime, rows: Iterable[GuardRows]
) -> int | None:
    """From where on windows should exist: the oldest one, or rows in the guard before it that the policy keeps."""
    found: list[int] = []
    for one in windows:
        if one.lower is not None:
            found.append(one.lower)
        elif one.upper is not None:
            found.append(one.upper)
    first = min(found, default=None)
    for guard in rows:
        if guard.least is None or guard.more:
            continue
        try:
            window = calendar.window_at(table.policy, table.key, guard.least)
        except errors.BadOption:  # beyond the calendar
            continue
        until = first if first is not None else calendar.now_on_axis(table.policy, table.key, now)
        back = calendar.windows(table.policy, table.key, window.lower, until)
        few = sum(1 for _ in itertools.islice(back, MOST_BACK + 1)) <= MOST_BACK
        if few and not calendar.expired(table.policy, table.key, window.upper, now):
            found.append(window.lower)
    oldest = min(found, default=None)
    if first is not None and oldest is not None and oldest < first:
        return oldest
    return first if first is not None else oldest


def covering(spans: Iterable[tuple[int | None, int | None]]) -> list[tuple[int, int]]:
    """Spans as disjoint pieces in order, with integers for the ends of the axis; for `uncovered`.

    Args:
        spans: lower and upper bounds; None is an end of the axis. They may overlap.
    """
    merged: list[tuple[int, int]] = []
    for low, high in sorted((_FIRST if a is None else a, _LAST if b is None else b) for a, b in spans):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def uncovered(lower: int, upper: int, covered: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What spans leave of ``[lower, upper)``, in order.

    Args:
        lower: from here on.
        upper: before here.
        covered: as `covering` gives them.
    """
    left: list[tuple[int, int]] = []
    at = max(bisect.bisect_right(covered, (lower, _LAST)) - 1, 0)
    for low, high in covered[at:]:
        if low >= upper:
            break
        if low > lower:
            left.append((lower, low))
        lower = max(lower, high)
    if lower < upper:
        left.append((lower, upper))
    return left


def _gaps(
    table: PartitionedTable,
    windows: Sequence[Partition],
    strangers: Sequence[tuple[int | None, int | None]],
    now: datetime,
) -> list[Finding]:
    if not windows or windows[0].upper is None or windows[-1].lower is None:
        return []
    holes = uncovered(windows[0].upper, windows[-1].lower, covering([*(one.span for one in windows), *strangers]))
    return [
        Finding(
            "gap",
            f"{table.full_name}: no partition is declared for {told(table, low, high)}; rows of that time are refused",
            "raise the policy's `ahead` so that windows are made up to there, and shardwright table register",
            table.full_name,
            severity=HUMAN,
            facts={"lower": low, "upper": high},
        )
        for low, high in holes
        # Beside a restored window lie others whose time is over.
        if not calendar.expired(table.policy, table.key, high, now)
    ]


def told(table: PartitionedTable, lower: int | None, upper: int | None) -> str:
    """A span for people.

    Args:
        table: whose axis.
        lower: from here on.
        upper: before here.
    """
    shown = "timestamptz" if table.key not in ("timestamp", "date") else table.key
    low, high = (None if at is None else moments.text_of(at, shown) for at in (lower, upper))
    return f"{low or 'the beginning'} to {high or 'the end'}"


def _guards(
    table: PartitionedTable,
    declared: Declared,
    windows: Sequence[Partition],
    strangers: Sequence[tuple[int | None, int | None]],
    taken: set[str],
) -> tuple[list[Partition], list[Partition]]:
    """Guards that are new, and those with other bounds than before."""
    if not windows:
        return [], []
    have = {one.role: one for one in declared.wanted if one.is_guard}
    spans: dict[Literal["before", "after"], tuple[int | None, int | None]] = {
        "before": (None, windows[0].lower),
        "after": (windows[-1].upper, None),
    }
    add, resize = [], []
    for role, span in spans.items():
        if span == (None, None) or any(overlap(span, other) for other in strangers):
            continue
        if role not in have:
            if table.policy.guards:
                add.append(Partition(names.guard_name(table.name, role, taken), *span, role))
        elif have[role].span != span:
            resize.append(Partition(have[role].name, *span, role))
    return add, resize


def overlap(one: tuple[int | None, int | None], other: tuple[int | None, int | None]) -> bool:
    """Whether two spans share a point.

    Args:
        one: lower and upper bound; None is an end of the axis.
        other: another one.
    """
    low = max(_FIRST if at is None else at for at in (one[0], other[0]))
    high = min(_LAST if at is None else at for at in (one[1], other[1]))
    return low < high
