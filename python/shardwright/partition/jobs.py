"""Long work on a table, shard by shard, in the catalog: what was decided once, and how far each shard is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import psycopg

from shardwright import errors


@dataclass(frozen=True)
class Job:
    """The work on one table of one shard."""

    table_id: int
    shard: str
    #: ``convert`` or ``split``.
    kind: str
    step: str
    state: dict[str, Any]


def list_jobs(catalog: psycopg.Connection, table_id: int) -> dict[str, Job]:
    """The work on a table, by shard.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
    """
    rows = catalog.execute(
        "SELECT table_id, shard, kind, step, state FROM shardwright.partition_jobs WHERE table_id = %s ORDER BY shard",
        (table_id,),
    ).fetchall()
    return {row[1]: Job(*row) for row in rows}


def begin(catalog: psycopg.Connection, jobs: list[Job]) -> None:
    """Record work on a table, on all its shards at once. Work of the same kind that is there already stays.

    Args:
        catalog: connection to the catalog.
        jobs: one a shard.

    Raises:
        OperationConflict: other work is going on.
    """
    with catalog.transaction():
        for job in jobs:
            row = catalog.execute(
                "INSERT INTO shardwright.partition_jobs AS j (table_id, shard, kind, step, state) VALUES (%s, %s, %s, %s, %s) "
                "ON CONFLICT (table_id, shard) DO UPDATE SET at = j.at RETURNING kind",
                (job.table_id, job.shard, job.kind, job.step, json.dumps(job.state)),
            ).fetchone()
            if row is not None and row[0] != job.kind:
                raise errors.OperationConflict(
                    f"a {row[0]} of the table is under way on shard {job.shard}",
                    fix=f"shardwright partition {row[0]} TABLE goes on with it, with --abort it is given up",
                )


def advance(catalog: psycopg.Connection, job: Job, step: str, **facts: Any) -> Job:
    """Write down how far a shard is.

    Args:
        catalog: connection to the catalog.
        job: the work.
        step: what is reached.
        facts: what is to be remembered besides.

    Returns:
        The work as it stands now.

    Raises:
        OperationConflict: it was ended meanwhile.
    """
    state = {**job.state, **facts}
    done = catalog.execute(
        "UPDATE shardwright.partition_jobs SET step = %s, state = %s, at = clock_timestamp() "
        "WHERE table_id = %s AND shard = %s AND kind = %s",
        (step, json.dumps(state), job.table_id, job.shard, job.kind),
    )
    if done.rowcount != 1:
        raise errors.OperationConflict(
            f"the {job.kind} on shard {job.shard} was ended by another session",
            fix="look at what stands: shardwright partition status",
        )
    return Job(job.table_id, job.shard, job.kind, step, state)


def end(catalog: psycopg.Connection, table_id: int, shard: str | None = None) -> None:
    """Forget the work on a table.

    Args:
        catalog: connection to the catalog.
        table_id: the table.
        shard: on this shard only.
    """
    catalog.execute(
        "DELETE FROM shardwright.partition_jobs WHERE table_id = %(table)s AND (%(shard)s::text IS NULL OR shard = %(shard)s)",
        {"table": table_id, "shard": shard},
    )
