"""Kills a server when the process that started it is gone, however it went."""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref

# The kernel closes the pipe when the starting process ends, by kill -9 too. The kernel's own "parent died" signal
# is no way: it fires when the parent's *thread* ends, and servers are started side by side in threads.
_SCRIPT = """
trap '' INT TERM HUP
read -r line && exit 0
kill -CONT "$1"; kill -QUIT "$1" || exit 0
for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" || break; sleep 0.5; done
kill -KILL "$1"
[ -z "$2" ] || rm -rf -- "$2"
"""

_live: weakref.WeakSet[Watchdog] = weakref.WeakSet()


class Watchdog:
    """A small shell that waits for the end of this process."""

    def __init__(self, pid: int, remove: str = "") -> None:
        """Begin to watch.

        Args:
            pid: the server's main process.
            remove: a directory to remove after the server's end, when this process died without doing it.
        """
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "shardwright-watchdog", str(pid), remove],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        _live.add(self)

    def release(self) -> None:
        """Let the server live on, or accept that it has ended: nothing will be killed."""
        with contextlib.suppress(BrokenPipeError):
            self._shell.communicate(b"\n", timeout=10)
        _live.discard(self)

    def forget(self) -> None:
        """In a forked child: close this end, so that the pipe ends with the process that started the server."""
        if self._shell.stdin is not None:
            self._shell.stdin.close()


def _forget_all() -> None:
    for watchdog in list(_live):
        watchdog.forget()


os.register_at_fork(after_in_child=_forget_all)
