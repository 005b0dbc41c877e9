"""`make mutants` is run now and then; that its places are still there is looked at always."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutants.list import MUTANTS
from mutants.mutant import Mutant

PACKAGE = Path(__file__).parents[2] / "python" / "shardwright"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutants_place_is_there_once(mutant: Mutant) -> None:
    text = (PACKAGE / mutant.file).read_text()
    for old, new in mutant.edits:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        assert old != new
