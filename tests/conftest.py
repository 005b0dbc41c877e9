"""What every test can use; the fixtures themselves are in the named modules ``fix_*.py`` beside this file."""

from __future__ import annotations

pytest_plugins = [
    "fix_servers",
    "fix_cli",
    "fix_catalog",
    "fix_seed",
    "fix_resharding",
    "fix_chaos",
    "fix_sessions",
    "fix_desk",
    "fix_conversion",
    "fix_locks",
    "fix_migrate",
    "fix_partitions",
    "fix_retention",
]
