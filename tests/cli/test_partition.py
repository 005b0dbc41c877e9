"""`shardwright partition plan|apply|status|tick`, and what a worker does of it. The clock here is the databases' own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_cli import Ran
from fix_partitions import Timed, by_month
from shardwright import errors
from shardwright.cli.worker_ticks import Schedule

Run = Callable[..., Ran]


@pytest.fixture
def ask(cli: Run) -> Callable[..., Any]:
    """Run a verb of the group with --json: its one JSON value, after its exit code was checked."""

    def run(cluster: Timed, *words: object, code: int = 0) -> Any:
        ran = cli("partition", *words, "--json", env={"SHARDWRIGHT_CATALOG": cluster.dsns.catalog})
        assert ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
        assert "Traceback" not in ran.err
        found = json.loads(ran.out)
        assert all(step.startswith("shardwright ") for step in found["next_steps"])
        return found

    return run


def test_plan_save_apply_and_status(timed: Callable[..., Timed], ask: Callable[..., Any], tmp_path: Path) -> None:
    cluster = timed(2)
    file = tmp_path / "plan.json"
    made = ask(cluster, "plan", "--out", file)
    assert made["next_steps"] == [f"shardwright partition apply {file}"]
    assert json.loads(file.read_text())["fingerprint"] == made["fingerprint"]
    assert [step["kind"] for step in made["tables"][0]["steps"]["s1"]] == ["create"] * 5 + ["attach"] * 5
    assert cluster.windows("s1") == {}
    found = ask(cluster, "status", code=3)
    assert found["tables"][0]["short"] == ["s1", "s2"]
    assert "shardwright partition apply" in found["next_steps"]
    done = ask(cluster, "apply", file)
    assert {one["outcome"] for one in done["outcomes"]} == {"done"}
    assert cluster.windows("s1") == cluster.windows("s2")
    assert len(cluster.windows("s1")) == 5
    stale = ask(cluster, "apply", file, code=4)
    assert stale["error"]["code"] == "SW309"
    assert any(line.startswith("no more: public.events: declare") for line in stale["error"]["facts"]["changes"])
    assert ask(cluster, "status")["tables"][0]["windows"][1]["shards"] == {"s1": "present", "s2": "present"}
    assert ask(cluster, "plan")["next_steps"] == []


def test_what_people_see(timed: Callable[..., Timed], cli: Run) -> None:
    cluster = timed(2)
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}
    planned = cli("partition", "plan", env=env).ok().out.splitlines()
    assert planned[0].split() == ["table", "partition", "from", "to", "on"]
    month = datetime.now(UTC).strftime("events_p%Y_%m")
    assert [line.split()[1:] for line in planned if month in line] == [
        [what, month, *_bounds(), *on]
        for what, on in (("declare", ["catalog"]), ("create", ["s1", "s2"]), ("attach", ["s1", "s2"]))
    ]
    assert planned[-1] == "next: shardwright partition apply"
    applied = cli("partition", "apply", env=env).ok().out
    assert "public.events  s1     done" in applied
    shown = cli("partition", "status", env=env).ok().out
    assert "present" in shown
    assert "missing" not in shown
    assert [line.split()[0] for line in shown.splitlines() if "days" in line] == ["runway"]
    assert cli("partition", "tick", env=env).ok().out.splitlines()[-1] == "next: shardwright partition status"


def _bounds() -> list[str]:
    now = datetime.now(UTC)
    lower = now.replace(day=1)
    upper = lower.replace(year=now.year + now.month // 12, month=now.month % 12 + 1)
    return [moment.strftime("%Y-%m-01T00:00:00Z") for moment in (lower, upper)]


def test_exit_codes_of_tick(timed: Callable[..., Timed], ask: Callable[..., Any]) -> None:
    cluster = timed(2, by_month(every="1 day"))
    assert ask(cluster, "tick")["ok"]
    cluster.shard("s2").execute("DROP TABLE events_p_after")
    with psycopg.connect(cluster.dsns.shards["s2"], application_name="report") as other:
        other.execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE")
        deferred = ask(cluster, "tick", "--patience", "0.3", code=4)
        assert deferred["next_steps"] == ["shardwright partition tick"]
        assert "(report, " in deferred["outcomes"][1]["reason"]["blockers"][0]
    assert ask(cluster, "tick")["ok"]
    cluster.shard("s1").execute("INSERT INTO events (at) VALUES ('infinity')")
    human = ask(cluster, "tick", code=3)
    assert [finding["kind"] for finding in human["plan"]["findings"]] == ["rows-in-guard"]


def test_one_table_of_several(timed: Callable[..., Timed], ask: Callable[..., Any]) -> None:
    cluster = timed(1, by_month("events"), by_month("visits"))
    ask(cluster, "apply", "--table", "visits")
    assert cluster.windows("s1") == {}
    assert len(cluster.windows("s1", "visits")) == 5
    ask(cluster, "tick", "--table", "public.events", "--table", "visits")
    assert len(cluster.windows("s1")) == 5


def test_what_is_refused(timed: Callable[..., Timed], ask: Callable[..., Any], tmp_path: Path) -> None:
    cluster = timed(1)
    assert ask(cluster, "plan", "--table", "nothing", code=2)["error"]["code"] == "SW103"
    assert ask(cluster, "tick", "--patience", "0", code=2)["error"]["code"] == "SW109"
    file = tmp_path / "plan.json"
    assert "no plan can be read" in ask(cluster, "apply", file, code=2)["error"]["message"]
    file.write_text("{}")
    assert "no saved plan" in ask(cluster, "apply", file, code=2)["error"]["message"]
    file.write_text(json.dumps(cluster.plan().to_json()).replace("events_p2026_11", "events_p2026_xx"))
    assert "was changed" in ask(cluster, "apply", file, code=2)["error"]["message"]
    assert ask(cluster, "apply", file, "--table", "events", code=2)["error"]["code"] == "SW109"
    assert ask(cluster, "plan", "--out", tmp_path / "no" / "plan.json", code=2)["error"]["code"] == "SW109"


def test_a_worker_looks_after_partitions(
    timed: Callable[..., Timed], cli: Run, cli_start: Callable[..., subprocess.Popen[str]]
) -> None:
    cluster = timed(2)
    env = {"SHARDWRIGHT_CATALOG": cluster.dsns.catalog}
    cli("worker", "--once", "--no-partitions", env=env).ok()
    assert cluster.windows("s1") == {}
    ran = cli("worker", "--once", "--json", env=env).ok()
    assert [json.loads(line)["message"] for line in ran.out.splitlines()][-2:] == ["partitions: 20 steps done", "ends"]
    assert len(cluster.windows("s2")) == 5
    cluster.shard("s2").execute("DROP TABLE events_p_before")
    worker = cli_start("worker", env=env)
    deadline = time.monotonic() + 60
    while len(cluster.windows("s2")) < 5:
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=30)
    assert (worker.returncode, err) == (0, "")
    assert "public.events on shard s2: attach events_p_before" in out
    refused = cli("worker", "--schedule", "every day", env=env)
    assert refused.code == 2
    assert "not a cron expression" in refused.err


def test_schedules_are_met_a_little_later_at_random() -> None:
    noon = datetime(2026, 11, 25, 12, 0, 1, tzinfo=UTC)
    found = {Schedule("0 * * * *").after(noon) for _ in range(50)}
    assert len(found) > 1
    assert all(
        datetime(2026, 11, 25, 13, tzinfo=UTC) <= moment <= datetime(2026, 11, 25, 13, 1, tzinfo=UTC)
        for moment in found
    )
    quick = [Schedule("* * * * *").after(noon) for _ in range(50)]
    assert all(moment <= datetime(2026, 11, 25, 12, 1, 6, tzinfo=UTC) for moment in quick)
    with pytest.raises(errors.BadOption):
        Schedule("60 * * * *")
