"""The applications under examples/, imported as they import each other.

Fixtures:
    example   (name) -> import_(module): imports the example's modules by their bare names; all are forgotten after the test
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Callable[[str], ModuleType]]]:
    for name in [name for name in os.environ if name.startswith(("SHARDWRIGHT_", "PG"))]:
        monkeypatch.delenv(name)

    def enter(name: str) -> Callable[[str], ModuleType]:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return importlib.import_module

    yield enter
    # Each example has a module `app` of its own.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]
