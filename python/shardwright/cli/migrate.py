"""``shardwright migrate``: schema migrations with Alembic on every shard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table, bad, good, warn

if TYPE_CHECKING:
    from shardwright.migrate.fleet import Run, Standing

app = App(
    name="migrate",
    help="Run schema migrations (Alembic) on every shard.",
    help_epilogue="Example:\n\n    shardwright migrate init migrations --metadata app.models:Base\n\n"
    "    alembic revision --autogenerate -m 'add events'\n\n    shardwright migrate upgrade",
)

Config = Annotated[Path, Parameter(help="Alembic's configuration.")]


@app.command
def init(
    directory: Path, /, *, metadata: str | None = None, config: Config = Path("alembic.ini"), common: Common = DEFAULTS
) -> Answer:
    """Write alembic.ini, env.py and a directory for revisions.

    Args:
        directory: for env.py and revisions, beside alembic.ini.
        metadata: MODULE:NAME of a MetaData or of a declarative base, such as app.models:Base.
    """
    from shardwright.migrate import scaffold

    written = scaffold.write(config.parent / directory, config, metadata)
    return Answer(
        {"files": [str(path) for path in written]},
        [f"wrote {path}" for path in written],
        next_steps=["shardwright migrate status"],
    )


@app.command
def upgrade(
    revision: str = "head",
    /,
    *,
    config: Config = Path("alembic.ini"),
    canary: str | None = None,
    parallel: int = 1,
    lock_timeout: int = 500,
    patience: float = 60.0,
    common: Common = DEFAULTS,
) -> Answer:
    """Bring every shard that is behind to a revision: a canary first, then the others. A failure stops it.

    Run again, it goes on where it stopped. Each revision is a transaction of its own, tried again where a lock was not
    to be had. Refused while an operation is live.

    Args:
        revision: head, heads, a revision, or BRANCH@head.
        canary: the shard that is first; by default the first by name, and not the home of reference tables.
        parallel: shards at a time after the canary, each in a process of its own.
        lock_timeout: milliseconds that a statement may wait for a lock, and so make others wait.
        patience: seconds after which a revision that did not get its locks is not tried again.
    """
    return _run("upgrade", revision, config, canary, parallel, lock_timeout, patience, common)


@app.command
def downgrade(
    revision: str,
    /,
    *,
    config: Config = Path("alembic.ini"),
    canary: str | None = None,
    parallel: int = 1,
    lock_timeout: int = 500,
    patience: float = 60.0,
    common: Common = DEFAULTS,
) -> Answer:
    """Take every shard back to a revision, in the same way.

    Args:
        revision: a revision, or base.
        canary: the shard that is first.
        parallel: shards at a time after the canary, each in a process of its own.
        lock_timeout: milliseconds that a statement may wait for a lock.
        patience: seconds after which a revision that did not get its locks is not tried again.
    """
    return _run("downgrade", revision, config, canary, parallel, lock_timeout, patience, common)


@app.command
def stamp(revision: str, /, *, config: Config = Path("alembic.ini"), common: Common = DEFAULTS) -> Answer:
    """Note on every shard that it is at a revision, and run nothing: for databases that had their tables before.

    Args:
        revision: head, a revision, or base.
    """
    return _run("stamp", revision, config, None, 1, 500, 60.0, common)


def _run(
    verb: str,
    revision: str,
    config: Path,
    canary: str | None,
    parallel: int,
    lock_timeout: int,
    patience: float,
    common: Common,
) -> Answer:
    if not 1 <= parallel <= 64:
        raise errors.BadOption(f"--parallel {parallel}: from 1 to 64", fix=f"shardwright migrate {verb} --help")
    if not 1 <= lock_timeout <= 600_000 or not 0 <= patience <= 86_400:
        raise errors.BadOption(
            "--lock-timeout is 1 to 600000 milliseconds, --patience 0 to 86400 seconds",
            fix=f"shardwright migrate {verb} --help",
        )
    from shardwright.migrate import fleet
    from shardwright.migrate.one_shard import Order

    with common.connect() as catalog:
        order = Order(verb, revision, config, common.dsn(), lock_timeout, patience)
        done = fleet.run(catalog, order, canary=canary, parallel=parallel, on_event=common.output.note)
    drift = list(done.settled.drift) if done.settled else []
    if drift:
        raise errors.LayoutsDiffer(
            f"every shard is at {revision}, and registered tables differ: {'; '.join(drift[:5])}",
            fix="make the definitions equal, then run this again",
            durable_change=bool(done.done),
            differences=drift,
        )
    code = done.windows.exit_code if done.windows is not None else 0
    return Answer(done.to_json(), _shown(done), next_steps=_next(done), exit_code=code)


def _shown(done: Run) -> list[Part]:
    from shardwright.cli.table import windows_shown

    rows = [
        (name, ", ".join(one.heads) or "base", ", ".join(done.done.get(name, one.heads)) or "base",
         len(one.pending) if name in done.done else 0, done.seconds.get(name))
        for name, one in done.before.items()
    ]  # fmt: skip
    shown: list[Part] = [Table(("shard", "was at", "is at", "revisions", "seconds"), rows)]
    if done.settled is None:
        return [*shown, "shards are at different revisions: the catalog is told when all are at the same"]
    shown += [f"{name} is registered" for name in done.settled.registered]
    shown += [f"{name} has a new policy" for name in done.settled.policies]
    if done.windows is not None:
        shown += windows_shown(done.windows)
    return shown


def _next(done: Run) -> list[str]:
    if done.windows is not None:
        return ["shardwright partition tick" if done.windows.exit_code else "shardwright partition status"]
    return ["shardwright migrate status"]


@app.command
def status(*, config: Config = Path("alembic.ini"), common: Common = DEFAULTS) -> Answer:
    """Show at which revision each shard is, what is to run there, and how registered tables differ. Exit code 5 if they do."""
    from shardwright.catalog import roster, sites
    from shardwright.migrate import fleet, settling
    from shardwright.migrate.one_shard import Order

    with common.connect() as catalog, ExitStack() as stack:
        order = Order("upgrade", "heads", config, common.dsn())
        found = fleet.standings(order, fleet.heads_of(catalog, order))
        opened = sites.open_sites(stack, roster.list_shards(catalog))
        drift = settling.drift(catalog, opened)
    rows = [(name, ", ".join(one.heads) or "base", _state(one)) for name, one in found.items()]
    behind = any(one.pending for one in found.values())
    return Answer(
        {
            "shards": [
                {"shard": name, "heads": list(one.heads), "pending": list(one.pending), "unknown": one.unknown}
                for name, one in found.items()
            ],
            "drift": drift,
        },
        [Table(("shard", "revision", "state"), rows, empty="no shard yet"), *drift],
        next_steps=["shardwright migrate upgrade"] if behind else [],
        exit_code=errors.LayoutsDiffer.exit_code if drift and not behind else 0,
    )


def _state(one: Standing) -> str:
    if one.unknown:
        return bad("at a revision that no script here has")
    if one.pending:
        return warn(f"{len(one.pending)} behind")
    return good("up to date")
