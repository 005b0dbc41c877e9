"""Run every benchmark of this directory, one after the other: `make bench`, or `python -m tests.bench [NAME ...]`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run those whose names are given, else all."""
    names, sys.argv[1:] = sys.argv[1:], []
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if not names or path.stem.removeprefix("bench_") in names:
            print(f"== {path.stem.removeprefix('bench_')}", flush=True)
            runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
