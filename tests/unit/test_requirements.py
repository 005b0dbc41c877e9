"""What is imported in any case is required in any case, and not by an extra alone."""

from __future__ import annotations

import tomllib
from pathlib import Path


def test_sqlalchemy_is_asked_to_bring_greenlet() -> None:
    """From SQLAlchemy 2.1 on it does so only as `sqlalchemy[asyncio]`; the tests' own environment has it from elsewhere."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [required] = [one for one in project["dependencies"] if one.startswith("sqlalchemy")]
    assert required.startswith("sqlalchemy[asyncio]")
