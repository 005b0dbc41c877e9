"""`shardwright demo` and its sub-command: what they say of themselves, and what they refuse before anything is started."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fix_cli import Ran

Cli = Callable[..., Ran]


def test_both_demos_explain_themselves(cli: Cli) -> None:
    first = cli("demo", "--help").ok().out
    assert "--rate" in first
    assert "partitions" in first
    second = cli("demo", "partitions", "--help").ok().out
    assert "Example: shardwright demo partitions --json" in second
    assert "--days" in second
    assert "--rate" not in second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--days", "0"], "--days 0: 1 or more"),
        (["--flights", "100"], "--flights 100: 10000 or more"),
        (["--rate", "7"], "--rate"),
    ],
)
def test_what_is_refused_at_once(cli: Cli, words: list[str], said: str) -> None:
    ran = cli("demo", "partitions", *words, "--json")
    assert ran.code == 2
    assert said in ran.json["error"]["message"]


def test_the_first_demo_refuses_as_before(cli: Cli) -> None:
    ran = cli("demo", "--rate", "0", "--json")
    assert ran.code == 2
    assert "a rate of 0" in ran.json["error"]["message"]
