"""Ids that are made in a process: never one twice, whatever clocks, threads, grants and forks do."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardwright
from shardwright import errors
from shardwright.catalog.generators import Grant
from shardwright.ids import EPOCH_MS, Id, Uuids
from shardwright.session import generating
from shardwright.session.generating import SPAN_MS, Generator


class Catalog:
    """Grants as the catalog does, from a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.granted: dict[int, int] = {}
        self.numbers = iter(range(1023, -1, -1))
        self.is_away = False
        self.asked = 0

    def ask(self, before: Grant | None) -> Grant:
        self.asked += 1
        if self.is_away:
            raise errors.CannotConnect("away")
        keeps = before is not None and self.granted[before.number] == before.end
        number = before.number if before is not None and keeps else next(self.numbers)
        first = max(self.granted.get(number, 0), self.now)
        self.granted[number] = first + SPAN_MS
        return Grant(number, first, first + SPAN_MS, self.now)


class Clock:
    def __init__(self) -> None:
        self.seconds = 500.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def no_others() -> Iterator[None]:
    before = set(generating._generators)
    yield
    for one in set(generating._generators) - before:
        one.close()


@given(st.integers(0, 2**41 - 1), st.integers(0, 1023), st.integers(0, 4095))
def test_an_id_is_taken_apart_again(stamp: int, generator: int, count: int) -> None:
    one = Id(stamp, generator, count)
    assert 0 <= int(one) < 2**63
    assert Id.read(int(one)) == one


def test_ids_of_later_milliseconds_are_greater() -> None:
    assert int(Id(7, 1023, 4095)) < int(Id(8, 0, 0))
    assert Id(0, 0, 0).made_at == datetime(2025, 1, 1, tzinfo=UTC)
    assert Id(0, 0, 0).made_at.timestamp() * 1000 == EPOCH_MS


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 5000)),
        st.tuples(st.just("time"), st.integers(-3 * SPAN_MS, 3 * SPAN_MS)),
        st.tuples(st.just("catalog"), st.integers(-3 * SPAN_MS, 3 * SPAN_MS)),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_whatever_happens_no_id_comes_twice_and_they_grow(steps: list[tuple[str, int]]) -> None:
    catalog, clock = Catalog(), Clock()
    generators = [Generator(catalog.ask, clock)]
    seen: set[int] = set()
    for what, amount in steps:
        if what == "take":
            for generator in generators:
                stamps = []
                for _ in range(amount // len(generators)):
                    made = generator.next()
                    assert made not in seen
                    seen.add(made)
                    stamps.append(Id.read(made).stamp)
                assert stamps == sorted(stamps)
        elif what == "time":
            clock.seconds += amount / 1000
        elif what == "catalog":
            catalog.now += amount
        elif what == "lose":
            # An answer that never came: what it granted is nobody's.
            catalog.ask(generators[0]._grant)
        elif len(generators) < 4:
            child = Generator(catalog.ask, clock)
            child._grant, child._granted_at, child._last = (
                generators[0]._grant,
                generators[0]._granted_at,
                generators[0]._last,
            )
            child.begin_anew()
            generators.append(child)
    for generator in generators:
        if generator._renewer is not None:
            generator._renewer.join(5)


def test_threads_get_ids_of_their_own() -> None:
    generator = Generator(Catalog().ask)
    made: list[list[int]] = [[] for _ in range(8)]

    def take(mine: list[int]) -> None:
        mine.extend(generator.next() for _ in range(5000))

    threads = [threading.Thread(target=take, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for mine in made for one in mine}) == 40_000
    assert all(mine == sorted(mine) for mine in made)


def test_a_catalog_that_is_away_is_not_noticed_until_nothing_is_left() -> None:
    catalog, clock = Catalog(), Clock()
    generator = Generator(catalog.ask, clock)
    first = generator.next()
    catalog.is_away = True
    clock.seconds += SPAN_MS / 1000 - 1
    assert generator.next() > first
    clock.seconds += 2
    with pytest.raises(errors.CannotConnect):
        generator.next()
    catalog.is_away, catalog.now = False, catalog.now + SPAN_MS + 1000
    assert Id.read(generator.next()).stamp == catalog.now


def test_a_grant_is_renewed_before_it_ends() -> None:
    catalog, clock = Catalog(), Clock()
    generator = Generator(catalog.ask, clock)
    generator.next()
    for _ in range(10):
        clock.seconds += SPAN_MS / 1000 * 0.4
        catalog.now += int(SPAN_MS * 0.4)
        made = Id.read(generator.next())
        assert abs(made.stamp - catalog.now) <= 1
        if generator._renewer is not None:
            generator._renewer.join(5)
    assert made.generator == 1023
    assert catalog.asked < 8


def test_the_module_knows_the_only_cluster() -> None:
    with pytest.raises(errors.BadOption, match="0 open clusters"):
        shardwright.next_id()
    one = Generator(Catalog().ask)
    assert Id.read(shardwright.next_id()).generator == 1023
    other = Generator(Catalog().ask)
    with pytest.raises(errors.BadOption, match="2 open clusters"):
        shardwright.next_id()
    other.close()
    assert shardwright.next_id() < one.next()


@settings(deadline=None)
@given(st.lists(st.integers(-(10**9), 10**10), max_size=50))
def test_uuids_grow_whatever_the_clock_does(steps: list[int]) -> None:
    now = [time.time_ns()]
    uuids = Uuids(lambda: now[0])
    made = [uuids.make()]
    for step in steps:
        now[0] += step
        made.append(uuids.make())
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}


def test_a_uuid_has_the_milliseconds_in_front() -> None:
    before = time.time_ns() // 1_000_000
    made = shardwright.uuid7()
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
