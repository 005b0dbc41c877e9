"""The pages of the error numbers, and that the reference page agrees with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shardwright.cli import explain
from shardwright.cli.app import run
from shardwright.errors import ShardwrightError, error_classes

ROOT = Path(__file__).parents[2]


def test_numbers_and_kinds_are_used_once() -> None:
    classes = list(error_classes())
    assert len({cls.code for cls in classes}) == len(classes)
    assert len({cls.kind for cls in classes}) == len(classes)
    assert all(re.fullmatch(r"SW\d{3}", cls.code) for cls in classes)


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.code)
def test_every_number_has_a_page(cls: type[ShardwrightError], capsys: pytest.CaptureFixture[str]) -> None:
    assert cls.__doc__, "each class has its own docstring"
    for name in (cls.code, cls.code.lower(), cls.code[2:], cls.kind, cls.__name__):
        assert run(["explain", name, "--json"]) == 0
        page = json.loads(capsys.readouterr().out)
        assert (page["code"], page["exit_code"]) == (cls.code, cls.exit_code)
        assert page["page"]


def test_commands_that_pages_name_exist() -> None:
    from shardwright.cli.app import VERBS

    named = re.findall(r"`shardwright (\w+)", explain.reference())
    assert named
    assert set(named) <= set(VERBS)


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert page == explain.reference(), "run `make docs`"
