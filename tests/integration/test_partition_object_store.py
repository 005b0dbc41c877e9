"""Archives in an object store that speaks S3's protocol: written, believed, restored, and refused when one is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from fix_partitions import NOW, Timed, by_month
from shardwright import errors
from shardwright.partition import restore
from shardwright.servers import free_port


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """The URI of an empty bucket, and pyarrow's file system for it."""
    pytest.importorskip("moto")
    fs = pytest.importorskip("pyarrow.fs")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        there = fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                there.create_dir("cold")
                break
            except OSError:
                assert time.monotonic() < deadline, "the object store does not answer"
                assert server.poll() is None
                time.sleep(0.1)
        yield f"s3://cold/archives?endpoint_override=127.0.0.1:{port}&scheme=http", there
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_archived_to_an_object_store_and_back(timed: Callable[..., Timed], bucket: tuple[str, Any]) -> None:
    place, there = bucket
    cluster = timed(2, by_month(keep="1 month", grace=None, archive=place))
    cluster.tick(NOW)
    cluster.shard("s1").execute(
        "INSERT INTO events (at, note) SELECT %s, 'n' || n FROM generate_series(1, 50) n", (NOW,)
    )
    kept = cluster.shard("s1").execute("SELECT * FROM events ORDER BY id").fetchall()
    for _ in range(2):
        report = cluster.tick(NOW + timedelta(days=100))
        assert report.exit_code == 0, report.to_json()
    assert cluster.ask("s1", "SELECT to_regclass('events_p2026_11')") is None
    from pyarrow.fs import FileSelector

    files = [one.path for one in there.get_file_info(FileSelector("cold/archives", recursive=True)) if one.is_file]
    of_s1 = [path for path in files if "/s1/public.events/20261101T" in path]
    assert sorted(path.rpartition(".")[2] for path in of_s1) == ["json", "parquet"]
    restore.restore(cluster.dsns.catalog, "public", "events", ["events_p2026_11"])
    assert cluster.shard("s1").execute("SELECT * FROM events ORDER BY id").fetchall() == kept
    # One that is not byte for byte what its manifest says is refused.
    december = next(path for path in files if "/s1/public.events/20261201T" in path and path.endswith(".parquet"))
    with there.open_output_stream(december) as file:
        file.write(b"PAR1 is not enough")
    with pytest.raises(errors.ArchiveUnusable):
        restore.restore(cluster.dsns.catalog, "public", "events", ["events_p2026_12"])
    assert "events_p2026_12" not in cluster.windows("s1")
