"""What calls have met, and when a shard that says nothing is asked whether it lives."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from fix_sessions import until
from shardwright import errors
from shardwright.session.breaker import Breaker, BreakerOptions
from shardwright.session.health import NOT_SERVING, Deadline, Health


class Server:
    """Answers the probe, refuses it, or leaves it waiting."""

    def __init__(self) -> None:
        self.asked = 0
        self.lives = True
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self) -> None:
        self.asked += 1
        self.may_answer.wait(20)
        if not self.lives:
            raise errors.ShardUnavailable("no answer", shard="s1")


@pytest.fixture
def server() -> Server:
    return Server()


def health(server: Server, patience: float | None = 0.01, threshold: int = 2) -> Health:
    return Health(Breaker("s1", "primary", BreakerOptions(threshold, 600, 600)), patience, server)


def error_with(state: str | None) -> psycopg.Error:
    error = psycopg.Error("x")
    error.sqlstate = state
    return error


def is_open(one: Health) -> bool:
    try:
        one.check()
    except errors.ShardUnavailable:
        return True
    return False


@pytest.mark.parametrize("state", sorted(NOT_SERVING))
def test_a_server_that_does_not_serve_is_a_failure(server: Server, state: str) -> None:
    one = health(server)
    one.judge(error_with(state))
    assert not is_open(one)
    one.judge(error_with(state))
    assert is_open(one)


@pytest.mark.parametrize("state", ["23505", "42P01", "40001", "57014", "57P05", "25P03", "SH001", "SH002", "SH004"])
def test_other_errors_are_answers(server: Server, state: str) -> None:
    one = health(server)
    for _ in range(5):
        one.failed("x")
        one.judge(error_with(state))
    assert not is_open(one)
    one.failed("x")
    one.failed("x")
    assert is_open(one)
    one.judge(error_with(state))
    assert not is_open(one)


@pytest.mark.parametrize("state", [None, "08003", "08006"])
def test_a_lost_connection_says_nothing(server: Server, state: str | None) -> None:
    one = health(server)
    for _ in range(5):
        one.judge(error_with(state))
    assert not is_open(one)
    one.failed("x")
    one.judge(error_with(state))
    one.failed("x")
    assert is_open(one)


def test_silence_is_no_verdict_while_the_server_answers(server: Server) -> None:
    one = health(server)
    since = time.monotonic()
    until(lambda: one.is_silent(since) or server.asked >= 3, "it is not asked")
    assert not one.is_silent(since)
    assert not is_open(one)


def test_who_waits_gives_up_when_the_server_answers_nobody(server: Server) -> None:
    one, server.lives = health(server), False
    since = time.monotonic()
    until(lambda: one.is_silent(since), "it hopes for ever")
    assert is_open(one)
    # One that began to wait after that hopes anew; an answer takes the verdict back.
    assert not one.is_silent(time.monotonic())
    one.heard()
    assert not one.is_silent(since)
    assert not is_open(one)


def test_an_answer_to_somebody_else_while_it_is_asked_counts(server: Server) -> None:
    one, server.lives = health(server), False
    server.may_answer.clear()
    since = time.monotonic()
    until(lambda: one.is_silent(since) or server.asked, "it is not asked")
    one.heard()
    server.may_answer.set()
    until(lambda: not any(thread.name == "shardwright-probe" for thread in threading.enumerate()), "it goes on asking")
    assert not is_open(one)


def test_one_asks_for_all(server: Server) -> None:
    one = health(server)
    server.may_answer.clear()
    since = time.monotonic()
    until(lambda: one.is_silent(since) or server.asked, "it is not asked")
    for _ in range(100):
        assert not one.is_silent(since)
    assert server.asked == 1
    server.may_answer.set()


def test_without_patience_nobody_asks(server: Server) -> None:
    assert not health(server, patience=None).is_silent(0.0)
    assert server.asked == 0


def test_a_deadline_is_only_a_time() -> None:
    assert not Deadline(600).is_silent(time.monotonic())
    assert Deadline(0.001).is_silent(time.monotonic() - 1)
