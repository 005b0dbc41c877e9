"""``shardwright unique``: the directory of values that are unique over all shards, compared with the rows and mended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.modules import metadata_of
from shardwright.cli.ongoing import Ongoing
from shardwright.cli.output import Table, bad, good
from shardwright.cli.reshard_drive import Interrupts

app = App(
    name="unique",
    help="Compare the directory of values that are unique over all shards with the rows, and mend it.",
    help_epilogue="Example:\n\n    shardwright unique check app.models:Base\n\n    shardwright unique mend app.models:Base",
)


Columns = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)]


@app.command
def check(models: str, /, *, column: Columns = None, common: Common = DEFAULTS) -> Answer:
    """Compare the directory with the rows, both ways, while they are read and written; nothing is changed.

    The exit code is 5 where they differ.

    Args:
        models: MODULE:NAME of a MetaData or of a declarative base, such as app.models:Base.
        column: only this one, as table.column; may be given several times.
    """
    return _compared(models, column or [], common, mend=False)


@app.command
def mend(models: str, /, *, column: Columns = None, common: Common = DEFAULTS) -> Answer:
    """Put into the directory the values that it lacks, and take out those that no row has, while both are used.

    For rows that were there before their column was declared, and for what was written past the application's objects. May
    be broken off and run again. The exit code is 5 where several rows have one value: that is for a person to mend.

    Args:
        models: MODULE:NAME of a MetaData or of a declarative base, such as app.models:Base.
        column: only this one, as table.column; may be given several times.
    """
    return _compared(models, column or [], common, mend=True)


def _compared(models: str, columns: list[str], common: Common, *, mend: bool) -> Answer:
    # SQLAlchemy is imported for this alone.
    from shardwright.session.cluster import Cluster
    from shardwright.session.unique_mending import compare, uniques_of

    wanted = uniques_of(metadata_of(models), columns)
    with Interrupts() as interrupts, ExitStack() as stack:
        cluster = stack.enter_context(Cluster.connect(common.dsn(), application="shardwright unique", refresh="never"))
        watch = _watch(Ongoing(common.output, stack), interrupts.check)
        found = [compare(cluster, unique, mend=mend, watch=watch) for unique in wanted]
    differs = any(one.shared if mend else one.differs for one in found)
    value = {
        "mended": mend,
        "columns": [
            {
                "column": one.column,
                "rows": one.rows,
                "missing": one.missing,
                "stray": one.stray,
                "shared": one.shared,
                "values": [asdict(value) for value in one.listed],
            }
            for one in found
        ],
    }
    said = bad if not mend else good
    rows = [
        (one.column, one.rows, _count(one.missing, said), _count(one.stray, said), _count(one.shared, bad))
        for one in found
    ]
    heads = ("put in", "taken out") if mend else ("missing", "stray")
    listed = [(one.column, value.value, *value.owners) for one in found for value in one.listed]
    mendable = not mend and any(one.missing or one.stray for one in found)
    return Answer(
        value,
        [
            Table(("column", "rows with a value", *heads, "shared"), rows, empty="nothing was compared"),
            *([Table(("column", "value", "of the row with key", "and of"), listed)] if listed else []),
        ],
        next_steps=[f"shardwright unique mend {models}"] if mendable else [],
        exit_code=errors.VerificationError.exit_code if differs else 0,
    )


def _count(number: int, said: Callable[[object], object]) -> object:
    return said(number) if number else number


def _watch(ongoing: Ongoing, check: Callable[[], None]) -> Callable[[str, str, int, int], None]:
    """Tells how far a comparison is, and lets it be interrupted."""
    began: dict[str, tuple[float, int]] = {}

    def watch(column: str, what: str, done: int, total: int) -> None:
        check()
        now = time.monotonic()
        since, before = began.setdefault(f"{column} {what}", (now, done))
        said = f", {done} of {max(done, total)}"
        if done > before:
            rate = (done - before) / (now - since)
            said += f", {rate:.0f}/s, ETA {max(0, total - done) / rate:.0f} s"
        ongoing.tell(f"{column}: {what}", said)

    return watch
