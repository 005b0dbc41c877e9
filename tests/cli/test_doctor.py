"""``shardwright doctor``: connections that do not fit, shards that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_cli import Ran
from fix_servers import Dsns
from fix_sessions import until
from shardwright import Cluster, engines
from shardwright.testing.clusters import make_ready

Cli = Callable[..., Ran]


@pytest.fixture
def dsns(cluster_dsns: Callable[..., Dsns]) -> Dsns:
    found = cluster_dsns(2)
    make_ready(found.catalog, found.shards)
    return found


def heartbeats(dsns: Dsns) -> list[Any]:
    with engines.connect_catalog(dsns.catalog) as catalog:
        return catalog.execute("SELECT application, connections FROM shardwright.routers ORDER BY 1").fetchall()


def test_budget_counts_what_live_processes_may_open(dsns: Dsns, cli: Cli) -> None:
    env = {"SHARDWRIGHT_CATALOG": dsns.catalog}
    with (
        Cluster.connect(dsns.catalog, application="web", pool_size=2, max_overflow=1) as web,
        Cluster.connect(dsns.catalog, application="job", pool_size=1, max_overflow=0),
    ):
        until(lambda: len(heartbeats(dsns)) == 2, "they are not listed")
        assert heartbeats(dsns) == [("job", {"psycopg": 1}), ("web", {"psycopg": 3})]
        with web.engine("s1").connect():
            ran = cli("doctor", "budget", "--json", env=env).ok()
        found = {one["shard"]: one for one in ran.json["shards"]}
        assert ran.json["fits"]
        assert [found[name]["may_open"] for name in ("s1", "s2")] == [4, 4]
        assert found["s1"]["in_use"] >= 1
        assert found["s1"]["max_connections"] == 200
        # The two shards are databases of one server: they share what is left.
        used = found["s1"]["reserved"] + found["s1"]["others"] + 2 * found["s1"]["workers"]
        assert found["s1"]["allowed"] == found["s2"]["allowed"] == (200 - used) // 2
        assert {one["application"]: one["may_open"] for one in ran.json["processes"]} == {"web": 3, "job": 1}

        ran = cli("shard", "budget", "s1", "--connections", 3, "--json", env=env).ok()
        assert ran.json == {"shard": "s1", "connections": 3, "next_steps": ["shardwright doctor budget"]}
        ran = cli("doctor", "budget", env=env)
        assert ran.code == 3
        assert "s1: 4 connections may be opened, and 3 fit" in ran.out
        assert "`shardwright shard budget s1 --connections 4`" in ran.out
        assert "s2:" not in ran.out
        assert cli("doctor", "budget", "--json", env=env).json["fits"] is False
        cli("shard", "budget", "s1", env=env).ok()
        cli("doctor", "budget", env=env).ok()
        ran = cli("doctor", "budget", "--more", 200, "--json", env=env)
        assert (ran.code, ran.json["fits"]) == (3, False)


def test_a_shard_that_cannot_be_asked(dsns: Dsns, cli: Cli) -> None:
    env = {"SHARDWRIGHT_CATALOG": dsns.catalog}
    with engines.connect_catalog(dsns.catalog) as catalog:
        nowhere = psycopg.conninfo.make_conninfo(dsns.shards["s2"], port=1)
        catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = 's2'", (nowhere,))
    ran = cli("doctor", "budget", env=env)
    assert ran.code == 3
    assert "unreachable" in ran.out
    ran = cli("doctor", "shards", "--json", env=env)
    assert ran.code == 3
    states = {one["shard"]: one["state"] for one in ran.json["shards"]}
    assert states == {"s1": "ok", "s2": "unreachable"}


def test_shards_that_are_not_who_they_were(dsns: Dsns, cli: Cli) -> None:
    env = {"SHARDWRIGHT_CATALOG": dsns.catalog}
    ran = cli("doctor", "shards", "--json", env=env).ok()
    assert ran.json["healthy"]
    assert ran.json["shards"][0]["timeline"] == 1
    with engines.connect_catalog(dsns.catalog) as catalog:
        catalog.execute("INSERT INTO shardwright.timelines VALUES ('s1', 2)")
        catalog.execute("UPDATE shardwright.shards SET database_oid = 1 WHERE name = 's2'")
    ran = cli("doctor", "shards", "--json", env=env)
    assert ran.code == 3
    found = {one["shard"]: one for one in ran.json["shards"]}
    assert found["s1"]["state"] == "former primary"
    assert "timeline 1" in found["s1"]["problem"]
    assert found["s2"]["state"] == "another database"


def test_wrong_calls(dsns: Dsns, cli: Cli) -> None:
    env = {"SHARDWRIGHT_CATALOG": dsns.catalog}
    for words in (("doctor", "budget", "--workers", "-1"), ("shard", "budget", "s1", "--connections", "0")):
        ran = cli(*words, "--json", env=env)
        assert ran.code == 2
        assert json.loads(ran.out)["error"]["code"] == "SW109"
    assert cli("shard", "budget", "s9", env=env).code == 2
    assert "Example" in cli("doctor", "--help").ok().out
