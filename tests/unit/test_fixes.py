"""What errors and answers tell a person to run exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import cyclopts
import pytest

import shardwright
from shardwright.cli.app import VERBS, app

SOURCES = sorted(Path(shardwright.__file__).parent.rglob("*.py"))


def _commands(source: Path) -> set[tuple[str, str | None]]:
    """Verbs, and the words behind those that are groups, in the strings of a file."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for verb, word in re.findall(r"\bshardwright ([a-z]+)(?: ([a-z]+)\b)?", node.value):
                if verb in VERBS:
                    found.add((verb, word or None))
    return found


def _is_group(verb: cyclopts.App) -> bool:
    return verb.default_command is None


@pytest.mark.parametrize("source", [one for one in SOURCES if _commands(one)], ids=lambda path: path.stem)
def test_commands_that_a_source_names_exist(source: Path) -> None:
    for verb, word in _commands(source):
        command = app[verb]
        if word is not None and _is_group(command):
            assert word in set(command), f"{source.name} tells to run shardwright {verb} {word}"
