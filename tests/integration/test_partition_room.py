"""How much room is left for a split: where the files will be, what is reserved for the server, and whose directory it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fix_catalog import Found
from fix_servers import Postgres
from shardwright import errors
from shardwright.partition import convert, cuttable, room, split
from shardwright.partition.fleet import Fleet
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resuid=65534,resgid=65534
28 27 0:25 / /dev/shm rw - tmpfs tmpfs rw,size=1g
29 27 8:1 / /data rw shared:5 - ext4 /dev/sda1 rw
30 27 8:2 / /more rw - ext4 /dev/sdb1 rw,resgid=26
"""


@pytest.mark.parametrize(
    ("device", "user", "group", "reserved"),
    [
        ((254, 0), 65534, 100, True),
        ((254, 0), 100, 65534, True),
        ((254, 0), 6553, 100, False),
        ((8, 1), 65534, 65534, False),
        ((8, 2), 70, 26, True),
        ((8, 2), 70, 0, False),
        ((9, 9), 65534, 65534, False),
    ],
)
def test_for_whom_blocks_are_reserved(device: tuple[int, int], user: int, group: int, reserved: bool) -> None:
    assert room.is_reserved_for(MOUNTS, os.makedev(*device), user, group) is reserved


def _control(directory: Path, identifier: int) -> Path:
    (directory / "global").mkdir(parents=True)
    (directory / "global" / "pg_control").write_bytes(identifier.to_bytes(8, sys.byteorder) + b"more")
    return directory


def test_another_servers_directory_is_not_looked_at(tmp_path: Path) -> None:
    data = _control(tmp_path / "data", 7_300_000_000_000_000_001)
    assert (room.free_in(data, data, 7_300_000_000_000_000_001) or 0) > 0
    assert room.free_in(data, data, 7_300_000_000_000_000_002) is None
    assert room.free_in(data, tmp_path / "nothing", 1) is None
    assert room.free_in(Path("/proc/self"), data, 7_300_000_000_000_000_001) is None, "it says 0 of 0 blocks"


_ASK = """
import json, os, sys
from pathlib import Path
from shardwright.partition import room
place = Path(sys.argv[1])
print(json.dumps([os.statvfs(place).f_bavail, room.free_in(place, place / "data", 42)]))
"""

_MOUNT = """
set -e
truncate -s 40M "$1/image"
mkfs.ext4 -q -m 50 "$1/image"
mkdir "$1/disk"
mount -o loop,resuid=$2 "$1/image" "$1/disk"
cp -r "$1/data" "$1/disk/data"
chown -R $2:$2 "$1/disk/data"
setpriv --reuid=$2 --clear-groups fallocate -l 20M "$1/disk/data/filled"
"$3" -c "$4" "$1/disk"
mount -o remount,resuid=0 "$1/disk"
"$3" -c "$4" "$1/disk"
"""


def test_blocks_that_are_reserved_for_the_server_are_free_for_it(workdir: Path) -> None:
    """As on a disk of which 75 GB were free, and none of it available to others than the server's user."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "mkfs.ext4", "setpriv", "fallocate"))):
        pytest.skip("needs root and a file system of its own")
    _control(workdir / "data", 42)
    # In a mount namespace of its own: nothing stays mounted, however it ends.
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", _MOUNT, "-", workdir, "65534", sys.executable, _ASK],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode and "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    (available, free), (_, others) = map(json.loads, done.stdout.splitlines())
    assert available == 0, done.stdout
    assert free > 5_000_000
    assert others == 0


def test_the_tablespace_of_the_partition_counts(found: Callable[..., Found], postgres: Postgres, workdir: Path) -> None:
    if postgres.bin_dir is None:
        pytest.skip("the server's files are in a container")
    cluster = found(1)
    dsn, shard = cluster.dsns.shards["s1"], cluster.shard("s1")
    with psycopg.connect(dsn) as connection:
        data = Path(connection.execute("SHOW data_directory").fetchone()[0])  # type: ignore[index]
    space = workdir / "space"
    space.mkdir()
    shutil.chown(space, data.stat().st_uid, data.stat().st_gid)
    name = f"space_{os.getpid()}"
    shard.execute(f"CREATE TABLESPACE {name} LOCATION '{space}'".encode())
    try:
        shard.execute(f"CREATE TABLE events (at timestamptz PRIMARY KEY) TABLESPACE {name}".encode())
        shard.execute("INSERT INTO events SELECT now() - n * interval '1 day' FROM generate_series(1, 90) n")
        convert.convert(
            cluster.dsns.catalog, "public", "events", Declaration("local", policy=Policy("at", "1 month", grace=None))
        )
        with Fleet(cluster.dsns.catalog, [("public", "events")]) as fleet:
            site = fleet.site(fleet.tables[0].id, fleet.tables[0].key, "s1")
            asked = room.free_bytes(site.connection, "public", "events_p_whole")
            assert asked is not None
            assert asked[0] == str(space)
            disk = os.statvfs(space)
            assert disk.f_bavail * disk.f_frsize // 2 < asked[1] <= disk.f_bfree * disk.f_frsize * 2
            shard.execute("CREATE TABLE elsewhere (x int)")
            beside = room.free_bytes(site.connection, "public", "elsewhere")
            assert beside is not None
            assert beside[0] == str(data)
            assert cuttable.reasons(site, split.plan(cluster.dsns.catalog, "public", "events").fat) == []
        split.split(cluster.dsns.catalog, "public", "events", drop_now=True)
        pieces = shard.execute(
            "SELECT c.relname, s.spcname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE i.inhparent = 'events'::regclass "
            "AND c.relname ~ '_p2'"
        ).fetchall()
        assert len(pieces) >= 3
        assert {where for _, where in pieces} == {name}
    finally:
        shard.execute("DROP TABLE IF EXISTS events, events_p_whole CASCADE")
        shard.execute(f"DROP TABLESPACE {name}".encode())


def test_no_room_is_a_reason_with_the_place(found: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = found(1)
    shard = cluster.shard("s1")
    shard.execute("CREATE TABLE events (at timestamptz PRIMARY KEY)")
    shard.execute("INSERT INTO events SELECT now() - n * interval '1 day' FROM generate_series(1, 90) n")
    convert.convert(cluster.dsns.catalog, "public", "events", Declaration("local", policy=Policy("at", "1 month")))
    monkeypatch.setattr(room, "free_bytes", lambda connection, schema, partition: ("/full", 10))
    with pytest.raises(
        errors.UnfitTable, match=r"needs about \d+ bytes beside events_p_whole, and 10 are free in /full"
    ):
        split.plan(cluster.dsns.catalog, "public", "events")
