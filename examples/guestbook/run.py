"""The whole example: two shards, the guest book's table on them, and the application on a port.

make guestbook                               from the top of the checkout: serves until Ctrl-C, and leaves nothing
python examples/guestbook/run.py --dir d     leaves the cluster running in directory d
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from app import make_app
from werkzeug.serving import make_server

HERE = Path(__file__).parent


def main() -> None:
    """Bring the cluster up, serve, and take it down unless it has a directory to stay in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", type=Path, help="where the cluster lives and stays; a temporary one goes at the end")
    stays: Path | None = parser.parse_args().dir
    if stays is not None:
        serve(stays.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="guestbook-") as scratch:
        os.chmod(scratch, 0o755)  # run as root, servers run as the user nobody
        place = Path(scratch) / "cluster"
        try:
            serve(place)
        finally:
            if (place / "cluster.json").exists():
                shardwright("dev", "down", "--purge", "--dir", place)


def serve(place: Path) -> None:
    """Everything from empty servers on.

    Args:
        place: a directory for the cluster.
    """
    catalog: str = json.loads(shardwright("dev", "up", "--shards", 2, "--dir", place, "--json"))["catalog"]
    shardwright("table", "register", "app:Base", "--catalog", catalog)
    app = make_app(catalog)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    url = f"http://127.0.0.1:{server.port}"
    print(f'\ncurl -X POST {url}/books/7 --json \'{{"said": "hello"}}\'\ncurl {url}/books/7 {url}/longest', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        app.extensions["cluster"].close()


def shardwright(*words: object) -> str:
    """Run a command.

    Args:
        words: of the command line.

    Returns:
        What it said.
    """
    told = [str(word) for word in words]
    run = [sys.executable, "-m", "shardwright", *told]
    return subprocess.run(run, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
