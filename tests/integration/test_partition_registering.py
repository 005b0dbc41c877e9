"""Registered tables get their first windows at once, and so does a shard that joins; misfits leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from fix_catalog import Found
from shardwright import reference, time_partitioned
from shardwright.catalog import tables
from shardwright.errors import UnfitTable
from shardwright.partition.registering import first_windows, register

pytestmark = pytest.mark.newest_postgres

MONTHS = time_partitioned("at", every="1 month", keep="12 months")


def metadata(type_: Any, info: dict[str, Any]) -> sa.MetaData:
    made = sa.MetaData()
    sa.Table(
        "logs",
        made,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("at", type_, primary_key=True),
        info=info,
    )
    return made


def leaves(cluster: Found, shard: str) -> Any:
    return cluster.ask(
        shard,
        "SELECT array_agg(pg_get_expr(c.relpartbound, c.oid) ORDER BY c.relname) FROM pg_inherits i "
        "JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'logs'::regclass",
    )


def test_windows_come_with_the_table_and_with_a_shard(found: Callable[..., Found]) -> None:
    cluster = found(3, joined=2)
    done, report = register(cluster.dsns.catalog, cluster.catalog, metadata(sa.DateTime(timezone=True), MONTHS))
    assert report is not None
    assert report.exit_code == 0
    # that of now, three ahead, and a guard at each end
    assert len(leaves(cluster, "s1")) == 6
    assert leaves(cluster, "s2") == leaves(cluster, "s1")
    cluster.shard("s1").execute("INSERT INTO logs VALUES (1, now()), (2, now() + interval '32 days')")
    cluster.add("s3")
    first_windows(cluster.dsns.catalog, cluster.catalog, done.tables)
    assert leaves(cluster, "s3") == leaves(cluster, "s1")


def test_reference_rows_reach_the_copies_windows(found: Callable[..., Found]) -> None:
    cluster = found(2)
    register(cluster.dsns.catalog, cluster.catalog, metadata(sa.DateTime(timezone=True), reference(home="s1") | MONTHS))
    cluster.shard("s1").execute("INSERT INTO logs VALUES (1, now()), (2, now() + interval '32 days')")
    for _ in range(400):
        if cluster.ask("s2", "SELECT count(*) FROM logs") == 2:
            break
        cluster.shard("s2").execute("SELECT pg_sleep(0.05)")
    assert cluster.ask("s2", "SELECT count(*) FROM logs") == 2
    assert leaves(cluster, "s2") == leaves(cluster, "s1")


@pytest.mark.parametrize(
    ("type_", "info"),
    [(sa.BigInteger(), MONTHS), (sa.Date(), time_partitioned("at", every="6 hours")), (sa.Text(), MONTHS)],
)
def test_a_policy_that_does_not_go_with_its_column(
    found: Callable[..., Found], type_: Any, info: dict[str, Any]
) -> None:
    cluster = found(2)
    with pytest.raises(UnfitTable, match="column at is of type"):
        register(cluster.dsns.catalog, cluster.catalog, metadata(type_, info))
    assert tables.list_tables(cluster.catalog) == []
    assert [cluster.ask(shard, "SELECT to_regclass('logs')::text") for shard in ("s1", "s2")] == [None, None]
