"""examples/guestbook: a Flask application on two shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import httpx
import psycopg
import pytest

from fix_examples import EXAMPLES
from fix_servers import Dsns
from shardwright.catalog import models
from shardwright.testing.clusters import make_ready

pytestmark = pytest.mark.newest_postgres


def test_books_are_signed_and_read(
    cluster_dsns: Callable[..., Dsns], example: Callable[[str], Callable[[str], ModuleType]]
) -> None:
    module = example("guestbook")("app")
    dsns = cluster_dsns(2)
    make_ready(dsns.catalog, dsns.shards)
    with psycopg.connect(dsns.catalog, autocommit=True) as catalog:
        models.register(catalog, module.Base.metadata)
    app = module.make_app(dsns.catalog)
    with app.extensions["cluster"], app.test_client() as client:
        for owner in range(1, 9):
            for turn in range(owner):
                assert client.post(f"/books/{owner}", json={"said": f"{turn}"}).status_code == 201
        assert client.get("/books/3").get_json() == ["0", "1", "2"]
        assert client.get("/books/99").get_json() == []
        longest = client.get("/longest").get_json()
        assert [(one["owner_id"], one["many"]) for one in longest] == [(8, 8), (7, 7), (6, 6)]
    for dsn in dsns.shards.values():
        with psycopg.connect(dsn) as shard:
            assert shard.execute("SELECT count(*) > 0 FROM entries").fetchone() == (True,)


@pytest.mark.slow
def test_one_command_starts_it_and_ctrl_c_leaves_nothing() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDWRIGHT_", "PG"))}
    run = [sys.executable, EXAMPLES / "guestbook" / "run.py"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as started:
        try:
            assert started.stdout is not None
            shown = ""
            while "/longest" not in shown:
                line = started.stdout.readline()
                assert line, "it has ended"
                shown += line
            url = shown.split("curl ")[-1].split("/books")[0].strip()
            assert httpx.post(f"{url}/books/7", json={"said": "hello"}).status_code == 201
            assert httpx.get(f"{url}/books/7").json() == ["hello"]
            started.send_signal(signal.SIGINT)
            assert started.wait(60) == 0
        finally:
            started.kill()
