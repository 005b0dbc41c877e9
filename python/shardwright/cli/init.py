"""``shardwright init``: an empty database becomes a cluster's catalog; an existing catalog is brought up to date."""

from __future__ import annotations

from cyclopts import App

from shardwright import engines
from shardwright.catalog import founding, overview
from shardwright.cli.app import DEFAULTS, Answer, Common

app = App(name="init", help="Make an empty database the catalog of a cluster, or bring a catalog up to date.")


@app.default
def init(*, common: Common = DEFAULTS) -> Answer:
    """Make an empty database the catalog of a cluster, or bring a catalog and its shards up to date.

    Changes nothing when all is up to date.
    """
    with engines.connect_catalog(common.dsn(), "shardwright init") as catalog:
        applied = founding.found(catalog)
        cluster = overview.look(catalog)
    shown = [
        f"{what}: migration{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} applied"
        for what, numbers in applied.items()
        if numbers
    ]
    return Answer(
        {"cluster": cluster.cluster, "applied": applied},
        shown or ["all is up to date"],
        next_steps=cluster.next_steps,
    )
