"""``shardwright partition split``: a fat partition is cut into windows."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from typing import Annotated

from cyclopts import Parameter

from shardwright import errors
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.moments import asked_moment
from shardwright.cli.ongoing import Ongoing
from shardwright.cli.output import Part, Table
from shardwright.cli.reshard_drive import Interrupts
from shardwright.cli.reshard_screen import size
from shardwright.partition import split as splitting
from shardwright.partition.bulk import Progress
from shardwright.partition.site import PATIENCE
from shardwright.partition.split_plan import SplitPlan
from shardwright.partition.splitting import Settings

Flag = Parameter(negative=())


def split(
    table: str,
    partition: str | None = None,
    /,
    *,
    since: str | None = None,
    workers: int = 2,
    rows_per_second: float | None = None,
    verify: bool = True,
    wait_for_snapshots: float | None = None,
    drop_now: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
    abort: Annotated[bool, Flag] = False,
    patience: float = PATIENCE,
    common: Common = DEFAULTS,
) -> Answer:
    """Cut a fat partition into the policy's windows on every shard, while its rows are read and written.

    It is copied beside itself, so its size in disk is needed once more. Run again, an interrupted split goes on.

    Args:
        table: table or schema.table.
        partition: which; the only one that is no window unless given.
        since: what is older than this moment's window stays one partition (ISO 8601).
        workers: connections that copy and build indexes.
        rows_per_second: copies no more than these.
        verify: compares both sides before they are exchanged.
        wait_for_snapshots: seconds to wait, before the exchange, for snapshots that are older than the copied rows.
        drop_now: drops the old partition at once; else it is kept, detached, for the policy's grace.
        dry_run: only looks, and shows what it would be cut into.
        abort: gives an interrupted split up; possible until a shard has exchanged.
        patience: seconds of tries for each lock.
    """
    schema, name = tables.split_name(table)
    if not 1 <= workers <= 32:
        raise errors.BadOption(f"--workers {workers}: 1 to 32", fix="--workers 2")
    if rows_per_second is not None and rows_per_second <= 0:
        raise errors.BadOption(f"--rows-per-second {rows_per_second}: more than 0", fix="--rows-per-second 50000")
    with common.connect():
        dsn = common.dsn()
    if abort:
        given_up = splitting.abort(dsn, schema, name, patience=patience)
        return Answer(
            {"aborted": given_up},
            [f"the split is given up on {', '.join(given_up)}; nothing had changed"],
            next_steps=["shardwright partition status"],
        )
    moment = _since(dsn, schema, name, since)
    if dry_run:
        made = splitting.plan(dsn, schema, name, partition, since=moment)
        again = shlex.join([table, *([partition] if partition else []), *(["--since", since] if since else [])])
        return Answer(made.to_json(), _planned(made), next_steps=[f"shardwright partition split {again}"])
    settings = Settings(workers, rows_per_second, verify, wait_for_snapshots)
    with Interrupts() as interrupts, ExitStack() as stack:
        ongoing = Ongoing(common.output, stack)

        def watch(shard: str, step: str, progress: Progress | None) -> None:
            ongoing.tell(f"shard {shard}: {step}", _progress(progress) if progress is not None else "")

        done = splitting.split(
            dsn,
            schema,
            name,
            partition,
            since=moment,
            settings=settings,
            drop_now=drop_now,
            watch=watch,
            on_progress=interrupts.check,
            patience=patience,
        )
    rows = [
        (one.shard, one.step, one.rows, one.rows_per_s and round(one.rows_per_s), one.replayed_keys, one.lock_ms)
        for one in done.shards
    ]
    kept = "dropped" if done.dropped else "kept, detached, for the grace of its policy"
    return Answer(
        done.to_json(),
        [
            f"{done.partition} of {done.table} is cut into {done.pieces} partitions; it is {kept}",
            Table(("shard", "", "rows", "rows/s", "keys replayed", "lock held (ms)"), rows),
        ],
        next_steps=[f"shardwright partition status --table {table}"],
    )


def _progress(progress: Progress) -> str:
    share = progress.pages / progress.pages_total if progress.pages_total else 1.0
    said = f", {share * 100:.1f} %, {progress.rows} rows, {progress.rows_per_s:.0f} rows/s"
    done = progress.rows - progress.rows_before
    if done and 0 < share < 1:
        said += f", ETA {progress.rows * (1 - share) / share / progress.rows_per_s:.0f} s"
    return said


def _since(dsn: str, schema: str, name: str, text: str | None) -> int | None:
    moment = asked_moment(text)
    if moment is None:
        return None
    from shardwright.partition import calendar
    from shardwright.partition.fleet import Fleet

    with Fleet(dsn, [(schema, name)]) as fleet:
        table = fleet.tables[0]
        return calendar.now_on_axis(table.policy, table.key, moment)


def _planned(made: SplitPlan) -> list[Part]:
    return [
        f"{made.fat.name} of {made.table} would be cut into {len(made.pieces)} partitions",
        Table(
            ("partition", "", "from", "to"),
            [(one.name, one.role, *made.bounds[one.name]) for one in made.pieces],
        ),
        Table(
            ("shard", "rows", "size"),
            [(shard, made.rows[shard], size(amount)) for shard, amount in made.bytes.items()],
        ),
        "about as much disk is needed beside it until it is dropped; nothing was changed",
    ]
