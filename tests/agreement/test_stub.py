"""The stub of the Rust module says what the binary has: mypy.stubtest, with no allowlist, and proof that it looks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardwright.core
import shardwright.errors

STUB = Path(shardwright.errors.__file__).with_name("_core.pyi")


def stubtest(stub: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """Run stubtest on the given text of the stub, before anything that is installed."""
    # stubtest reports success for a module that is not there at all: see first that it is.
    assert shardwright.core.RangeTable.__module__ == "shardwright._core"
    package = workdir / "shardwright"
    package.mkdir()
    (package / "__init__.pyi").touch()
    (package / "_core.pyi").write_text(stub)
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "shardwright._core"],
        cwd=workdir,
        env={**os.environ, "MYPYPATH": str(workdir)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_stub_is_the_binary(tmp_path: Path) -> None:
    result = stubtest(STUB.read_text(), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("def fingerprint(text: str, /)", "def fingerprint(text: str, seed: int, /)", "fingerprint"),
        pytest.param("def place(", "def placed(", "placed", marks=pytest.mark.slow),
        pytest.param("def locate(self, key: object, /)", "def locate(self, /)", "locate", marks=pytest.mark.slow),
        pytest.param(
            "def points(keys: Iterable[Any], key_type: str, buckets: int, /) -> list[int]: ...",
            "",
            "points",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_broken_stub_is_found(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    stub = STUB.read_text()
    assert stub.count(right) == 1
    result = stubtest(stub.replace(right, wrong), tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "shardwright._core" in result.stdout
    assert complaint in result.stdout
