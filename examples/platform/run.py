"""The whole example: three shards, the platform's tables on them, rows, and what `shardwright` says of them.

make example                                 from the top of the checkout: sets everything up, and leaves nothing
python examples/platform/run.py --dir d      leaves the cluster running in directory d
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from models import AnalyticsEvent, SystemLog, UserActivity
from sqlalchemy import func, select

from shardwright import Cluster

HERE = Path(__file__).parent
USERS = 60


def main() -> None:
    """Bring the cluster up, use it, and take it down unless it has a directory to stay in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", type=Path, help="where the cluster lives and stays; a temporary one goes at the end")
    stays: Path | None = parser.parse_args().dir
    if stays is not None:
        show(stays.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="platform-") as scratch:
        os.chmod(scratch, 0o755)  # run as root, servers run as the user nobody
        place = Path(scratch) / "cluster"
        try:
            show(place)
        finally:
            if (place / "cluster.json").exists():
                shardwright("dev", "down", "--purge", "--dir", place)


def show(place: Path) -> None:
    """Everything from three empty servers on, command by command.

    Args:
        place: a directory for the cluster.
    """
    up = ["dev", "up", "--shards", "3", "--dir", str(place)]
    shardwright(*up)
    os.environ["SHARDWRIGHT_CATALOG"] = json.loads(shardwright(*up, "--json", quietly=True))["catalog"]
    shardwright("table", "register", "models:Base")
    use()
    shardwright("partition", "status")
    shardwright("partition", "tick")


def use() -> None:
    """What the application does: it knows models and keys, no shard and no partition."""
    with Cluster.connect(os.environ["SHARDWRIGHT_CATALOG"], application="platform") as cluster:
        new_session = cluster.sessionmaker()
        for user in range(1, USERS + 1):
            # All that is of this user goes to the user's shard, in one transaction; the log goes where that is.
            with new_session(key=user) as session, session.begin():
                session.add(AnalyticsEvent(user_id=user, name="login", properties={"from": "web"}))
                session.add(UserActivity(user_id=user, action="login"))
                session.add(SystemLog(service="web", message=f"user {user} logged in"))
        with new_session() as session:
            for model in (AnalyticsEvent, UserActivity):
                rows = session.scalar(select(func.count()).select_from(model))
                print(f"{model.__tablename__}: {rows} rows on all shards together")
        for name in cluster.map.shards():
            with cluster.engine(name).connect() as connection:
                print(
                    f"{SystemLog.__tablename__}: {connection.scalar(select(func.count(SystemLog.id)))} rows on {name}"
                )
    print()


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
    main()
