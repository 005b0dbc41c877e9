"""Make each mutant in a copy of the package, and run the tests that must notice. Exits 1 when one goes unnoticed.

python -m tests.mutants [WORD ...]     only those whose name contains a word
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .list import MUTANTS
from .mutant import Mutant

ROOT = Path(__file__).parents[2]


def is_noticed(mutant: Mutant) -> bool:
    """Whether one of the mutant's tests fails on it, as tests do: not by an error of collection."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        package = Path(directory) / "shardwright"
        shutil.copytree(ROOT / "python" / "shardwright", package)
        path = package / mutant.file
        text = path.read_text()
        for old, new in mutant.edits:
            if text.count(old) != 1:
                raise SystemExit(f"mutant {mutant.name!r}: {old!r} is there {text.count(old)} times, not once")
            text = text.replace(old, new)
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *mutant.tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": directory},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutant {mutant.name!r}: pytest could not run its tests\n{done.stdout[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(f"{'noticed' if done.returncode else 'MISSED '}  {mutant.name}: {mutant.breaks}")
    for line in failed[:2]:
        print(f"         {line[:160]}")
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Run the mutants whose name contains one of `words`, or all."""
    wanted = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    missed = [mutant.name for mutant in wanted if not is_noticed(mutant)]
    print(f"{len(wanted) - len(missed)} of {len(wanted)} mutants noticed")
    return 1 if missed or not wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
