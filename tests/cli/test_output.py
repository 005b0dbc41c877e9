"""What is printed for people and for programs."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime

import pytest

from shardwright.cli.output import Answer, Output, Table, bad, redact
from shardwright.errors import OwnershipUnknown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://bob:s3cret@h:5432/db", "postgresql://bob:***@h:5432/db"),
        ("postgresql://bob:p@ss:w@h/db", "postgresql://bob:***@h/db"),
        ("a postgres://b:x@h/d and postgres://c:y@h/d", "a postgres://b:***@h/d and postgres://c:***@h/d"),
        ("postgresql+psycopg://bob:s3cret@h/db", "postgresql+psycopg://bob:***@h/db"),
        ("postgresql://h/db?user=b&password=s3cret&x=1", "postgresql://h/db?user=b&password=***&x=1"),
        ("host=h password=s3cret user=b", "host=h password=*** user=b"),
        ("host=h password = 's3 cret' user=b", "host=h password = *** user=b"),
        (r"password='it\'s' user=b", "password=*** user=b"),
        ("CONNECTION 'host=h password=s3cret'", "CONNECTION 'host=h password=***'"),
        ("CONNECTION 'host=h password=''s3 cret'' user=b'", "CONNECTION 'host=h password=*** user=b'"),
        ("sslpassword=s3cret", "sslpassword=***"),
        ('{"dsn": "postgresql://b:s3cret@h/d", "x": "postgresql://u@h/d"}',) * 1
        + ('{"dsn": "postgresql://b:***@h/d", "x": "postgresql://u@h/d"}',),
        ("postgresql://postgres@127.0.0.1:5432/app", "postgresql://postgres@127.0.0.1:5432/app"),
        ("put it into PGPASSWORD or ~/.pgpass", "put it into PGPASSWORD or ~/.pgpass"),
    ],
)
def test_passwords_are_redacted_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_plain_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(("shard", "rows", "state"), [("s1", 7, bad("down")), ("shard-2", 12345, None)])
    code = Output(False).finish(Answer({}, ["two shards", table, {"lag": 1.25, "ok": True}], next_steps=["do this"]))
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        "two shards",
        "shard     rows  state",
        "s1           7  down",
        "shard-2  12345  -",
        "lag  1.2",
        "ok   yes",
        "next: do this",
    ]


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Output(False).finish(Answer({}, [Table(("shard",), [], empty="no shards")]))
    assert capsys.readouterr().out == "no shards\n"


def test_json_is_one_value_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"at": datetime(2026, 1, 2, tzinfo=UTC), "dsn": "host=h password=x", "points": (1, 2), 3: None}
    code = Output(True).finish(Answer(value, ["not shown"], next_steps=["go on"], exit_code=5))
    assert code == 5
    assert json.loads(capsys.readouterr().out) == {
        "at": "2026-01-02 00:00:00+00:00",
        "dsn": "host=h password=***",
        "points": [1, 2],
        "3": None,
        "next_steps": ["go on"],
    }


def test_next_steps_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Output(True).finish(Answer({"catalog": "x"}, next_steps=None))
    assert json.loads(capsys.readouterr().out) == {"catalog": "x"}


def test_two_facts_are_told_on_failure(capsys: pytest.CaptureFixture[str]) -> None:
    error = OwnershipUnknown("the answer was lost", durable_change=True, ownership_known=False)
    assert Output(False).error(error) == 6
    assert capsys.readouterr().err.splitlines() == [
        "error[SW501] the answer was lost",
        "state: something was changed that outlives this failure",
        "state: it is not known which shard owns the rows; do not try again, look first",
        "fix: shardwright explain SW501",
    ]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_stream_is_a_line_an_item(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json)
    output.item({"key": 1, "shard": "s1"}, "1 s1")
    output.item({"key": 2, "shard": "s2"}, "2 s2")
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["key"] for line in lines] == [1, 2] if as_json else lines == ["1 s1", "2 s2"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_live_display_in_a_pipe_prints_changes_only(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json).live() as renew:
        for done in (1, 1, 2):
            renew(Answer({"done": done}, [f"{done} done"]))
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["done"] for line in lines] == [1, 2] if as_json else lines == ["1 done", "2 done"]


def test_a_terminal_gets_colours_and_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    answer = Answer({}, [Table(("shard", "state"), [("s1", bad("[down]"))]), {"dsn": "host=h password=x"}])
    Output(False).finish(answer)
    with Output(False).live() as renew:
        renew(answer)
    shown = screen.getvalue()
    assert "\x1b[31m[down]" in shown
    assert "password=***" in shown
