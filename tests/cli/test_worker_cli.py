"""`shardwright worker`, and watching what it does: in a pipe, as JSON, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from fix_desk import SECRET, Desk


def test_a_worker_does_what_is_wanted(desk: Desk, started: int) -> None:
    assert desk.reshard("status", started)["worker"] is None
    ran = desk.ask("worker", "--once")
    assert ran.code == 0, ran.out + ran.err
    assert f"operation {started}: verified, as wanted" in ran.out
    worker = desk.begin("worker", "--json", "--poll", 0.1)
    assert desk.reshard("switch", "--detach")["goal"] == "switched"
    lines = desk.ask("reshard", "watch", "--json").ok().out.splitlines()
    assert json.loads(lines[-1])["phase"] == "switched"
    desk.until(lambda: desk.operation(started).lease_holder is None, "the worker gives the lease back")
    ran = desk.end(worker, signal.SIGTERM)
    assert ran.code == 0, ran.out + ran.err
    said = [json.loads(line)["message"] for line in ran.out.splitlines()]
    assert said[0] == "looks for work"
    assert f"operation {started}: switched, as wanted" in said
    assert said[-1] == "ends"


def test_a_worker_that_is_told_to_end_gives_its_operation_back(desk: Desk, started: int) -> None:
    worker = desk.pause("worker", failpoint="copy.half_copied")
    ran = desk.end(worker, signal.SIGTERM, signal.SIGCONT)
    assert ran.code == 0, ran.out + ran.err
    assert desk.operation(started).lease_holder is None
    assert desk.phase(started) == "copying"
    assert desk.reshard("abort")["phase"] == "aborted"


def test_a_worker_leaves_a_failed_operation_to_its_operator(desk: Desk, started: int) -> None:
    ran = desk.ask("worker", "--once", failpoint="catch_up.subscribed:error")
    assert ran.code == 1
    assert f"operation {started}: error[SW702]" in ran.out
    watched = desk.ask("reshard", "watch", "--json")
    assert watched.code == 1
    seen, failed = (json.loads(line) for line in watched.out.splitlines())
    assert seen["error"]["code"] == failed["error"]["code"] == "SW702"
    assert failed["error"]["facts"]["phase"] == "catching_up"
    assert desk.reshard("resume")["phase"] == "verified"


def test_watch_in_a_pipe(desk: Desk, started: int) -> None:
    watcher = desk.begin("reshard", "watch", started)
    assert watcher.stdout is not None
    first = watcher.stdout.readline()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d operation {started}: planned; waits for a worker\n", first), first
    desk.reshard("resume")
    ran = desk.end(watcher)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].endswith(f"operation {started}: verified")
    assert "\x1b" not in first + ran.out


def test_ctrl_c_ends_only_the_watching(desk: Desk, started: int) -> None:
    watcher = desk.begin("reshard", "watch", started)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    ran = desk.end(watcher, signal.SIGINT)
    assert ran.code == 4
    assert ran.err.startswith("error[SW306] interrupted\n")
    assert "outlives" not in ran.err
    assert desk.phase(started) == "planned"


def test_watch_on_a_terminal(desk: Desk, started: int) -> None:
    ours, theirs = pty.openpty()
    watcher = subprocess.Popen(
        [sys.executable, "-m", "shardwright", "reshard", "watch", str(started)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "SHARDWRIGHT_CATALOG": desk.catalog, "TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    seen = ""
    try:
        worker = desk.begin("reshard", "resume", "--json")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            seen += data.decode()
        assert watcher.wait(10) == 0, watcher.stderr.read() if watcher.stderr else ""
        assert desk.end(worker).code == 0
    finally:
        watcher.kill()
        watcher.communicate()
        os.close(ours)
    assert "\x1b[" in seen
    assert SECRET not in seen
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    for said in (
        f"operation {started}  add s3",
        "[ok] prepare",
        "[ok] catch up and verify  [  ] switch",
        "ready to switch",
        "rows agree",
        f"next: shardwright reshard switch {started}",
    ):
        assert said in words, f"{said!r} is not in\n{words}"
