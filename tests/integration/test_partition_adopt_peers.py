"""Tables of pg_partman (its extension) and pg-partsmith (its library) come under our care; pg_partman does not fight us."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from fix_catalog import Found
from fix_handmade import PARENT, adopted, attached, listed, refused, run
from shardwright import errors
from shardwright.catalog import tables
from shardwright.partition import adopt, partman
from shardwright.partition.tick import tick
from shardwright.partition.wishes import Wish
from shardwright.routing.policy import Policy


def month(ahead: int) -> datetime:
    """The beginning of a month, so many after this one."""
    now = datetime.now(UTC)
    years, index = divmod(now.year * 12 + now.month - 1 + ahead, 12)
    return datetime(years, index + 1, 1, tzinfo=UTC)


@pytest.fixture
def partman_on(found: Callable[..., Found]) -> Callable[..., Found]:
    """A cluster whose shards have pg_partman's extension and a monthly table of its making."""

    def make(shards: int, **settings: Any) -> Found:
        cluster = found(shards)
        for name in cluster.dsns.shards:
            try:
                run(cluster, name, "CREATE SCHEMA partman", "CREATE EXTENSION pg_partman SCHEMA partman", PARENT)
            except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported):
                pytest.skip("pg_partman is not installed on this server (apt install postgresql-15-partman)")
            cluster.shard(name).execute(
                "SELECT partman.create_parent('public.events', 'at', 'native', 'monthly', p_premake := 2, p_jobmon := false, "
                "p_start_partition := (date_trunc('month', now()) - interval '3 months')::text)"
            )
            for column, value in settings.items():
                cluster.shard(name).execute(f"UPDATE partman.part_config SET {column} = %s".encode(), (value,))
        return cluster

    return make


def test_a_set_of_pg_partman(partman_on: Callable[..., Found]) -> None:
    cluster = partman_on(2, retention="2 months", retention_keep_table=False)
    for name in ("s1", "s2"):
        # one in a partition, one in its DEFAULT, which its maintenance would choke on
        cluster.shard(name).execute("INSERT INTO events (user_id, at) VALUES (1, now()), (1, %s)", (month(3),))
    said = refused(cluster, Wish())
    off = """UPDATE "partman"."part_config" SET automatic_maintenance = 'off' WHERE parent_table = 'public.events'"""
    assert said.count(off) == 2, said
    for name in ("s1", "s2"):
        run(cluster, name, off)
    before = attached(cluster, "s1")
    wish = Wish(ahead=3)
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", wish)
    assert planned.policy_from == "pg_partman"
    assert Policy.from_json(planned.policy) == Policy("at", "1 month", keep="2 months", ahead=3)
    assert planned.over == (f"events_p{month(-3):%Y_%m}",)
    assert any("DELETE FROM" in note for note in planned.notes)
    adopted(cluster, wish, now=None)
    for name in ("s1", "s2"):
        after = attached(cluster, name)
        assert {"events_p_before", "events_p_after"} <= set(after) == set(wanted(cluster))
        assert "events_default" not in after
        assert cluster.ask(name, "SELECT count(*) FROM events") == 2
        # what run_maintenance() does now: nothing
        cluster.shard(name).execute("SELECT partman.run_maintenance(p_jobmon := false)")
        assert attached(cluster, name) == after
    over = {f"events_p{month(-3):%Y_%m}"}
    assert {one: seen[:2] for one, seen in attached(cluster, "s1").items() if one in before} == {
        one: seen[:2] for one, seen in before.items() if one not in over | {"events_default"}
    }
    assert tick(cluster.dsns.catalog).exit_code == 0


def wanted(cluster: Found) -> set[str]:
    return {name for name, one in listed(cluster).items() if one[3] == "wanted"}


def test_what_pg_partman_was_told_is_a_proposal(partman_on: Callable[..., Found]) -> None:
    cluster = partman_on(1, retention="6 months", automatic_maintenance="off")
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", Wish())
    # it keeps the tables that it detaches, and ours would be dropped
    assert Policy.from_json(planned.policy) == Policy("at", "1 month", ahead=2)
    assert any('give --keep "6 months"' in note for note in planned.notes)
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", Wish(keep="6 months", ahead=5))
    assert Policy.from_json(planned.policy) == Policy("at", "1 month", keep="6 months", ahead=5)
    assert not any("--keep" in note for note in planned.notes)
    # its template gives each partition a key that no new window could have
    run(cluster, "s1", f"CREATE UNIQUE INDEX once ON events_p{month(0):%Y_%m} (user_id)")
    assert 'DROP INDEX "public"."once"' in refused(cluster, Wish())


def test_settings_that_may_not_be_read(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        role = f"{connection.info.dbname}_r"
        for text in (
            "CREATE SCHEMA odd",
            "CREATE TABLE odd.part_config (parent_table text, control text, partition_interval text, premake int, "
            "automatic_maintenance text, epoch text, retention text, retention_keep_table bool)",
            "INSERT INTO odd.part_config VALUES ('public.events', 'at', '7 days', 4, 'on', 'milliseconds', '30 days', false)",
        ):
            connection.execute(text.encode())
        found = partman.find(connection, "public", "events")
        assert found is not None
        assert (found.schema, found.automatic) == ("odd", True)
        assert found.policy == {"column": "at", "ahead": 4, "every": "1 week", "key": "epoch_ms", "keep": "30 days"}
        assert partman.find(connection, "public", "others") is None
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            connection.execute(f"SET ROLE {role}".encode())
            hidden = partman.find(connection, "public", "events")
            assert hidden is not None
            assert not hidden.readable
        finally:
            connection.execute("RESET ROLE")
            connection.execute(f"DROP ROLE {role}".encode())


@pytest.mark.skipif(importlib.util.find_spec("pg_partsmith") is None, reason="pg-partsmith is not installed")
@pytest.mark.parametrize("column", ["uuid", pytest.param("timestamptz", marks=pytest.mark.slow)])
def test_a_table_of_pg_partsmith(found: Callable[..., Found], column: str) -> None:
    from pg_partsmith import (
        CreateAhead,
        DropAfter,
        KeepNewest,
        LifecyclePolicy,
        PartitionGranularity,
        RangePartitioning,
        TablePartitionConfig,
        TimeBoundaries,
    )
    from pg_partsmith.sync import PartitionToolkit

    cluster = found(1)
    run(
        cluster,
        "s1",
        f"CREATE TABLE events (id int, at {column} NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
    )
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(cluster.dsns.shards["s1"]))
    codec: dict[str, Any] = {}
    if column == "uuid":
        from pg_partsmith import UUIDv7BoundaryCodec

        codec = {"codec": UUIDv7BoundaryCodec()}
    config = TablePartitionConfig(
        schema="public",
        table_name="events",
        scheme=RangePartitioning(key="at", boundaries=TimeBoundaries(granularity=PartitionGranularity.WEEK, **codec)),
        lifecycle=LifecyclePolicy(
            creation=CreateAhead(count=3), retention=KeepNewest(count=9), drop=DropAfter(grace=timedelta(0))
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not PartitionToolkit.from_engine(engine).maintainer.run_maintenance(config).issues
    engine.dispose()
    before = attached(cluster, "s1")
    assert len(before) == 3
    with pytest.raises(errors.BadDeclaration) as lacking:
        adopt.plan(cluster.dsns.catalog, "public", "events", Wish())
    assert '--every "1 week"' in lacking.value.fix
    planned = adopt.plan(cluster.dsns.catalog, "public", "events", Wish(every="1 week", ahead=4))
    assert planned.policy == {"column": "at", "every": "1 week", "ahead": 4}
    assert planned.notes == ()
    adopted(cluster, Wish(every="1 week", ahead=4), now=None)
    after = attached(cluster, "s1")
    assert {name: one[:3] for name, one in after.items() if name in before} == {
        name: one[:3] for name, one in before.items()
    }
    assert len(after) == 3 + 2 + 2
    assert tables.get_table(cluster.catalog, "public", "events").policy == Policy("at", "1 week", ahead=4)
    assert not any("clipped" in one.kind for one in tick(cluster.dsns.catalog).plan.findings)
