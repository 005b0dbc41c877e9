from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright.errors import BadRange
from shardwright.routing.multirange import INT8_MAX, INT8_MIN, Multirange
from shardwright.routing.shard_map import Keyspace

HASH = Keyspace(1, "users", "hash", "int8", 16)
LINE = Keyspace(2, "orders", "range", "int8")

bounds = st.one_of(st.none(), st.integers(-8, 8))
pieces = st.tuples(bounds, bounds).filter(lambda piece: None in piece or piece[0] < piece[1])
sets = st.lists(pieces, max_size=5).map(lambda found: Multirange(tuple(found)))
points = st.integers(-10, 10)


@pytest.mark.parametrize(
    ("given_pieces", "literal"),
    [
        ((), "{}"),
        (((0, 5), (9, None)), "{[0,5),[9,)}"),
        (((9, 12), (0, 5)), "{[0,5),[9,12)}"),
        (((0, 5), (5, 9)), "{[0,9)}"),
        (((0, 9), (2, 3)), "{[0,9)}"),
        (((None, 3), (1, None)), "{(,)}"),
        (((None, -1),), "{(,-1)}"),
        (((INT8_MIN, INT8_MAX),), "{[-9223372036854775808,9223372036854775807)}"),
    ],
)
def test_literal(given_pieces: tuple[tuple[int | None, int | None], ...], literal: str) -> None:
    found = Multirange(given_pieces)
    assert found.literal() == str(found) == literal
    assert Multirange.parse(literal) == found
    assert hash(Multirange.parse(literal)) == hash(found)


@pytest.mark.parametrize(
    "bad",
    [(5, 5), (6, 5), (True, 5), (0, 2**63), (-(2**63) - 1, 0), ("0", 5), (0.0, 5)],
)
def test_bad_pieces_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(BadRange):
        Multirange((bad,))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "[0,5",
        "0,5",
        "[0;5)",
        "{[0,5)",
        "{[0,5)[6,7)}",
        "{[0,5),}",
        "[5,5)",
        "[5,0)",
        "[0,5))",
        "[0,1.5)",
        "{,}",
    ],
)
def test_bad_texts_are_refused(bad: str) -> None:
    with pytest.raises(BadRange):
        Multirange.parse(bad)


@given(sets, sets, points)
def test_operators_are_those_of_sets(one: Multirange, two: Multirange, point: int) -> None:
    assert (point in (one | two)) == (point in one or point in two)
    assert (point in (one & two)) == (point in one and point in two)
    assert (point in (one - two)) == (point in one and point not in two)


@given(sets, sets)
def test_laws(one: Multirange, two: Multirange) -> None:
    assert one | two == two | one
    assert one & two == two & one
    assert (one - two) | (one & two) == one
    assert not (one - two) & two
    assert Multirange(one.pieces) == one
    assert Multirange.parse(one.literal()) == one
    assert bool(one) == bool(one.pieces)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)).filter(lambda p: p[0] < p[1])))
def test_count(found: list[tuple[int, int]]) -> None:
    assert Multirange(tuple(found)).count() == len({point for lo, hi in found for point in range(lo, hi)})


def test_unbounded_sets_have_no_count() -> None:
    assert Multirange(((None, 3),)).count() is None
    assert Multirange(((0, 3), (7, None))).count() is None


def test_only_integers_are_points() -> None:
    assert 3 in Multirange(((0, 5),))
    assert "3" not in Multirange(((0, 5),))


@pytest.mark.parametrize(
    ("text", "inside"),
    [("[3,5)", "{[3,5)}"), ("[3,)", "{[3,16)}"), ("[,3)", "{[0,3)}"), ("(,)", "{[0,16)}"), ("[0,16)", "{[0,16)}")],
)
def test_open_ends_become_the_keyspaces(text: str, inside: str) -> None:
    assert Multirange.parse(text).bounds_within(HASH).literal() == inside
    assert Multirange.parse(text).bounds_within(LINE) == Multirange.parse(text)


@pytest.mark.parametrize("text", ["[-1,5)", "[0,17)", "[16,)", "(,0)", "{}", "{[0,1),[20,)}"])
def test_points_outside_the_keyspace_are_refused(text: str) -> None:
    with pytest.raises(BadRange):
        Multirange.parse(text).bounds_within(HASH)
