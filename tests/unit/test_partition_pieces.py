"""Pieces tile the partition that is cut, whatever windows have rows."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shardwright.partition import calendar, pieces
from shardwright.partition.calendar import Window
from shardwright.partition.shapes import Partition
from shardwright.routing.policy import Policy

MONTHS = Policy("at", "1 month")


def at(year: int, month: int, day: int = 1) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 1_000_000


def window(year: int, month: int, policy: Policy = MONTHS) -> Window:
    return calendar.window_at(policy, "timestamptz", at(year, month))


def cut(fat: Partition, *occupied: Window, policy: Policy = MONTHS, since: int | None = None) -> list[Partition]:
    return pieces.cut(policy, "timestamptz", "events", fat, occupied, since=since, taken={"events_p2026_03"})


def test_windows_with_rows_and_what_is_around_them() -> None:
    found = cut(Partition("fat", None, at(2026, 5), "whole"), window(2026, 1), window(2026, 3))
    assert [(one.role, one.lower, one.upper) for one in found] == [
        ("before", None, at(2026, 1)),
        ("window", at(2026, 1), at(2026, 2)),
        ("window", at(2026, 2), at(2026, 3)),
        ("window", at(2026, 3), at(2026, 4)),
        ("window", at(2026, 4), at(2026, 5)),
    ]
    assert found[0].name == "events_p_before"
    assert found[1].name == "events_p2026_01"
    assert found[3].name != "events_p2026_03", "a name that is taken"


def test_a_long_gap_is_one_piece() -> None:
    found = cut(Partition("fat", at(1970, 1), at(2026, 2), "whole"), window(1970, 1), window(2026, 1))
    assert [one.role for one in found] == ["window", "whole", "window"]


def test_what_is_older_stays_one_piece() -> None:
    fat = Partition("fat", None, at(2026, 3), "whole")
    found = cut(fat, window(2025, 1), window(2026, 1), since=at(2026, 1, 15))
    assert [one.role for one in found] == ["whole", "window", "window"]
    assert cut(fat, window(2025, 1), since=at(2030, 1))[0].span == fat.span


def test_without_guards_the_ends_are_whole() -> None:
    policy = Policy("at", "1 month", guards=False)
    found = cut(Partition("fat", None, None, "whole"), window(2026, 1), policy=policy)
    assert [one.role for one in found] == ["whole", "window", "whole"]
    guarded = cut(Partition("fat", None, None, "whole"), window(2026, 1))
    assert [one.role for one in guarded] == ["before", "window", "after"]


moments = st.integers(at(2000, 1), at(2030, 1))


@given(
    st.none() | moments,
    st.none() | moments,
    st.lists(moments, max_size=8),
    st.none() | moments,
    st.sampled_from(["1 month", "1 week", "2 years"]),
)
def test_pieces_tile(lower: int | None, upper: int | None, rows: list[int], since: int | None, every: str) -> None:
    if lower is not None and upper is not None and upper <= lower:
        return
    policy = Policy("at", every)
    rows = [one for one in rows if (lower is None or one >= lower) and (upper is None or one < upper)]
    occupied = sorted({calendar.window_at(policy, "timestamptz", one) for one in rows})
    found = cut(Partition("fat", lower, upper, "whole"), *occupied, policy=policy, since=since)
    assert (found[0].lower, found[-1].upper) == (lower, upper)
    assert all(one.upper == other.lower for one, other in pairwise(found))
    assert all(one.lower is None or one.upper is None or one.lower < one.upper for one in found)
    assert len({one.name for one in found}) == len(found)
    for row in rows:
        (home,) = (
            one for one in found
            if (one.lower is None or one.lower <= row) and (one.upper is None or row < one.upper)
        )  # fmt: skip
        assert home.role in ("window", "whole")
        if since is None:
            assert home.role == "window"
