"""What every test can use; the fixtures themselves are in the named modules ``fix_*.py`` beside this file."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

pytest_plugins = [
    "fix_servers",
    "fix_cli",
    "fix_catalog",
    "fix_seed",
    "fix_resharding",
    "fix_chaos",
    "fix_drivers",
    "fix_sessions",
    "fix_unique",
    "fix_blog",
    "fix_answers",
    "fix_desk",
    "fix_conversion",
    "fix_locks",
    "fix_migrate",
    "fix_examples",
    "fix_partitions",
    "fix_retention",
]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that says that it takes longer is watched for longer."""
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args[0] > float(item.config.getini("timeout")):
        until = marker.args[0] + 100
        faulthandler.dump_traceback_later(until, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """An end that hangs ends the process: a test's failure has used up its time limit and pytest's own watch."""
    faulthandler.dump_traceback_later(300, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
