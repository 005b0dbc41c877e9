"""Before an operation starts, servers are asked whether they have room for its streams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from fix_servers import Dsns, Postgres
from shardwright import engines, errors, sharded_by
from shardwright.catalog import models, operations, shards
from shardwright.reshard import operate
from shardwright.servers import Server
from shardwright.testing.clusters import make_ready


def test_every_setting_that_is_too_low_is_named(
    make_database: Callable[..., str], server_factory: Callable[..., Server], postgres: Postgres
) -> None:
    low = {"max_replication_slots": "0", "max_wal_senders": "1", "max_logical_replication_workers": "0"}
    origins = "max_active_replication_origins" if postgres.version >= 18 else "max_replication_slots"
    full = server_factory(settings={**low, origins: "0"})
    dsns = Dsns(make_database("catalog"), {"s1": make_database("s1"), "s2": full.create_database("s2")})
    make_ready(dsns.catalog, {"s1": dsns.shards["s1"]})
    metadata = sa.MetaData()
    sa.Table("users", metadata, sa.Column("id", sa.BigInteger, primary_key=True), info=sharded_by("id"))
    with engines.connect_catalog(dsns.catalog) as catalog:
        models.register(catalog, metadata)
        shards.add_shard(catalog, "s2", dsns.shards["s2"])
        plan = operate.plan(catalog, add="s2")
        with pytest.raises(errors.PreflightFailed) as refused:
            operate.start(catalog, plan)
        assert operations.list_all(catalog) == []
    said = {(one["found"], one["fix"]) for one in refused.value.facts["problems"] if one["shard"] == "s2"}
    assert said == {
        ("0 replication slots are free, 1 are needed", "raise max_replication_slots"),
        ("1 WAL senders are free, 2 are needed", "raise max_wal_senders"),
        (
            "0 logical replication workers are free, 1 are needed",
            "raise max_logical_replication_workers and max_worker_processes",
        ),
        ("0 replication origins are free, 1 are needed", f"raise {origins}"),
    }
