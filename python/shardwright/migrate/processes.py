"""Several shards at once, each in a process of its own: ``python -m shardwright.migrate.child``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from shardwright import errors
from shardwright.catalog.roster import Shard
from shardwright.migrate.one_shard import Order


def run(
    order: Order,
    shards: Sequence[Shard],
    parallel: int,
    still_ours: Callable[[], None],
    on_event: Callable[[str], None],
    finished: Callable[[Shard, tuple[str, ...], float], None],
) -> None:
    """Run an order on shards. After a failure none is begun, and those that were begun are waited for.

    Args:
        order: what to do.
        shards: where.
        parallel: how many at a time.
        still_ours: called every now and then; raises where we have lost the right to go on, and children are ended.
        on_event: told what is going on.
        finished: told of each shard that is done, with when it began.

    Raises:
        ShardwrightError: what the first failure was.
    """
    waiting = list(shards)
    running: dict[str, tuple[Shard, subprocess.Popen[str], float]] = {}
    failure: errors.ShardwrightError | None = None
    try:
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < parallel:
                shard = waiting.pop(0)
                running[shard.name] = (shard, _begin(order, shard), time.monotonic())
            still_ours()
            time.sleep(0.02)
            for name, (shard, child, began) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[name]
                answer = _answer(shard, child)
                for line in answer.get("events", ()):
                    on_event(line)
                if "error" in answer:
                    failure = failure or _error(answer["error"])
                else:
                    finished(shard, tuple(answer["heads"]), began)
    finally:
        for _, child, _ in running.values():
            child.kill()
            child.communicate()
    if failure is not None:
        raise failure


def _begin(order: Order, shard: Shard) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "shardwright.migrate.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SHARDWRIGHT_CATALOG": order.catalog_dsn},
    )
    assert child.stdin is not None
    # Its stdin stays open: when we die, it reads the end and dies too.
    child.stdin.write(json.dumps({**asdict(order), "config": str(order.config), "shard": shard.name}) + "\n")
    child.stdin.flush()
    return child


def _answer(shard: Shard, child: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = child.communicate()
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError:
        return {
            "error": {
                "code": errors.MigrationFailed.code,
                "message": f"the process that migrated shard {shard.name} ended with {child.returncode}",
                "fix": "run the same command again",
                "durable_change": True,
            }
        }
    return found


def _error(said: dict[str, Any]) -> errors.ShardwrightError:
    kinds = {cls.code: cls for cls in errors.error_classes()}
    made = kinds.get(said["code"], errors.MigrationFailed)
    facts = said.get("facts", {})
    return made(said["message"], fix=said["fix"], durable_change=said.get("durable_change", False), **facts)
