"""The pure parts of adoption: policies from intervals and wishes, what takes a DEFAULT's place, and what contradicts what."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright import errors
from shardwright.partition import agreeing, calendar, declare, instead, partman, wishes
from shardwright.partition.agreeing import Here
from shardwright.partition.declare import Declared
from shardwright.partition.handmade import FoundLeaf, FoundTable
from shardwright.partition.partman import PartmanSet
from shardwright.partition.shapes import Partition, PartitionedTable
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAY = 86_400_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(text: str) -> int:
    return int((datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))


def table(**policy: Any) -> PartitionedTable:
    return PartitionedTable(
        1, "public", "t", "local", Policy(**{"column": "at", "every": "1 month", **policy}), "timestamptz"
    )


def found(*bounds: tuple[str, str]) -> FoundTable:
    leaves = [
        FoundLeaf(n, "public", f"l{n}", "r", "p", f"FOR VALUES FROM ('{low}') TO ('{high}')", False, "o", True, "", "")
        for n, (low, high) in enumerate(bounds)
    ]
    return FoundTable(1, "p", False, "r", "RANGE (at)", ("at",), False, (), tuple(leaves))


@pytest.mark.parametrize(
    ("interval", "span"),
    [
        ((1, 0, 0), "1 month"), ((12, 0, 0), "1 year"), ((3, 0, 0), "3 months"), ((0, 7, 0), "1 week"), ((0, 30, 0), "30 days"),
        ((0, 0, 3600), "1 hour"), ((0, 0, 1800), None), ((1, 1, 0), None), ((0, 0, 0), None), ((-1, 0, 0), None),
    ],
)  # fmt: skip
def test_intervals_as_spans(interval: tuple[int, int, float], span: str | None) -> None:
    assert partman.span_of(*interval) == span


MONTH = found(("2026-11-01 00:00:00+00", "2026-12-01 00:00:00+00"))
SET = PartmanSet(
    "p", "public.t", False, policy={"column": "at", "every": "1 week", "ahead": 7}, notes=("x: give --keep",)
)


@pytest.mark.parametrize(
    ("wish", "kept", "sets", "policy", "from_where"),
    [
        (Wish(every="1 month"), None, [], Policy("at", "1 month"), "given"),
        (
            Wish(every="1 month", ahead=2, holds="epoch_s"),
            None,
            [],
            Policy("at", "1 month", ahead=2, key="epoch_s"),
            "given",
        ),
        (Wish(), None, [SET], Policy("at", "1 week", ahead=7), "pg_partman"),
        (Wish(every="1 day", keep="9 days"), None, [SET], Policy("at", "1 day", keep="9 days", ahead=7), "pg_partman"),
        (Wish(), Policy("at", "1 year"), [SET], Policy("at", "1 year"), "catalog"),
        (Wish(ahead=3), Policy("at", "1 year"), [], Policy("at", "1 year"), "catalog"),
        (Wish(Declaration("local", policy=Policy("at", "2 days"))), None, [SET], Policy("at", "2 days"), "given"),
    ],
)
def test_whose_word_counts(
    wish: Wish, kept: Policy | None, sets: list[PartmanSet], policy: Policy, from_where: str
) -> None:
    column_type = "timestamptz" if wish.holds is None else "bigint"
    made, where, notes = wishes.resolve("public.t", wish, kept, sets, MONTH, column_type)
    assert (made, where) == (policy, from_where)
    assert any("--keep" in note for note in notes) is (from_where == "pg_partman" and wish.keep is None)


def test_another_policy_is_kept() -> None:
    with pytest.raises(errors.BadOption, match="has a policy already"):
        wishes.resolve("public.t", Wish(keep="1 year"), Policy("at", "1 year"), [], MONTH, "timestamptz")


@pytest.mark.parametrize(
    ("bounds", "every", "anchor"),
    [
        (("2026-11-01 00:00:00+00", "2026-12-01 00:00:00+00"), "1 month", None),
        (("2026-11-15 00:00:00+00", "2026-12-15 00:00:00+00"), "1 month", "2026-11-15T00:00:00"),
        (("2026-11-26 00:00:00+00", "2026-12-03 00:00:00+00"), "1 week", "2026-11-26T00:00:00"),
        (("2026-11-26 12:00:00+00", "2026-11-27 12:00:00+00"), "1 day", "2026-11-26T12:00:00"),
        (("2026-11-26 00:00:00+00", "2026-12-04 00:00:00+00"), "1 week", None),
        (("2026-11-26 00:00:00.5+00", "2026-12-03 00:00:00.5+00"), "1 week", None),
    ],
)
def test_windows_go_on_in_the_rhythm_of_the_newest(bounds: tuple[str, str], every: str, anchor: str | None) -> None:
    policy, _, notes = wishes.resolve("public.t", Wish(every=every), None, [], found(bounds), "timestamptz")
    assert policy.anchor == anchor
    assert bool(notes) is (anchor is not None)


CUTS = st.lists(st.integers(at("2020-01-01") // DAY, at("2027-06-01") // DAY), min_size=2, max_size=12, unique=True)


@given(CUTS, st.data(), st.sampled_from(["1 week", "1 month", "1 year"]), st.one_of(st.none(), st.just("6 months")))
def test_no_time_is_left_without_a_place(cuts: list[int], data: st.DataObject, every: str, keep: str | None) -> None:
    """What is there and what takes the DEFAULT's place tile the axis; only gaps that are over, without rows, are left."""
    pairs = list(itertools.pairwise(sorted(cuts)))
    there = [Partition(f"l{low}", low * DAY, high * DAY) for low, high in pairs if data.draw(st.booleans())]
    mine = table(every=every, keep=keep)
    moments = data.draw(st.lists(st.integers(at("2019-01-01"), at("2030-01-01")), max_size=5))
    rows = {calendar.window_at(mine.policy, mine.key, moment) for moment in moments}
    made = instead.instead(mine, there, rows, NOW, ())
    spans = sorted((*there, *made), key=declare.by_position)
    assert spans[0].lower is None
    assert spans[-1].upper is None
    assert len({one.name for one in spans}) == len(spans)
    for before, after in itertools.pairwise(spans):
        assert before.upper is not None
        assert after.lower is not None
        assert before.upper <= after.lower
        if before.upper < after.lower:
            assert calendar.expired(mine.policy, mine.key, after.lower, NOW)
            assert not any(before.upper < window.upper and window.lower < after.lower for window in rows)


@given(CUTS, st.data())
def test_what_one_shard_alone_has_contradicts_nobody(cuts: list[int], data: st.DataObject) -> None:
    """Pieces of one tiling, on whichever shards, agree; a piece that is shifted by a day does not."""
    pairs = list(itertools.pairwise(sorted(cuts)))
    here = [
        Here(shard, _leaf(f"l{low}"), low * DAY, high * DAY)
        for shard in ("s1", "s2")
        for low, high in pairs
        if data.draw(st.booleans())
    ]
    assert agreeing.contradictions(table(), Declared(), here) == []
    if here:
        some = data.draw(st.sampled_from(here))
        assert some.upper is not None
        shifted = Here("s3", _leaf("other"), some.lower, some.upper + DAY)
        assert agreeing.contradictions(table(), Declared(), [*here, shifted])


def _leaf(name: str) -> FoundLeaf:
    return FoundLeaf(1, "public", name, "r", "p", "", False, "o", True, "", "")
