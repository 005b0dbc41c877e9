"""One shard in a process of its own. Its order is a line of JSON on stdin; it ends when stdin does."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from shardwright import engines, errors, failpoints
from shardwright.catalog import roster, tables
from shardwright.migrate import one_shard
from shardwright.migrate.one_shard import Order


def main() -> None:
    """Do what the line says, and print one value of JSON."""
    failpoints.check_setting()
    asked = json.loads(sys.stdin.readline())
    # Who gave the order holds the lock that keeps operations off. Without it nothing more may be committed here.
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    name = asked.pop("shard")
    order = Order(**{**asked, "config": Path(asked["config"])})
    events: list[str] = []
    answer: dict[str, Any]
    try:
        with engines.connect_catalog(order.catalog_dsn, "shardwright migrate") as catalog:
            shard = roster.get_shard(catalog, name)
            registered = [table for table in tables.list_tables(catalog) if table.is_on(name)]
        answer = {"heads": one_shard.run(order, shard, registered, on_event=events.append)}
    except errors.ShardwrightError as error:
        answer = {"error": error.as_json()}
    print(json.dumps({**answer, "events": events}, default=str))


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
