"""The one door to Rust: everything of `shardwright._core` that the package uses, under the same names."""

from __future__ import annotations

from shardwright._core import (
    RangeTable,
    check_key,
    fingerprint,
    migrations,
    place,
    point,
    points,
)

__all__ = ["RangeTable", "check_key", "fingerprint", "migrations", "place", "point", "points"]
