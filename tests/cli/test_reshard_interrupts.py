"""Ctrl-C in every phase, and workers that were killed or paused: nothing is half done, and one command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_cli import Ran
from fix_desk import ONE_MOVE, WRITE, Desk
from fix_resharding import Small, load_small
from shardwright.failpoints import OF_OPERATIONS
from shardwright.reshard.runner import LEASE_SECONDS
from shardwright.servers import Server

#: How soon after Ctrl-C a command must have ended. It breaks a step off after 1.5 s; the rest is for a busy machine.
AT_ONCE = 5.0
ROADS = {
    "prepare": ("resume", ""),
    "copy": ("resume", ""),
    "catch_up": ("resume", ""),
    "verify": ("resume", ""),
    "switch": ("switch", "resume"),
    "hand_over": ("switch", "resume"),
    "roll_back": ("rollback", "switch"),
    "clean_up": ("finish", "switch"),
    "abort": ("abort", "resume"),
}
QUICK = (
    "copy.half_copied",
    "hand_over.fenced",
    "clean_up.half_deleted",
)


def _interrupted(desk: Desk, number: int, ran: Ran, since: float) -> dict[str, Any]:
    assert time.monotonic() - since < AT_ONCE
    assert ran.code == 4, f"{ran.out}\n{ran.err}"
    error = dict(json.loads(ran.out)["error"])
    assert error["code"] == "SW306", error
    assert error["durable_change"] is True
    assert error["facts"]["operation"] == number
    stands = desk.operation(number)
    assert error["facts"]["phase"] == stands.phase
    assert stands.lease_holder is None
    assert stands.error is None
    return error


@pytest.mark.parametrize(
    "failpoint", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OF_OPERATIONS]
)
def test_ctrl_c_in_every_phase(desk: Desk, started: int, failpoint: str) -> None:
    before = desk.small.rows()
    verb, first = ROADS[failpoint.partition(".")[0]]
    if first:
        desk.reshard(first, started)
    process = desk.pause("reshard", verb, started, "--json", failpoint=failpoint)
    since = time.monotonic()
    ran = desk.end(process, signal.SIGINT, signal.SIGCONT)
    if ran.code == 0:  # the last step was through before it could be broken off
        assert failpoint in ("verify.compared", "hand_over.opened", "clean_up.deleted", "abort.deleted")
    else:
        error = _interrupted(desk, started, ran, since)
        assert error["facts"]["next_steps"]
    # writers are not kept waiting: whatever was fenced is open on one of the sides
    for name in desk.small.dsns:
        assert desk.small.ask(name, "SELECT count(*) FROM shardwright.ranges WHERE state = 'fenced'") == 0
    seen = desk.reshard("resume", started)
    assert seen["phase"] == seen["goal"]
    assert seen["resumed"] == 0
    if seen["phase"] == "switched":
        desk.reshard("rollback")
    if seen["phase"] not in ("done", "aborted"):
        assert desk.reshard("abort", started)["phase"] == "aborted"
    assert desk.small.rows() == before
    assert desk.small.leftovers() == {}


@pytest.mark.parametrize(
    "failpoint",
    [
        "hand_over.drained",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("prepare.ranges_cut", "copy.slot_made", "catch_up.subscribed")
        ),
    ],
)
def test_abort_after_ctrl_c(desk: Desk, started: int, failpoint: str) -> None:
    before = desk.small.rows()
    verb, first = ROADS[failpoint.partition(".")[0]]
    if first:
        desk.reshard(first, started)
    process = desk.pause("reshard", verb, started, "--json", failpoint=failpoint)
    since = time.monotonic()
    error = _interrupted(desk, started, desk.end(process, signal.SIGINT, signal.SIGCONT), since)
    assert f"shardwright reshard abort {started}" in error["facts"]["next_steps"]
    assert desk.reshard("abort", started)["phase"] == "aborted"
    assert desk.small.rows() == before
    assert desk.small.leftovers() == {}


def _waits_for_a_lock(small: Small, shard: str, application: str = "shardwright op") -> bool:
    """Whether a statement of ours waits for a lock."""
    return bool(
        small.ask(
            shard,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            f"AND datname = current_database() AND application_name LIKE '{application}%'",
        )
    )


def test_ctrl_c_while_a_copy_hangs(desk: Desk, started: int) -> None:
    with psycopg.connect(desk.small.dsns["s3"]) as blocker:
        process = desk.pause("reshard", "resume", "--json", failpoint="copy.slot_made")
        blocker.execute("LOCK TABLE items IN SHARE MODE")
        process.send_signal(signal.SIGCONT)
        desk.until(lambda: _waits_for_a_lock(desk.small, "s3"), "the copy waits for the lock")
        since = time.monotonic()
        error = _interrupted(desk, started, desk.end(process, signal.SIGINT), since)
        assert error["facts"]["phase"] == "copying"
    assert desk.reshard("resume")["phase"] == "verified"


def test_ctrl_c_while_a_comparison_hangs(desk: Desk, verified: int) -> None:
    process = desk.pause("reshard", "verify", "--json", failpoint="verify.snapshots_taken")
    with psycopg.connect(desk.small.dsns["s3"]) as blocker:
        blocker.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        process.send_signal(signal.SIGCONT)
        desk.until(lambda: _waits_for_a_lock(desk.small, "s3"), "the comparison waits for the lock")
        desk.refused("verify", code=4, error="SW303", said=f":{process.pid}")
        since = time.monotonic()
        ran = desk.end(process, signal.SIGINT)
        assert time.monotonic() - since < AT_ONCE
        assert (ran.code, ran.json["error"]["code"]) == (4, "SW306")
        assert desk.operation(verified).lease_holder is None
        desk.until(lambda: not _waits_for_a_lock(desk.small, "s3"), "nothing of it is left on the shard", 5)
    assert desk.reshard("verify")["phase"] == "verified"


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
    ids=lambda number: number.name,
)
def test_signals_while_it_does_not_drain(desk: Desk, number: signal.Signals) -> None:
    verified = desk.reshard("start", *ONE_MOVE)["operation"]
    process = desk.pause("reshard", "switch", failpoint="switch.reverse_subscribed")
    with psycopg.connect(desk.small.dsns["s1"], application_name="a long report") as blocker:
        blocker.execute(WRITE)
        process.send_signal(signal.SIGCONT)
        desk.until(lambda: _waits_for_a_lock(desk.small, "s1"), "the fence waits")
        ran = desk.end(process, number)
        assert ran.code == 4
        assert ran.err.splitlines()[-1] == f"next: shardwright reshard abort {verified}"
        assert f"state: operation {verified} is switching: " in ran.err
    assert desk.reshard("abort")["phase"] == "aborted"
    assert desk.small.leftovers() == {}


@pytest.mark.parametrize(("shard", "verb"), [("s1", "resume"), ("s3", "switch")], ids=["forward", "back"])
def test_ctrl_c_while_a_slot_waits(desk: Desk, started: int, shard: str, verb: str) -> None:
    if verb == "switch":
        desk.reshard("resume")
    with psycopg.connect(desk.small.dsns["s2"], application_name="a long report") as blocker:
        blocker.execute(WRITE)
        process = desk.begin("reshard", verb, "--json")
        desk.until(lambda: _waits_for_a_lock(desk.small, shard), "the slot waits for the open transaction")
        since = time.monotonic()
        _interrupted(desk, started, desk.end(process, signal.SIGINT), since)
    seen = desk.reshard("resume")
    assert seen["phase"] == seen["goal"]


def test_a_killed_worker_is_followed_at_once(desk: Desk, started: int) -> None:
    ran = desk.end(desk.begin("reshard", "resume", failpoint="copy.copied:crash"))
    assert ran.code == -signal.SIGKILL
    since = time.monotonic()
    assert desk.operation(started).lease_left > 0
    seen = desk.reshard("resume")
    assert time.monotonic() - since < LEASE_SECONDS
    assert (seen["phase"], seen["resumed"]) == ("verified", 1)


def test_a_paused_worker_is_waited_for_or_superseded(desk: Desk, started: int) -> None:
    paused = desk.pause("reshard", "resume", "--json", failpoint="copy.copied")
    refused = desk.refused("verify", code=3, error="SW210")
    assert refused["facts"]["worker"].endswith(f":{paused.pid}")
    seen = desk.reshard("status", started)
    assert seen["worker"].endswith(f":{paused.pid}")
    assert seen["next_steps"] == [f"shardwright reshard watch {started}"]
    assert desk.reshard("resume", "--take-over")["phase"] == "verified"
    zombie = desk.end(paused, signal.SIGCONT)
    assert zombie.code == 4
    assert zombie.json["error"]["code"] in ("SW302", "SW307")
    assert desk.reshard("status", started)["error"] is None
    assert desk.reshard("switch")["phase"] == "switched"


@pytest.mark.slow
def test_a_lease_that_ends_is_taken(desk: Desk, started: int) -> None:
    paused = desk.pause("reshard", "resume", "--json", failpoint="copy.slot_made")
    assert desk.reshard("resume", timeout=60)["phase"] == "verified"
    assert desk.end(paused, signal.SIGCONT).code == 4


def test_ctrl_c_before_anything_is_recorded(desk: Desk) -> None:
    with psycopg.connect(desk.small.dsns["s3"]) as blocker:
        blocker.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        process = desk.begin("reshard", "start", "--add", "s3", "--json")
        desk.until(lambda: _waits_for_a_lock(desk.small, "s3", "shardwright preflight"), "preflight waits for the lock")
        since = time.monotonic()
        ran = desk.end(process, signal.SIGINT)
        assert time.monotonic() - since < AT_ONCE
    assert ran.code == 4
    assert (ran.json["error"]["code"], ran.json["error"]["durable_change"]) == ("SW306", False)
    assert ran.json["next_steps"][0] == "shardwright reshard status"
    assert desk.reshard("status")["operations"] == []


def test_an_unknown_commit_is_reported_as_unknown(
    server_factory: Callable[..., Server],
    cluster_dsns: Callable[..., Any],
    cli: Callable[..., Ran],
    cli_start: Callable[..., subprocess.Popen[str]],
) -> None:
    server = server_factory()
    desk = Desk(load_small(server.create_database("catalog"), cluster_dsns(3).shards), cli, cli_start)
    number = desk.reshard("start", *ONE_MOVE)["operation"]
    process = desk.pause("reshard", "switch", "--json", failpoint="hand_over.widened")
    server.kill()
    ran = desk.end(process, signal.SIGCONT)
    assert ran.code == 6, ran.out + ran.err
    error = ran.json["error"]
    assert (error["code"], error["ownership_known"], error["retriable"]) == ("SW501", False, False)
    assert error["facts"]["stands"] == ["the catalog cannot be asked now; what the operation did is kept there"]
    assert "state: it is not known which shard owns the rows; do not try again, look first" in ran.err
    server.start()
    assert desk.reshard("resume", number)["phase"] == "switched"
