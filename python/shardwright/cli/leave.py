"""``shardwright leave``: everything of ours off a cluster that is down to one shard."""

from __future__ import annotations

from cyclopts import App

from shardwright.catalog import leaving
from shardwright.cli.app import DEFAULTS, Answer, Common

app = App(name="leave", help="Take everything of shardwright off a cluster that is down to one shard.")


@app.default
def leave(*, common: Common = DEFAULTS) -> Answer:
    """Take everything of shardwright off a cluster that is down to one shard: a plain PostgreSQL database remains.

    No row of the application is touched. Applications must have stopped using shardwright's sessions.
    """
    with common.connect() as catalog:
        left = leaving.leave(catalog)
    if left.shard is None:
        shown = "the catalog is gone; there was no shard"
    else:
        shown = f"shardwright has left; {len(left.tables)} tables stay in the database of shard {left.shard}"
    return Answer({"left": left.shard, "tables": list(left.tables)}, [shown])
