"""The processes of a server: which there are, whether they live, and sending them signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path


def postmaster(data: Path) -> int | None:
    """The main process of the server in a data directory, None when none lives."""
    lines = _pid_file(data)
    if not lines or not lines[0].lstrip("-").isdigit():
        return None
    pid = abs(int(lines[0]))
    # The file outlives a crash, and its number may belong to somebody else by now, another PostgreSQL server included.
    return pid if is_alive(pid) and _works_in(pid, data) else None


def is_ready(data: Path, pid: int) -> bool:
    """Whether the server with this main process accepts connections, by its own word in ``postmaster.pid``."""
    lines = _pid_file(data)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in ("ready", "standby")


def is_alive(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _state(pid) != "Z"


def children(pid: int) -> list[int]:
    """The direct children of a process; those of a PostgreSQL server are all of it."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in listing.read_text().split()]
    except OSError:
        answer = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
        return [int(child) for child in answer.stdout.split()]


def stop_family(pid: int) -> list[int]:
    """SIGSTOP a server's main process, so that it makes no more, then all its children. Returns all of them."""
    send(pid, signal.SIGSTOP)
    family = [pid, *children(pid)]
    for member in family[1:]:
        send(member, signal.SIGSTOP)
    return family


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_gone(pids: Iterable[int], timeout: float) -> bool:
    """Wait until none of the processes lives. False when time runs out."""
    deadline = time.monotonic() + timeout
    left = list(pids)
    while left := [pid for pid in left if is_alive(pid)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def _works_in(pid: int, data: Path) -> bool:
    if not Path("/proc/self").exists():
        return True
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data.resolve()
    except OSError:  # it is gone, or it is another user's: none that we could have started
        return False


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
