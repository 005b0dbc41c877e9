"""One seed for all that is random in a run, printed so that the run can be repeated: SHARDWRIGHT_SEED=N make test.

Fixtures:
    seed   int, the run's seed
    rng    random.Random, seeded by the run's seed and the test's name
"""

from __future__ import annotations

import os
import random

import pytest

# The processes that share a run (pytest -n 2) share its seed: they inherit the environment of the first.
_DRAWN = os.environ.setdefault("SW_TESTS_SEED", str(random.SystemRandom().randrange(2**32)))
SEED = int(os.environ.get("SHARDWRIGHT_SEED") or _DRAWN)


def pytest_report_header() -> str:
    return f"seed: SHARDWRIGHT_SEED={SEED}"


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{SEED}:{request.node.nodeid}")
