"""The pool of a shard: it asks before it gives, tries by a new connection, and lets go of what nobody uses."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from fix_sessions import until
from shardwright import errors
from shardwright.session.shard_pool import ShardPool


class Fake:
    """A DBAPI connection that knows its number."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(Fake.numbers)
        self.closed = False

    def rollback(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Asked:
    """In a health's place."""

    def __init__(self) -> None:
        self.trial: object | None = None
        self.is_open = False
        self.left: list[object] = []

    def enter(self) -> object | None:
        if self.is_open:
            raise errors.ShardUnavailable("open", retry_after=1)
        return self.trial

    def leave(self, trial: object | None) -> None:
        self.left.append(trial)


@pytest.fixture
def pool() -> ShardPool:
    made = ShardPool(Fake, pool_size=3, max_overflow=1, timeout=0.01, use_lifo=True)  # type: ignore[arg-type]
    made.health = Asked()  # type: ignore[assignment]
    return made


def number(pool: ShardPool) -> int:
    """Take a connection and give it back."""
    taken: Any = pool.connect()
    found: int = taken.dbapi_connection.number
    taken.close()
    return found


def test_nothing_is_given_while_it_is_open(pool: ShardPool) -> None:
    asked: Any = pool.health
    first = number(pool)
    asked.is_open = True
    with pytest.raises(errors.ShardUnavailable):
        pool.connect()
    asked.is_open = False
    assert number(pool) == first
    assert asked.left == []


def test_a_trial_is_made_by_a_new_connection(pool: ShardPool) -> None:
    """What another driver, or nobody, has used since may be as dead as the shard was."""
    asked: Any = pool.health
    first = number(pool)
    assert number(pool) == first
    asked.trial = object()
    second = number(pool)
    assert second != first
    assert asked.left == [asked.trial]
    asked.trial = None
    assert number(pool) == second


def test_a_trial_that_fails_is_left_too(pool: ShardPool) -> None:
    asked: Any = pool.health
    asked.trial = object()

    def refuse(*_: object) -> None:
        raise errors.ShardUnavailable("no")

    pool._invoke_creator = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(errors.ShardUnavailable):
        pool.connect()
    assert asked.left == [asked.trial]
    assert pool.checkedout() == 0


def test_what_rests_long_is_closed_and_makes_room(pool: ShardPool) -> None:
    taken: list[Any] = [pool.connect() for _ in range(3)]
    fakes = [one.dbapi_connection for one in taken]
    for one in taken[:2]:
        one.close()
    assert pool.reap(600) == 0
    assert pool.reap(0) == 2
    assert [fake.closed for fake in fakes] == [True, True, False]
    assert (pool.checkedin(), pool.checkedout()) == (0, 1)
    taken[2].close()
    more: list[Any] = [pool.connect() for _ in range(4)]
    assert pool.checkedout() == 4
    for one in more:
        one.close()
    assert pool.checkedout() == 0


def test_what_dispose_goes_on_with_knows_the_health(pool: ShardPool) -> None:
    assert pool.recreate().health is pool.health  # type: ignore[attr-defined]


def test_who_gives_a_connection_back_does_not_pass_by_who_waits() -> None:
    pool = ShardPool(Fake, pool_size=1, max_overflow=0, timeout=60, use_lifo=True)  # type: ignore[arg-type]
    pool.health = Asked()  # type: ignore[assignment]
    order: list[str] = []
    held = pool.connect()

    def wait_in_line() -> None:
        taken = pool.connect()
        order.append("who waits")
        taken.close()

    waiting = threading.Thread(target=wait_in_line)
    waiting.start()
    until(lambda: pool._line._waiting, "it does not wait")
    held.close()
    again = pool.connect()
    order.append("who was there")
    again.close()
    waiting.join()
    assert order == ["who waits", "who was there"]
