"""Names of partitions fit into 63 bytes, keep their label and differ where their windows do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright.errors import BadOption
from shardwright.partition.names import MAX_BYTES, guard_name, leaf_name

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
tables = st.one_of(
    texts.filter(lambda text: len(text.encode()) <= MAX_BYTES),
    st.builds(
        lambda text, n: text.encode()[:n].decode(errors="ignore"), texts.map(lambda t: t * 60), st.integers(40, 63)
    ),
).filter(bool)
labels = st.sampled_from(["2026", "2026q4", "2026_11", "2026w48", "20261125", "20261125t06", "20261125t0630"])


def test_plain_names() -> None:
    assert leaf_name("analytics_events", "2026_11") == "analytics_events_p2026_11"
    assert guard_name("analytics_events", "before") == "analytics_events_p_before"
    assert guard_name("analytics_events", "after") == "analytics_events_p_after"
    assert leaf_name('Odd "Table"', "2026") == 'Odd "Table"_p2026'


@given(table=tables, label=labels, other=labels)
def test_names_fit_keep_their_label_and_differ(table: str, label: str, other: str) -> None:
    name = leaf_name(table, label)
    assert len(name.encode()) <= MAX_BYTES
    assert name.endswith(f"_p{label}")
    assert name == leaf_name(table, label)
    assert (name == leaf_name(table, other)) == (label == other)
    if len(table.encode()) + len(label) + 2 <= MAX_BYTES:
        assert name == f"{table}_p{label}"
    else:
        assert table.startswith(name[: -len(label) - 2 - 9])
    guard = guard_name(table, "after")
    assert len(guard.encode()) <= MAX_BYTES
    assert guard != guard_name(table, "before")


@given(table=tables, label=labels, times=st.integers(1, 5))
def test_a_taken_name_gets_a_hash(table: str, label: str, times: int) -> None:
    taken: set[str] = set()
    for _ in range(times):
        name = leaf_name(table, label, taken)
        assert name not in taken
        assert name.endswith(f"_p{label}")
        assert len(name.encode()) <= MAX_BYTES
        taken.add(name)
    assert guard_name(table, "before", {guard_name(table, "before")}).endswith("_p_before")


def test_tables_with_one_beginning_differ() -> None:
    one, two = "t" * 62 + "a", "t" * 62 + "b"
    assert leaf_name(one, "2026_11") != leaf_name(two, "2026_11")
    # One table's leaves stand together.
    assert leaf_name(one, "2026_11")[:-8] == leaf_name(one, "2026_12")[:-8]


def test_bytes_are_counted_and_characters_stay_whole() -> None:
    name = leaf_name("ä" * 31, "20261125t06")
    assert name.startswith("ä" * 20)
    assert len(name.encode()) in (62, 63)
    assert leaf_name("漢" * 21, "2026").isprintable()
    assert "\ufffd" not in leaf_name("😀" * 15, "20261125")


def test_a_label_that_leaves_no_room() -> None:
    with pytest.raises(BadOption, match="no room"):
        leaf_name("t" * 60, "x" * 60)
