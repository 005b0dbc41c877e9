"""Who waits for whom in pools: found exactly when nobody could go on, against trying it out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwright import errors
from shardwright.session.crossings import Crossings, are_stuck

POOLS = ["s1", "s2", "s3"]
WAITS = st.lists(
    st.tuples(st.sampled_from(POOLS), st.sets(st.sampled_from(POOLS), min_size=1, max_size=2)).filter(
        lambda one: one[0] not in one[1]
    ),
    max_size=8,
)


@given(WAITS, st.integers(1, 3))
def test_it_is_what_trying_it_out_shows(waits: list[tuple[str, set[str]]], capacity: int) -> None:
    held = {pool: sum(pool in holding for _, holding in waits) for pool in POOLS}
    if any(count > capacity for count in held.values()):
        return  # no pool gives more than it has
    left = list(enumerate(waits))
    while True:
        # Whoever can be served is, ends, and gives back what it held.
        for one in left:
            _, (wanted, holding) = one
            if held[wanted] < capacity:
                left.remove(one)
                for pool in holding:
                    held[pool] -= 1
                break
        else:
            break
    assert are_stuck(dict(enumerate(waits)), capacity) == bool(left)


def test_the_one_that_would_close_the_circle_is_ended() -> None:
    crossings = Crossings(1)
    with crossings.waiting("a", "s2", "s2", ["s1"]):
        with pytest.raises(errors.PoolDeadlock) as caught, crossings.waiting("b", "s1", "s1", ["s2"]):
            raise AssertionError("it would wait for ever")
        assert caught.value.retriable
        # It is not remembered, and one that holds nothing may always wait.
        with crossings.waiting("b", "s1", "s1", []), crossings.waiting("c", "s3", "s3", ["s2"]):
            pass
    with crossings.waiting("b", "s1", "s1", ["s2"]):
        pass


def test_in_one_order_nobody_is_ended() -> None:
    crossings = Crossings(1)
    one, two = crossings.waiting("a", "s2", "s2", ["s1"]), crossings.waiting("b", "s3", "s3", ["s2"])
    with one, two, crossings.waiting("c", "s3", "s3", ["s1", "s2"]):
        pass


def test_without_a_limit_nobody_waits() -> None:
    crossings = Crossings(None)
    with crossings.waiting("a", "s2", "s2", ["s1"]), crossings.waiting("b", "s1", "s1", ["s2"]):
        pass
