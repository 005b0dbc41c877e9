"""`shardwright tx`: what sessions left in doubt is listed and ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from fix_cli import Ran
from fix_sessions import Shop
from shardwright import errors
from shardwright.catalog import decisions, roster
from shardwright.cli import tx as verbs


def leave(shop: Shop, *, committed: bool) -> str:
    """What a session leaves that died before or after it decided; returns the transaction's id."""
    _, transaction = decisions.register(shop.catalog, ["s1", "s2"], "shop")
    for shard in ("s1", "s2"):
        with psycopg.connect(shop.dsns.shards[shard], autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute("INSERT INTO users (id, name) VALUES (%s, 'x')", (shop.key_on(shard),))
            name = decisions.gid(roster.cluster_id(shop.catalog), transaction, shard)
            connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
    if committed:
        assert decisions.commit(shop.catalog, transaction)
    return transaction


def test_list_and_recover(shop: Shop, cli: Callable[..., Ran]) -> None:
    env = {"SHARDWRIGHT_CATALOG": shop.dsns.catalog}

    def tx(*words: str) -> Any:
        return cli("tx", *words, "--json", env=env).ok().json

    assert tx("list") == {"transactions": [], "unreachable": {}, "next_steps": []}
    decided = leave(shop, committed=True)
    (listed,) = tx("list")["transactions"]
    assert (listed["id"], listed["state"], listed["application"]) == (decided, "committed", "shop")
    assert listed["shards"] == listed["prepared_on"] == ["s1", "s2"]
    # It is young: its session may live.
    assert tx("recover")["transactions"] == []
    (ended,) = tx("recover", decided)["transactions"]
    assert (ended["outcome"], ended["ended_on"], ended["left"]) == ("committed", ["s1", "s2"], {})
    assert [shop.ask(shard, "SELECT count(*) FROM users") for shard in ("s1", "s2")] == [1, 1]

    for shard in ("s1", "s2"):
        shop.shard(shard).execute("DELETE FROM users")
    doubtful = leave(shop, committed=False)
    said = cli("tx", "list", env=env).ok().out
    assert doubtful in said
    assert "in doubt" in said
    (ended,) = tx("recover", "--older-than", "0s")["transactions"]
    assert (ended["id"], ended["outcome"]) == (doubtful, "aborted")
    assert [shop.ask(shard, "SELECT count(*) FROM users") for shard in ("s1", "s2")] == [0, 0]

    ran = cli("tx", "recover", str(uuid.uuid4()), env=env)
    assert (ran.code, "shardwright tx list" in ran.err) == (2, True)
    for wrong in ({"transaction": "x"}, {"older_than": "soon"}):
        with pytest.raises(errors.BadOption):
            verbs.recover(wrong.get("transaction"), older_than=wrong.get("older_than", "30s"))

    # A shard that is away is named; what can be done elsewhere is done, and the rest when it is back.
    left = leave(shop, committed=True)
    address = shop.catalog.execute("SELECT conninfo FROM shardwright.shards WHERE name = 's2'").fetchone()
    assert address is not None
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = 'host=127.0.0.1 port=1' WHERE name = 's2'")
    ran = cli("tx", "recover", left, "--json", env=env)
    assert ran.code == 3
    (ended,) = ran.json["transactions"]
    assert ended["ended_on"] == ["s1"]
    assert list(ended["left"]) == list(ran.json["unreachable"]) == ["s2"]
    shop.catalog.execute("UPDATE shardwright.shards SET conninfo = %s WHERE name = 's2'", address)
    shop.catalog.execute("UPDATE shardwright.decisions SET begun_at = begun_at - interval '1 minute'")
    ran = cli("worker", "--once", "--no-partitions", env=env).ok()
    assert f"transaction {left}: committed, ended on s2" in ran.out
    assert tx("list")["transactions"] == []
    assert [shop.ask(shard, "SELECT count(*) FROM users") for shard in ("s1", "s2")] == [1, 1]
