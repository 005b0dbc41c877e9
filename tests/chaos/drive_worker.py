"""A worker process for chaos tests: drives one operation to a goal, with whatever failpoint the environment arms."""

from __future__ import annotations

import sys

from shardwright import errors
from shardwright.reshard import operate


def main() -> int:
    catalog, operation, goal = sys.argv[1:4]
    try:
        operate.drive(catalog, int(operation), goal)
    except errors.ShardwrightError as error:
        print(f"{error.code} {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
