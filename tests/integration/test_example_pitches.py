"""examples/pitches as a whole: clients work while the cluster gets a third shard, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from shardwright.servers import LocalCluster

CLIENTS = 6


@pytest.fixture
def place(workdir: Path) -> Iterator[Path]:
    directory = workdir / "pitches"
    yield directory
    if (directory / "cluster.json").exists():
        LocalCluster.open(directory).purge()


class Clients:
    """Users of the application, and what it has acknowledged to them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.pitches: list[tuple[int, int]] = []
        self.comments: Counter[tuple[int, int]] = Counter()
        self.signed: set[tuple[int, int, int]] = set()
        self.over = asyncio.Event()

    async def call(self, method: str, path: str, **given: Any) -> Any:
        answer = await self.client.request(method, path, **({"json": given} if given else {}))
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def work(self, number: int) -> None:
        me = (await self.call("POST", "/users", name=f"user {number}"))["id"]
        while not self.over.is_set():
            made = await self.call("POST", f"/users/{me}/pitches", genre="drama", title="t", secret="s")
            mine = (me, made["id"])
            self.pitches.append(mine)
            assert [one["id"] for one in (await self.call("GET", f"/users/{me}"))["pitches"]][-1] == made["id"]
            creator, pitch = self.pitches[hash(mine) % len(self.pitches)]
            here = f"/users/{creator}/pitches/{pitch}"
            await self.call("POST", f"{here}/comments", author_id=me, said=f"said by {number}")
            self.comments[creator, pitch] += 1
            await self.call("POST", f"{here}/nda", investor_id=me)
            self.signed.add((me, creator, pitch))
            read = await self.call("GET", f"{here}?reader_id={me}")
            assert read["secret"] == "s"
            assert f"user {number}" in {one["by"] for one in read["comments"]}

    async def look_at_everybody(self) -> None:
        while not self.over.is_set():
            known = len(self.pitches)
            assert (await self.call("GET", "/genres"))["drama"] >= known
            page = await self.call("GET", "/pitches")
            assert [one["id"] for one in page] == sorted((one["id"] for one in page), reverse=True)

    async def check(self, seeded: int) -> None:
        assert sum((await self.call("GET", "/genres")).values()) == len(self.pitches) + seeded
        for creator, pitch in self.pitches:
            found = await self.call("GET", f"/users/{creator}/pitches/{pitch}")
            assert len(found["comments"]) == self.comments[creator, pitch]
        for investor, creator, pitch in self.signed:
            assert (await self.call("GET", f"/users/{creator}/pitches/{pitch}?reader_id={investor}"))["secret"] == "s"


async def shardwright(*words: object) -> Any:
    """Run a command beside the application; its answer."""
    run = [sys.executable, "-m", "shardwright", *map(str, words), "--json"]
    done = await asyncio.create_subprocess_exec(*run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await asyncio.wait_for(done.communicate(), 180)
    assert done.returncode == 0, out.decode() + err.decode()
    return json.loads(out)


def test_clients_notice_nothing_of_a_third_shard(
    place: Path, example: Callable[[str], Callable[[str], ModuleType]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import_ = example("pitches")
    monkeypatch.setenv("SHARDWRIGHT_CATALOG", "")  # what the example sets here goes after the test
    assert import_("run").bring_up(place) == os.environ["SHARDWRIGHT_CATALOG"]
    module = import_("app")

    async def live() -> None:
        transport = httpx.ASGITransport(module.app)
        async with (
            module.lifespan(module.app),
            httpx.AsyncClient(transport=transport, base_url="http://pitches") as client,
        ):
            clients = Clients(client)
            seeded = sum((await clients.call("GET", "/genres")).values())
            assert seeded == 5
            async with asyncio.TaskGroup() as tasks:
                for number in range(CLIENTS):
                    tasks.create_task(clients.work(number))
                tasks.create_task(clients.look_at_everybody())
                more = await shardwright("dev", "add-shard", "--dir", place)
                await shardwright("shard", "add", "s3", more["dsn"])
                await shardwright("reshard", "start", "--add", "s3")
                await shardwright("reshard", "switch")
                await shardwright("reshard", "finish")
                clients.over.set()
            assert "s3" in module.app.state.cluster.map.shards()
            assert len(clients.pitches) >= CLIENTS
            await clients.check(seeded)

    asyncio.run(live())
