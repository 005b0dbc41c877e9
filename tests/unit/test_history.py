"""Histories survive the death of the process that writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardwright.testing.history import NEVER, Intent, Recorder, Seen, read


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Recorder(path, "w1") as recorder:
        number = recorder.begin([Intent("append", "logbook/N1/0", 7), Intent("read", "logbook/N1/0")])
        recorder.end(number, "ok", [Seen.of([7]), Seen.of([7])], shard="s1")
        number = recorder.begin([Intent("add", "flights/N1/1")])
        recorder.end(number, "fail", sqlstate="SH001")
    first, second, third = read([path])
    assert (first.process, first.kind, first.value, first.seen, first.outcome, first.shard) == (
        "w1",
        "append",
        7,
        Seen.of([7]),
        "ok",
        "s1",
    )
    assert (second.kind, second.transaction) == ("read", first.transaction)
    assert first.invoked <= first.returned <= third.invoked <= third.returned
    assert (third.outcome, third.sqlstate, third.seen) == ("fail", "SH001", None)


def test_a_write_without_an_end_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    recorder = Recorder(path, "w1")
    recorder.begin([Intent("append", "logbook/N1/0", 7)])
    recorder.begin([Intent("read", "logbook/N1/0")])  # a read without an answer says nothing
    recorder.close()
    (only,) = read([path])
    assert (only.kind, only.outcome, only.returned) == ("append", "info", NEVER)


def test_a_line_cut_short_by_a_kill_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Recorder(path, "w1") as recorder:
        number = recorder.begin([Intent("append", "logbook/N1/0", 7)])
        recorder.end(number, "ok", [Seen.of([7])])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    (only,) = read([path])
    assert only.outcome == "info"


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    with Recorder(path, "w1") as recorder:
        recorder.end(recorder.begin([Intent("read", "logbook/N1/0")]), "ok", [Seen.of([])])
    path.write_bytes(path.read_bytes().replace(b"read", b'"'))
    with pytest.raises(ValueError, match="line"):
        read([path])


def test_files_are_merged_by_time_and_starts_are_kept(tmp_path: Path) -> None:
    one, two = Recorder(tmp_path / "1", "w1"), Recorder(tmp_path / "2", "w2")
    first = one.begin([Intent("add", "flights/N1/1"), Intent("add", "flights/N1/2")])
    second = two.begin([Intent("add", "flights/N1/1")])
    two.end(second, "ok", [1])
    one.end(first, "ok", [2, 1], started=[5, NEVER - 1])
    one.close()
    two.close()
    operations = read([tmp_path / "2", tmp_path / "1"])
    assert [o.process for o in operations] == ["w1", "w2", "w1"]
    assert operations[-1].invoked == NEVER - 1


def test_digests_tell_lists_apart() -> None:
    assert Seen.of([1, 2]) != Seen.of([2, 1])
    assert Seen.of([]) == Seen(0, None, 0)
