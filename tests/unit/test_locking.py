"""How the statement of whoever is in the way is shown: enough to know it by, without its values."""

from __future__ import annotations

import pytest

from shardwright.catalog import locking


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (
            "SELECT * FROM events\n WHERE a = 'it''s me' AND n = 42 AND b = $1",
            ": SELECT * FROM events WHERE a = ? AND n = ? AND b = $1",
        ),
        (r"INSERT INTO x2 VALUES ($$secret$$, E'x\'y', 1.5)", ": INSERT INTO x2 VALUES (?, ?, ?)"),
        ("UPDATE t SET a = 'cut off in the mid", ": UPDATE t SET a = ?"),
        ("SELECT $tag$ it's $tag$", ": SELECT ?"),
        ("", ""),
    ],
)  # fmt: skip
def test_values_are_left_out(query: str, shown: str) -> None:
    assert locking._query(query) == shown


def test_long_ones_are_cut() -> None:
    assert locking._query("SELECT " + "a, " * 100).endswith("...")
    assert len(locking._query("SELECT " + "a, " * 100)) < 90
