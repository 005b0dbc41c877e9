"""How asyncpg is told what a connection string of libpq says."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlencode

from psycopg import conninfo

from shardwright import errors
from shardwright.engines import KEEPALIVES

#: How asyncpg calls what libpq's connection strings say; the rest of them is told apart below.
_ASYNCPG_NAMES = {"dbname": "database"}
_ASYNCPG_KNOWS = {
    *("host", "port", "user", "password", "passfile", "database", "service", "servicefile", "target_session_attrs"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
}
_SETTINGS = frozenset({"application_name", "options"})
#: Of no importance, or seen to by `keep_alive`.
_LEFT_OUT = {
    *("client_encoding", "fallback_application_name", "gssencmode", "keepalives", "tcp_user_timeout"),
    *KEEPALIVES,
}


def asyncpg_arguments(place: str) -> dict[str, Any]:
    """What `asyncpg.connect` takes for a connection string of libpq.

    Args:
        place: the string, with one host.

    Raises:
        BadOption: it says something that asyncpg cannot do.
    """
    parts = {_ASYNCPG_NAMES.get(name, name): str(value) for name, value in conninfo.conninfo_to_dict(place).items()}
    if (address := parts.pop("hostaddr", None)) is not None:
        parts["host"] = address
    timeout = float(parts.pop("connect_timeout", 0)) or None
    settings = {name: parts.pop(name) for name in _SETTINGS & set(parts)}
    known = {name: parts.pop(name) for name in _ASYNCPG_KNOWS & set(parts)}
    if unknown := sorted(set(parts) - _LEFT_OUT):
        raise errors.BadOption(
            f"asyncpg does not know {', '.join(unknown)} of the shard's connection string",
            fix='leave it out, or use driver="psycopg"',
        )
    # As one DSN: its parser turns what it is given as libpq does.
    return {"dsn": f"postgresql://?{urlencode(known)}", "timeout": timeout, "server_settings": settings}


def keep_alive(connected: socket.socket | None) -> None:
    """Let the system notice a peer that has gone, as libpq does by its keepalives.

    Args:
        connected: the socket of a connection; one of a file system needs none.
    """
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, option in (("idle", "TCP_KEEPIDLE"), ("interval", "TCP_KEEPINTVL"), ("count", "TCP_KEEPCNT")):
        if (number := getattr(socket, option, None)) is not None:
            connected.setsockopt(socket.IPPROTO_TCP, number, int(KEEPALIVES[f"keepalives_{name}"]))
