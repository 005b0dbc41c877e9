"""The command line says the same on every PostgreSQL: `make test` tries it on the newest one, `make test-all` on all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fix_servers import POSTGRESES

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE) or item.get_closest_marker("every_postgres"):
            continue
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("postgres", POSTGRESES[0]) != POSTGRESES[0]:
            item.add_marker(pytest.mark.slow)
