"""Plans: pure values made from a map and what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright import errors
from shardwright.reshard.plan import make_batches, make_plan
from shardwright.routing.multirange import Multirange
from shardwright.routing.shard_map import Keyspace, Range, ShardMap

USERS = Keyspace(1, "users", "hash", "int8", 4096)
DAYS = Keyspace(2, "days", "range", "int8", None)
MAP = ShardMap(
    7,
    (USERS, DAYS),
    (
        Range(1, "users", 0, 2048, "s1"),
        Range(2, "users", 2048, 4096, "s2"),
        Range(3, "days", None, 100, "s1"),
        Range(4, "days", 100, None, "s2"),
    ),
)
WEIGHTS = {"s1": 1, "s2": 1, "s3": 1}


def test_adding_a_shard_moves_its_share_and_nothing_else() -> None:
    plan = make_plan(MAP, WEIGHTS, add="s3")
    assert {move.target for move in plan.moves} == {"s3"}
    assert {move.keyspace for move in plan.moves} == {"users"}
    assert sum(move.points.count() or 0 for move in plan.moves) == 1365
    assert plan.shares["users"]["s3"] == (0, 1365)


def test_draining_takes_all_and_asks_where_ranges_go() -> None:
    with pytest.raises(errors.BadOption, match="range keyspace days"):
        make_plan(MAP, WEIGHTS, drain="s2")
    plan = make_plan(MAP, {"s1": 1, "s2": 1}, drain="s2")
    assert {(move.keyspace, move.source, move.target) for move in plan.moves} == {
        ("users", "s2", "s1"),
        ("days", "s2", "s1"),
    }


def test_a_named_range_moves_from_whoever_owns_it() -> None:
    plan = make_plan(MAP, WEIGHTS, move="users:[2000,2100)", to="s3")
    assert {(m.source, m.points.literal()) for m in plan.moves} == {("s1", "{[2000,2048)}"), ("s2", "{[2048,2100)}")}
    opened = make_plan(MAP, WEIGHTS, move="days:[50,)", to="s3")
    assert {(m.source, m.points.literal()) for m in opened.moves} == {("s1", "{[50,100)}"), ("s2", "{[100,)}")}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, errors.BadOption),
        ({"add": "s3", "drain": "s1"}, errors.BadOption),
        ({"move": "users:[0,5)"}, errors.BadOption),
        ({"to": "s3"}, errors.BadOption),
        ({"add": "s9"}, errors.UnknownShard),
        ({"move": "users:[0,5)", "to": "s9"}, errors.UnknownShard),
        ({"move": "nobody:[0,5)", "to": "s3"}, errors.UnknownKeyspace),
        ({"move": "users:[5,5)", "to": "s3"}, errors.BadRange),
        ({"move": "users:[9,5)", "to": "s3"}, errors.BadRange),
        ({"move": "users:[0,9999)", "to": "s3"}, errors.BadRange),
        ({"move": "users:0-5", "to": "s3"}, errors.BadRange),
        ({"move": "users:[0,5)", "to": "s1"}, errors.BadOption),
        ({"new_weights": {"s1": 1}, "add": None}, errors.BadOption),
        ({"add": "s3", "batch_shares": (0.5, 0.2)}, errors.BadOption),
    ],
)
def test_what_cannot_be_planned(asked: dict[str, object], error: type[errors.ShardwrightError]) -> None:
    weights = {"s1": 1, "s2": 1} if "new_weights" in asked else WEIGHTS
    with pytest.raises(error):
        make_plan(MAP, weights, **asked)  # type: ignore[arg-type]


def test_fingerprints_follow_map_moves_and_batches() -> None:
    plan = make_plan(MAP, WEIGHTS, add="s3")
    assert plan.fingerprint == make_plan(MAP, WEIGHTS, add="s3").fingerprint
    assert plan.fingerprint != make_plan(MAP, WEIGHTS, add="s3", batch_shares=(1.0,)).fingerprint
    assert plan.fingerprint != make_plan(MAP, WEIGHTS, move="users:[0,5)", to="s3").fingerprint


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 96)), min_size=1, max_size=20),
    st.lists(st.floats(0.001, 0.999), max_size=4, unique=True),
)
def test_batches_tile_what_moves(pieces: list[tuple[int, int]], shares: list[float]) -> None:
    points = Multirange(())
    for lo, size in pieces:
        points |= Multirange(((lo, lo + size),))
    batches = make_batches(points, (*sorted(shares), 1.0))
    assert batches[0].count() == 1
    whole = Multirange(())
    for batch in batches:
        assert batch
        assert not whole & batch
        whole |= batch
    assert whole == points


def test_an_unbounded_move_is_one_batch() -> None:
    points = Multirange(((None, 5), (9, None)))
    assert make_batches(points) == (points,)
