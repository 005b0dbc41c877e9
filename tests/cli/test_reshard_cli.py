"""`shardwright reshard` as an operator types it: every verb, bad input, what stops an operation, what is said."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from fix_cli import Ran
from fix_desk import ONE_MOVE, SECRET, WRITE, Desk
from fix_resharding import ROWS
from shardwright.catalog import operations


def test_the_whole_life_by_the_next_steps(desk: Desk) -> None:
    before = desk.small.rows()
    planned = desk.reshard("plan", "--add", "s3")
    assert planned["shares"]["users"]["s3"] == {"before": 0, "after": 1365}
    assert sum(move["rows"] for move in planned["moves"]) == planned["rows"] > 0
    assert planned["bytes"] > 0
    assert planned["estimated_seconds"] >= 0
    assert desk.small.rows() == before
    assert desk.reshard("status") == {"operations": [], "next_steps": ["shardwright reshard plan --help"]}

    def follow(answer: dict[str, Any], verb: str) -> dict[str, Any]:
        (step,) = [step for step in answer["next_steps"] if step.split()[2] == verb]
        return dict(desk.reshard(*shlex.split(step)[2:]))

    seen = follow(planned, "start")
    number = seen["operation"]
    assert (seen["phase"], seen["goal"], seen["error"]) == ("verified", "verified", None)
    assert sum(move["rows_done"] for move in seen["moves"]) > ROWS / 2
    assert [c["differing"] for c in seen["certificates"]] == [0] * len(seen["moves"])
    assert "replication slot on the source" in seen["left_behind"]
    assert [one["phase"] for one in desk.reshard("status")["operations"]] == ["verified"]
    again = desk.reshard("verify")
    assert again["certificates"][0]["age_seconds"] < seen["certificates"][0]["age_seconds"] + 60
    seen = follow(again, "switch")
    assert seen["phase"] == "switched"
    assert {(h["direction"], h["map_version"] is None) for h in seen["handovers"]} == {("forward", False)}
    seen = follow(seen, "rollback")
    assert seen["phase"] == "reverted"
    assert {h["direction"] for h in seen["handovers"]} == {"forward", "back"}
    assert desk.small.ask("s3", "SELECT count(*) FROM shardwright.ranges WHERE state = 'open'") == 0
    seen = follow(seen, "switch")
    assert seen["phase"] == "switched"
    assert seen["resumed"] == 0
    seen = follow(seen, "finish")
    assert (seen["phase"], seen["left_behind"]) == ("done", [])
    assert desk.small.leftovers() == {}
    assert desk.small.rows() == before
    assert desk.reshard("status")["operations"][0]["phase"] == "done"
    # what is reached can be asked for again; nothing is live any more
    assert desk.reshard("finish", number)["phase"] == "done"
    desk.refused("finish", code=2, error="SW104")


def test_bad_input(desk: Desk) -> None:
    """Each with the exit code of its kind; nothing is made."""
    for words, error in [
        (("--add", "s9"), "SW101"),
        (("--move", "users:[0,5)", "--to", "s9"), "SW101"),
        (("--weights", "s9=1"), "SW101"),
        (("--move", "nobody:[0,5)", "--to", "s3"), "SW102"),
        (("--move", "users:[5,5)", "--to", "s3"), "SW105"),
        (("--move", "users:[9,5)", "--to", "s3"), "SW105"),
        (("--move", "users:[0,4097)", "--to", "s3"), "SW105"),
        (("--move", f"users:[0,{10**30})", "--to", "s3"), "SW105"),
        ((), "SW109"),
        (("--add", "s3", "--drain", "s1"), "SW109"),
        (("--to", "s3"), "SW109"),
        (("--move", "users:[0,5)"), "SW109"),
        (("--move", "users:[0,5)", "--to", "s1"), "SW109"),
        (("--drain", "s3"), "SW109"),
        (("--weights", "s1=0,s2=0,s3=0"), "SW109"),
        (("--weights", "s1=-1"), "SW109"),
        (("--weights", "s1=1,s1=2"), "SW109"),
        (("--add", "s3", "--batches", "0.5,0.2"), "SW109"),
        (("--add", "s3", "--batches", "nan,1"), "SW109"),
    ]:
        desk.refused("plan", *words, code=2, error=error)
    for words, error, code in [
        (("--add", "s9"), "SW101", 2),
        (("--add", "s3", "--set", "speed=9"), "SW109", 2),
        (("--add", "s3", "--set", "copy_workers=0"), "SW109", 2),
        (("--add", "s3", "--set", "max_pause_ms=inf"), "SW109", 2),
        (("--add", "s3", "--set", "copy_workers=1", "--set", "copy_workers=2"), "SW109", 2),
        (("--add", "s3", "--until", "someday"), "SW109", 2),
        (("--add", "s3", "--plan", "0123456789abcdef"), "SW301", 4),
    ]:
        desk.refused("start", *words, code=code, error=error)
    for verb in ("status", "watch", "verify", "abort", "resume"):
        desk.refused(verb, 77, code=2, error="SW104", said="77")
    for verb in ("watch", "finish"):
        desk.refused(verb, code=2, error="SW104", said="no operation is live")
    desk.refused("switch", "four", code=2, error="SW109")
    ran = desk.ask("reshard", "switch", 77)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error[SW104] there is no operation 77",
        "fix: shardwright reshard status",
    ]
    with desk.small.catalog() as catalog:
        assert operations.list_all(catalog) == []
    assert desk.small.leftovers() == {}


def test_one_operation_a_range(desk: Desk) -> None:
    first = desk.reshard("start", "--move", "users:[0,5)", "--to", "s2", "--detach")["operation"]
    assert desk.phase(first) == "planned"
    for words in (("--move", "users:[4,6)", "--to", "s3"), ("--drain", "s1")):
        refused = desk.refused("start", *words, code=4, error="SW301", said=f"operation {first}")
        assert refused["retriable"] is True
    second = desk.reshard("start", "--move", "users:[5,9)", "--to", "s2", "--detach")["operation"]
    for verb in ("switch", "resume", "watch"):
        desk.refused(verb, code=2, error="SW109", said=f"operations {first}, {second} are live")
    assert [one["operation"] for one in desk.reshard("status")["operations"]] == [first, second]
    assert desk.reshard("abort", first)["phase"] == "aborted"
    assert desk.reshard("start", "--move", "users:[4,5)", "--to", "s3")["phase"] == "verified"
    assert desk.reshard("abort", second)["phase"] == "aborted"
    # one is left, and need not be named
    assert desk.reshard("abort")["phase"] == "aborted"
    assert desk.small.leftovers() == {}


def test_a_plan_that_is_no_longer_the_one(desk: Desk) -> None:
    old = desk.reshard("plan", "--move", "users:[0,8)", "--to", "s3")
    desk.reshard("start", "--move", "users:[0,4)", "--to", "s3", "--until", "done")
    refused = desk.refused("start", "--move", "users:[0,8)", "--to", "s3", "--plan", old["plan"], code=4, error="SW301")
    assert refused["fix"] == "shardwright reshard plan --move 'users:[0,8)' --to s3"
    new = desk.reshard("plan", "--move", "users:[0,8)", "--to", "s3")
    assert new["plan"] != old["plan"]
    assert [move["points"] for move in new["moves"]] == ["{[4,8)}"]


def test_wrong_phases(desk: Desk, verified: int) -> None:
    for verb in ("rollback", "finish"):
        refused = desk.refused(verb, verified, code=3, error="SW210", said="verified")
        assert refused["durable_change"] is False
        assert refused["facts"]["next_steps"][0] == f"shardwright reshard switch {verified}"
    desk.reshard("switch", verified)
    desk.refused("abort", verified, code=3, error="SW210", said="switched")
    desk.reshard("finish", verified)
    for verb in ("switch", "rollback", "abort", "verify"):
        desk.refused(verb, verified, code=3, error="SW210", said="done")
    assert desk.reshard("resume", verified)["phase"] == "done"


def test_no_switch_without_a_fresh_certificate(desk: Desk) -> None:
    number = desk.reshard("start", "--add", "s3", "--set", "certificate_seconds=0.000001")["operation"]
    refused = desk.refused("switch", code=3, error="SW209")
    assert refused["ownership_known"] is True
    assert refused["facts"]["phase"] == "verified"
    assert refused["fix"] == f"shardwright reshard verify {number}"
    assert desk.reshard(*shlex.split(refused["fix"])[2:])["phase"] == "verified"
    assert desk.small.ask("s3", "SELECT count(*) FROM shardwright.ranges WHERE state = 'open'") == 0
    assert desk.reshard("abort")["phase"] == "aborted"
    assert desk.small.leftovers() == {}


def test_a_difference_is_shown_and_stops_the_switch(desk: Desk, verified: int) -> None:
    with desk.small.shard("s3") as connection:
        connection.execute("SET session_replication_role = replica")
        row = connection.execute("SELECT user_id FROM orders LIMIT 1").fetchone()
        connection.execute("UPDATE orders SET note = 'tampered' WHERE user_id = %s", row)
    found = desk.refused("verify", code=5, error="SW401", said=f"({row[0]},1)")
    assert found["facts"]["differences"] == [f"public.orders ({row[0]},1) different"]
    assert found["facts"]["next_steps"][-1] == f"shardwright reshard abort {verified}"
    desk.refused("switch", code=3, error="SW209")
    shown = desk.ask("reshard", "status", verified).ok().out
    assert "DIFFER" in shown
    assert "error[SW209]" in shown
    assert desk.reshard("abort")["phase"] == "aborted"


def test_what_does_not_drain_names_its_blockers(desk: Desk) -> None:
    settings = ("--set", "fence_attempts=2", "--set", "fence_lock_timeout_ms=30")
    number = desk.reshard("start", *ONE_MOVE, *settings)["operation"]
    process = desk.pause("reshard", "switch", "--json", failpoint="switch.reverse_subscribed")
    with psycopg.connect(desk.small.dsns["s1"], application_name="a long report") as blocker:
        blocker.execute(WRITE)
        ran = desk.end(process, signal.SIGCONT)
        assert ran.code == 4, ran.out
        found = ran.json["error"]
        assert found["code"] == "SW304"
        assert "a long report" in found["message"]
        assert found["facts"]["blockers"][0]["pid"] == blocker.info.backend_pid
        assert found["durable_change"] is True
        assert found["facts"]["phase"] == "switching"
        steps = [f"shardwright reshard {verb} {number}" for verb in ("resume", "abort")]
        assert found["facts"]["next_steps"] == steps
        said = desk.ask("reshard", "resume").err
        assert f"state: operation {number} is switching: " in said
        assert "state: every row is owned by whom it was owned before (s1)" in said
        assert f"next: {steps[0]}" in said
        blocker.rollback()
    assert desk.reshard("resume")["phase"] == "switched"


@pytest.mark.parametrize(
    "verb", ["plan", "start", "status", "watch", "verify", "switch", "rollback", "finish", "abort", "resume"]
)
def test_help_has_an_example(cli: Callable[..., Ran], verb: str) -> None:
    assert f" shardwright reshard {verb}" in cli("reshard", verb, "--help").ok().out.partition("Example:")[2]


def test_the_workers_help_has_an_example(cli: Callable[..., Ran]) -> None:
    assert " shardwright worker" in cli("worker", "--help").ok().out.partition("Example:")[2]


def test_what_people_see(desk: Desk) -> None:
    shown = desk.ask("reshard", "plan", "--add", "s3").ok().out
    assert re.search(r"^users +s1 +s3 +\d+ +\d+ +[\d.]+ [kM]?B +1, \d+, \d+, \d+$", shown, re.MULTILINE), shown
    assert re.search(r"^s3 +0 +1365$", shown, re.MULTILINE), shown
    assert "nothing was changed" in shown
    step = shown.splitlines()[-1].removeprefix("next: shardwright ")
    ran = desk.ask(*shlex.split(step)).ok()
    assert "[ok] copy" in ran.out
    assert ran.out.splitlines()[-2:] == ["next: shardwright reshard switch 1", "next: shardwright reshard abort 1"]
    assert "operation 1: verified" in ran.err
    assert re.search(r"^ +1 +verified +verified +add s3 ", desk.ask("reshard", "status").ok().out, re.MULTILINE)
    for form in (desk.catalog, _as_uri(desk.catalog)):
        for word in ([], ["--json"]):
            ran = desk.ask("reshard", "status", 1, "--catalog", form, *word)
            assert ran.code == 0


def _as_uri(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    return f"postgresql://{parts['user']}:{SECRET}@{parts['host']}:{parts['port']}/{parts['dbname']}"
