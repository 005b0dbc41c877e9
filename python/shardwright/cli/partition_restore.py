"""``shardwright partition restore``: bring archived windows back."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from shardwright import errors
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table
from shardwright.cli.reshard_drive import Interrupts
from shardwright.partition import restore as restoring
from shardwright.partition.site import PATIENCE

_HOW = {
    "load": "loaded from its archive",
    "reattach": "attached again, its table was there still",
    "present": "there already",
}


def restore(
    table: str,
    /,
    *windows: str,
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    shard: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)] = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    keep: str = restoring.KEEP,
    patience: float = PATIENCE,
    common: Common = DEFAULTS,
) -> Answer:
    """Bring archived windows back: loaded, compared with their archives, and attached again on every shard.

    A window that was detached and not dropped yet is attached again as it is.

    Args:
        table: table or schema.table.
        windows: names of windows, such as events_p2026_01; `shardwright partition archives` lists them.
        all_: every window that is archived, or detached, and not there.
        shard: only on this shard; may be given more than once.
        from_: the directory or URI of the archives, where it is not the one that the catalog knows.
        keep: how long retention leaves them alone.
        patience: seconds that a step waits for its locks.
    """
    if bool(windows) == all_:
        raise errors.BadOption(
            "say which windows are to come back", fix="name them, or give --all; shardwright partition archives TABLE"
        )
    with common.connect():
        dsn = common.dsn()
    with Interrupts() as interrupts:
        done = restoring.restore(
            dsn,
            *tables.split_name(table),
            windows,
            shards=shard or (),
            place=from_,
            keep=keep,
            on_progress=interrupts.check,
            patience=patience,
        )
    rows = [(one.window, one.shard, one.rows, _HOW[one.how], one.kept_until) for one in done]
    return Answer(
        {"restored": [one.to_json() for one in done]},
        [Table(("window", "shard", "rows", "", "kept until"), rows, empty="no window is archived and not there")],
        next_steps=[f"shardwright partition status --table {table}"],
    )
