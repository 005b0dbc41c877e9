"""The golden vectors, through the public functions."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

import shardwright

CASES = json.loads(Path(__file__).with_name("golden_points.json").read_text())
READ = {"text": str, "varchar": str, "uuid": uuid.UUID, "bytea": bytes.fromhex}


def key_of(case: dict[str, Any]) -> Any:
    return READ.get(case["type"], int)(case["key"])


@pytest.mark.parametrize("key_type", ["int2", "int4", "int8", "text", "varchar", "uuid", "bytea"])
def test_points_are_the_servers(key_type: str) -> None:
    cases = [case for case in CASES if case["type"] == key_type]
    assert len(cases) > 40
    for case in cases:
        for buckets, expected in case["points"].items():
            assert shardwright.point(key_of(case), key_type, int(buckets)) == expected, case
    for buckets in (2, 64, 4096, 65536):
        found = shardwright.points([key_of(case) for case in cases], key_type, buckets)
        assert found == [case["points"][str(buckets)] for case in cases]
