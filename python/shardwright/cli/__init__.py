"""The command line: ``shardwright``. What each file is for stands at the top of `shardwright.cli.app`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: the words after the program's name; None takes them from `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:  # before any import that takes time
        print(version())
        return 0
    try:
        try:
            import cyclopts  # noqa: F401
            import rich  # noqa: F401
        except ModuleNotFoundError as error:
            print(f"error[SW212] the command line needs the package {error.name}", file=sys.stderr)
            print("fix: pip install 'shardwright[cli]'", file=sys.stderr)
            return 3
        from shardwright.cli.app import run

        return run(words)
    except KeyboardInterrupt:  # while it was still loading, or a second one while it cleaned up
        print("error[SW306] interrupted\nfix: run the same command again", file=sys.stderr)
        return 4


def version() -> str:
    """The installed version of shardwright."""
    from importlib import metadata

    return metadata.version("shardwright")
