"""How much room a shard's server has for tables beside a partition. PostgreSQL cannot tell; the host of its files can."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg

# Where a new table in the partition's tablespace has its files: in the data directory, unless the tablespace is elsewhere.
_PLACE = """
SELECT current_setting('data_directory'), pg_tablespace_location(coalesce(nullif(c.reltablespace, 0), d.dattablespace)),
       (SELECT system_identifier FROM pg_control_system())
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d
 WHERE d.datname = current_database() AND n.nspname = %s AND c.relname = %s
"""

_MOUNTS = Path("/proc/self/mountinfo")


def free_bytes(connection: psycopg.Connection, schema: str, partition: str) -> tuple[str, int] | None:
    """Where tables beside a partition have their files, and how many bytes the server may still write there.

    Args:
        connection: to the shard.
        schema: the partition's schema.
        partition: its name.

    Returns:
        A directory and bytes; None where it cannot be known: the server's files are on another host or we may not look,
        or the file system does not say.
    """
    try:
        row = connection.execute(_PLACE, (schema, partition)).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    if row is None or connection.info.hostaddr not in ("", "127.0.0.1", "::1"):
        return None
    data, place, identifier = row[0], row[1] or row[0], row[2]
    free = free_in(Path(place), Path(data), identifier)
    return (place, free) if free is not None else None


def free_in(place: Path, data: Path, identifier: int) -> int | None:
    """How many bytes a server may still write in a directory of this host.

    Args:
        place: the directory.
        data: the server's data directory; its owner is the server's user.
        identifier: the server's system identifier. One in a container, or behind a tunnel, answers as if it were here, and
            its data directory is not the one of that name here.

    Returns:
        Bytes; None where it is another server's directory, we may not look, or the file system does not say.
    """
    try:
        with (data / "global" / "pg_control").open("rb") as control:
            if int.from_bytes(control.read(8), sys.byteorder) != identifier:
                return None
        server, found, device = data.stat(), os.statvfs(place), place.stat().st_dev
    except OSError:
        return None
    if not found.f_blocks:
        return None
    mine = _MOUNTS.exists() and is_reserved_for(_MOUNTS.read_text(), device, server.st_uid, server.st_gid)
    return (found.f_bfree if mine else found.f_bavail) * found.f_frsize


def is_reserved_for(mounts: str, device: int, user: int, group: int) -> bool:
    """Whether a file system keeps its reserved blocks for this user or group. They are not among those that are available.

    Args:
        mounts: the text of /proc/self/mountinfo.
        device: of the file system, as stat gives it.
        user: the server's user.
        group: the server's group.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 5 and words[2] == wanted:
            options = words[-1].split(",")
            return f"resuid={user}" in options or (group != 0 and f"resgid={group}" in options)
    return False
