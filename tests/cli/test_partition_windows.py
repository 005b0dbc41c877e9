"""`shardwright partition archives|restore|convert|split`: what people see, and the same with --json."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fix_catalog import Found
from fix_cli import Ran
from fix_partitions import Timed, by_month

Run = Callable[..., Ran]


@pytest.fixture
def gone(timed: Callable[..., Timed], tmp_path: Path) -> tuple[Timed, str]:
    """Two shards; a month of 30 rows on s1 and none on s2 was archived and dropped. And the month's name."""
    pytest.importorskip("pyarrow")
    cluster = timed(2, by_month(keep="1 month", grace=None, archive=str(tmp_path), guards=False))
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=150)
    assert cluster.tick(long_ago).exit_code == 0
    cluster.shard("s1").execute(
        "INSERT INTO events (at, note) SELECT %s, 'n' || n FROM generate_series(1, 30) n", (long_ago,)
    )
    for _ in range(3):  # the last one that there was is over only when others follow it
        assert cluster.tick(now).exit_code == 0
    return cluster, long_ago.strftime("events_p%Y_%m")


def _rows(out: str, head: list[str]) -> list[list[str]]:
    """The rows of a shown table, by its head."""
    lines = out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.split() == head)
    return [line.split() for line in lines[at + 1 :] if not line.startswith("next: ")]


def test_archives_and_restore(gone: tuple[Timed, str], cli: Run, tmp_path: Path) -> None:
    cluster, month = gone
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}
    told = cli("partition", "archives", "events", "--json", env=env).ok().json
    assert told["table"] == "public.events"
    of_month = {one["shard"]: one for one in told["archives"] if one["window"] == month}
    assert {name: one["rows"] for name, one in of_month.items()} == {"s1": 30, "s2": 0}
    one = of_month["s1"]
    assert one["from"] < one["to"]
    assert one["place"] == str(tmp_path)
    assert (tmp_path / one["file"]).stat().st_size == one["bytes"]
    assert one["restored_at"] is None
    assert told["next_steps"] == [f"shardwright partition restore events {told['archives'][-1]['window']}"]

    shown = cli("partition", "archives", "events", env=env).ok().out
    rows = _rows(shown, ["window", "shard", "rows", "bytes", "file", "verified", "restored"])
    assert [month, "s1", "30", str(one["bytes"]), str(tmp_path / one["file"])] in [row[:5] for row in rows]
    assert {row[-1] for row in rows} == {"-"}
    assert len(rows) == len(told["archives"])

    back = cli("partition", "restore", "events", month, "--keep", "30 days", env=env).ok().out
    rows = _rows(back, ["window", "shard", "rows", "kept", "until"])
    assert [(row[0], row[1], row[2], " ".join(row[3:-1])) for row in rows] == [
        (month, "s1", "30", "loaded from its archive"),
        (month, "s2", "0", "loaded from its archive"),
    ]
    kept = datetime.fromisoformat(rows[0][-1])
    assert timedelta(days=29) < kept - datetime.now(UTC) < timedelta(days=31)
    assert back.splitlines()[-1] == "next: shardwright partition status --table events"
    assert cluster.ask("s1", "SELECT count(*) FROM events WHERE tableoid = %s::regclass", month) == 30

    rest = cli("partition", "restore", "events", "--all", "--json", env=env).ok().json
    assert {one["window"] for one in rest["restored"]} == {one["window"] for one in told["archives"]} - {month}
    assert {(one["how"], one["rows"]) for one in rest["restored"]} == {("load", 0)}
    assert set(rest["restored"][0]) == {"window", "shard", "rows", "how", "kept_until"}
    again = cli("partition", "archives", "events", "--json", env=env).ok().json
    assert all(one["restored_at"] for one in again["archives"])
    present = cli("partition", "restore", "events", month, env=env).ok().out
    assert "there already" in present
    nothing = cli("partition", "restore", "events", "--all", env=env).ok().out
    assert nothing.splitlines()[0] == "no window is archived and not there"


def test_restores_that_are_refused(gone: tuple[Timed, str], cli: Run) -> None:
    cluster, month = gone
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}

    def refused(*words: str) -> dict[str, Any]:
        ran = cli("partition", *words, "--json", env=env)
        assert ran.code != 0, ran.out
        assert "Traceback" not in ran.err
        return {"exit": ran.code, **ran.json["error"]}

    neither = refused("restore", "events")
    assert (neither["exit"], neither["code"]) == (2, "SW109")
    assert "--all" in neither["fix"]
    unknown = refused("restore", "events", "events_p1999_01")
    assert unknown["exit"] == 2
    assert "events_p1999_01" in unknown["message"]
    assert refused("archives", "nothing")["code"] == "SW103"
    shown = cli("partition", "restore", "events", "events_p1999_01", env=env)
    assert shown.out == ""
    assert [line.partition(" ")[0] for line in shown.err.splitlines()] == [f"error[{unknown['code']}]", "fix:"]
    assert cluster.windows("s1").keys() == cluster.windows("s2").keys()
    assert month not in cluster.windows("s1")


def test_what_a_dry_run_leads_to(found: Callable[..., Found], cli: Run) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE visits (id int, at timestamptz, PRIMARY KEY (id, at))")
    cluster.shard("s1").execute(
        "INSERT INTO visits SELECT n, now() - n * interval '1 day' FROM generate_series(1, 90) n"
    )
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}
    asked = ("--by", "at", "--every", "1 month", "--keep", "2 years", "--ahead", "2")
    planned = cli("partition", "convert", "visits", *asked, "--dry-run", "--json", env=env).ok().json
    assert planned["next_steps"] == [
        "shardwright partition convert visits --by at --every '1 month' --keep '2 years' --ahead 2"
    ]
    done = cli("partition", "convert", "visits", *asked, env=env).ok().out
    assert _rows(done, ["shard", "lock", "held", "(ms)", "tries", "check", "(s)"])[0][:2] == ["s1", "valid"]
    since = (datetime.now(UTC) - timedelta(days=45)).strftime("%Y-%m-01")
    cut = cli("partition", "split", "visits", "--since", since, "--dry-run", "--json", env=env).ok().json
    assert cut["next_steps"] == [f"shardwright partition split visits --since {since}"]
    shown = cli("partition", "split", "visits", "--since", since, "--drop-now", env=env).ok().out
    assert f"is cut into {len(cut['pieces'])} partitions; it is dropped" in shown
    row = _rows(shown, ["shard", "rows", "rows/s", "keys", "replayed", "lock", "held", "(ms)"])[0]
    assert (row[0], row[1], row[2]) == ("s1", "done", "90")
    assert cluster.ask("s1", "SELECT count(*) FROM visits") == 90
