"""What may be wrong with a shard's server, looked at from outside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shardwright import engines, errors
from shardwright.catalog import roster

_ASK = """
SELECT (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
       current_setting('server_version'),
       ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int,
       (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND pid NOT IN
           (SELECT active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL AND slot_type = 'logical'))
"""


@dataclass(frozen=True)
class Finding:
    """How one shard's server does."""

    shard: str
    #: "ok", "unreachable", "standby", "former primary", "another database"
    state: str
    #: who answered, as host:port
    address: str | None = None
    version: str | None = None
    #: the timeline that the server writes
    timeline: int | None = None
    #: the highest one that was seen; 0 before any was
    highest: int = 0
    #: standbys that stream from it
    standbys: int | None = None
    problem: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def examine(shard: roster.Shard) -> Finding:
    """Call a shard and look who answers.

    Args:
        shard: which, as the catalog knows it.
    """
    try:
        with engines.connect_shard(shard, "shardwright doctor") as there:
            row = there.execute(_ASK).fetchone()
            address = f"{there.info.host}:{there.info.port}"
    except errors.NotPrimary as error:
        state = "standby" if error.message.endswith("is a standby") else "former primary"
        return Finding(shard.name, state, highest=shard.timeline, problem=error.message, fix=error.fix)
    except errors.ShardwrightError as error:
        return Finding(shard.name, "unreachable", highest=shard.timeline, problem=error.message, fix=error.fix)
    assert row is not None
    system_identifier, database, version, timeline, standbys = row
    if (system_identifier, database) != (shard.system_identifier, shard.database_oid):
        return Finding(
            shard.name,
            "another database",
            address,
            version,
            timeline,
            shard.timeline,
            standbys,
            "what answers at its address is another database",
            f"shardwright shard add {shard.name} DSN",
        )
    return Finding(shard.name, "ok", address, version, timeline, shard.timeline, standbys)
