"""docs/tutorial-partitions.md, typed as it stands on real servers: each command works, and says what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shardwright.servers import LocalCluster, find_binaries

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-partitions.md"
#: Where and in which month the page was written.
THERE, THEN = "/srv/tutorial", 2026 * 12 + 11
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MONTH = re.compile(r"(?<!\d)(20\d\d)([-_])(\d\d)(?!\d)")


def _later(text: str, months: int) -> str:
    """The same command or file, so many months later."""

    def moved(found: re.Match[str]) -> str:
        number = int(found[1]) * 12 + int(found[3]) + months
        return f"{(number - 1) // 12}{found[2]}{(number - 1) % 12 + 1:02}"

    return _MONTH.sub(moved, text)


def _typed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of the page, and the lines that it shows below them; the first block is the reader's own set-up."""
    blocks = [body for language, body in _BLOCK.findall(text) if not language and body.startswith("$ ")]
    for body in blocks[1:]:
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield command, lines


def _files(text: str) -> dict[str, str]:
    named = [body.partition("\n") for language, body in _BLOCK.findall(text) if language in ("python", "toml")]
    return {first.removeprefix("# "): rest for first, _, rest in named}


def _like(line: str) -> str:
    """A line without numbers and widths."""
    return " ".join(re.sub(r"\d+", "#", re.sub(r"\b[0-9a-f]{8,16}\b|(?<=_)[0-9a-f]{8}(?=\.)", "#", line)).split())


def test_months_are_moved() -> None:
    assert _later("visits_p2026_02 '2026-11-01+00' p2026_12", 2) == "visits_p2026_04 '2027-01-01+00' p2027_02"


@pytest.mark.slow
def test_every_command_of_the_tutorial(workdir: Path) -> None:
    text, now = PAGE.read_text(encoding="utf-8"), datetime.now(UTC)
    months = now.year * 12 + now.month - THEN
    workdir.chmod(0o755)
    for name, body in _files(text).items():
        (workdir / name).write_text(body.replace(THERE, str(workdir)), encoding="utf-8")
    commands = [(_later(command, months), lines) for command, lines in _typed(text)]
    assert len(commands) > 20
    python = shlex.quote(sys.executable)
    script = ["exec 2>&1", f'python() {{ {python} "$@"; }}', f'shardwright() {{ {python} -m shardwright "$@"; }}']
    for command, _ in commands:
        script += [command, 'echo "-- $? --"']
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDWRIGHT_", "PG"))}
    kept["PATH"] += f"{os.pathsep}{find_binaries()}"
    try:
        done = subprocess.run(
            ["bash", "-s"], input="\n".join(script), cwd=workdir, env=kept, capture_output=True, text=True, timeout=280
        )
    finally:
        if (workdir / "d" / "cluster.json").exists():
            LocalCluster.open(workdir / "d").purge()
    said = re.split(r"^-- (\d+) --\n", done.stdout.replace(str(workdir), THERE), flags=re.MULTILINE)
    assert said[1::2] == ["0"] * len(commands), done.stdout
    for (command, lines), answer in zip(commands, said[::2], strict=False):
        told = {_like(line) for line in answer.splitlines()}
        missing = [line for line in lines if line != "..." and _like(line) not in told]
        assert not missing, f"$ {command}\n{answer}\nthe page has: {missing}"
