"""TCP ports for local servers."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from shardwright.errors import UnfitServer


def free_port() -> int:
    """A TCP port of this machine that nobody listens on.

    It is taken below the range from which the system serves outgoing connections: else one of these could take a
    stopped server's port before its restart.
    """
    low = 32768
    with contextlib.suppress(OSError, ValueError):
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.SystemRandom().randrange(10240, low) if low > 11000 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise UnfitServer("no free TCP port was found on 127.0.0.1 in 100 tries")
