"""The whole example: two shards, the platform's tables on them, some creators and investors, and the application on a port.

make pitches                                 from the top of the checkout: serves until Ctrl-C, and leaves nothing
python examples/pitches/run.py --dir d       leaves the cluster running in directory d
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import uvicorn
from sqlalchemy import func, select

from shardwright import Cluster

HERE = Path(__file__).parent
GENRES = {"drama": "Drama", "comedy": "Comedy", "thriller": "Thriller"}


def main() -> None:
    """Bring the cluster up, serve, and take it down unless it has a directory to stay in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", type=Path, help="where the cluster lives and stays; a temporary one goes at the end")
    parser.add_argument("--port", type=int, default=0, help="where to serve; any free port by default")
    given = parser.parse_args()
    if given.dir is not None:
        serve(given.dir.absolute(), given.port)
        return
    with tempfile.TemporaryDirectory(prefix="pitches-") as scratch:
        os.chmod(scratch, 0o755)  # run as root, servers run as the user nobody
        place = Path(scratch) / "cluster"
        try:
            serve(place, given.port)
        finally:
            if (place / "cluster.json").exists():
                shardwright("dev", "down", "--purge", "--dir", place)


def serve(place: Path, port: int) -> None:
    """Everything from empty servers on.

    Args:
        place: a directory for the cluster.
        port: where to serve; 0: any free one.
    """
    catalog = bring_up(place)
    os.environ["SHARDWRIGHT_CATALOG"] = catalog
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        print(f"\n{url}/docs shows and tries every call; {url}/pitches and {url}/genres ask all shards.")
        print(f"Give it a third shard meanwhile, in another terminal:\n\n  export SHARDWRIGHT_CATALOG={catalog}")
        print(f"  shardwright dev add-shard --dir {place}     # names the two commands that come next\n")
        config = uvicorn.Config("app:app", log_level="warning")
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


def bring_up(place: Path) -> str:
    """A cluster of two shards with the platform's tables and something to look at.

    Args:
        place: a directory for it.

    Returns:
        How to reach its catalog.
    """
    up = ["dev", "up", "--shards", "2", "--dir", str(place)]
    shardwright(*up)
    catalog: str = json.loads(shardwright(*up, "--json", quietly=True))["catalog"]
    os.environ["SHARDWRIGHT_CATALOG"] = catalog
    shardwright("table", "register", "models:Base")
    write_genres(catalog)
    asyncio.run(seed())
    return catalog


def write_genres(catalog: str) -> None:
    """Genres, written once and copied to every shard by PostgreSQL's own replication.

    Args:
        catalog: how to reach the catalog.
    """
    from models import Genre

    with Cluster.connect(catalog, application="pitches") as cluster:
        with cluster.sessionmaker().begin() as session:
            session.add_all([Genre(code=code, name=name) for code, name in GENRES.items()])
        deadline = time.monotonic() + 30
        for shard in cluster.map.shards():
            with cluster.engine(shard).connect() as connection:
                while connection.scalar(select(func.count(Genre.code))) < len(GENRES):
                    connection.rollback()
                    if time.monotonic() > deadline:
                        sys.exit(f"the genres do not arrive on {shard}")
                    time.sleep(0.05)


async def seed() -> None:
    """Some users, and what they do: through the application itself."""
    from app import app, lifespan

    async with (
        lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pitches") as client,
    ):

        async def post(path: str, **given: object) -> dict[str, int]:
            answer = await client.post(path, json=given)
            answer.raise_for_status()
            found: dict[str, int] = answer.json()
            return found

        people = [(await post("/users", name=name))["id"] for name in ("Ada", "Bo", "Cy", "Di", "Eve")]
        for at, creator in enumerate(people):
            investor = people[(at + 1) % len(people)]
            genre = list(GENRES)[at % len(GENRES)]
            pitch = await post(f"/users/{creator}/pitches", genre=genre, title=f"A {genre}", secret="it ends well")
            here = f"/users/{creator}/pitches/{pitch['id']}"
            await post(f"{here}/comments", author_id=investor, said="tell me more")
            await post(f"{here}/nda", investor_id=investor)


def shardwright(*words: object, quietly: bool = False) -> str:
    """Run a command, and show it with what it says.

    Args:
        words: of the command line.
        quietly: do not show it.

    Returns:
        What it said.
    """
    told = [str(word) for word in words]
    run = [sys.executable, "-m", "shardwright", *told]
    said = subprocess.run(run, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True).stdout
    if not quietly:
        print(f"$ shardwright {shlex.join(told)}\n{said}", flush=True)
    return said


if __name__ == "__main__":
    # Ctrl-C ends it.
    with contextlib.suppress(KeyboardInterrupt):
        main()
